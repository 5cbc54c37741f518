"""Every failure a person or a peer can meet, as data: a stable id, an exit code and a hint.

A failure is raised as :class:`DrengineError` carrying one :class:`ErrorKind`. The published list
(docs/errors.md) is generated from the kinds registered here, so an id is defined once.
"""

from __future__ import annotations

from typing import NamedTuple

_KINDS: dict[str, ErrorKind] = {}


class ErrorKind(NamedTuple):
    """A kind of failure.

    Attributes:
        id: stable, lower-case, hyphenated name; scripts and alerts may match it.
        exit_code: process exit status when a command ends with it: 3 to 125 or 166 to 254 (those between belong to
            shells and signals). It is one kind's own, or that of a family of kinds which a script treats alike; the id
            tells them apart.
        summary: what it means, in one sentence.
        hint: what a person should do next.
        retryable: whether the same action may succeed later without anyone changing anything.
        final: whether a peer that is refused for it should give up until somebody acts at its own side. Any other
            refusal may end without the peer's doing (a disk is mounted again, a certificate renewed), so the peer
            backs off and comes back by itself. It does not follow from `retryable`: a write that failed for good says
            nothing about the next session.
    """

    id: str
    exit_code: int
    summary: str
    hint: str
    retryable: bool = False
    final: bool = False


class DrengineError(Exception):
    """A failure with a kind, a message about this occurrence, and a hint."""

    def __init__(self, kind: ErrorKind, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint or kind.hint

    def __str__(self) -> str:
        return f"{self.message} [{self.kind.id}]"


def error_kind(
    id: str, exit_code: int | ErrorKind, summary: str, hint: str, *, retryable: bool = False, final: bool = False
) -> ErrorKind:
    """Register and return a kind; each package defines its own beside the code that raises them.

    Args:
        exit_code: a code that no kind has, or the kind whose family this one belongs to.

    Raises:
        ValueError: the id or the exit code is already taken.
    """
    family = isinstance(exit_code, ErrorKind)
    code = exit_code.exit_code if isinstance(exit_code, ErrorKind) else exit_code
    kind = ErrorKind(id, code, summary, hint, retryable, final)
    taken = any(each.exit_code == code for each in _KINDS.values())
    if id in _KINDS or taken is not family or not (3 <= code <= 125 or 166 <= code <= 254):
        raise ValueError(f"error kind {id!r} or exit code {code} is taken or out of range")
    _KINDS[id] = kind
    return kind


def error_kinds() -> tuple[ErrorKind, ...]:
    """All registered kinds, by exit code and id, in whatever order their modules were imported."""
    return tuple(sorted(_KINDS.values(), key=lambda kind: (kind.exit_code, kind.id)))


ACCESS_DENIED = error_kind(
    "access-denied",
    240,
    "The permissions of a file or directory keep this user out.",
    "The message names its owner: run the command as that user or as root. What another user makes there may keep out "
    "its owner.",
)
BAD_NAME = error_kind(
    "bad-name",
    10,
    "A name has characters or a length that are not allowed.",
    "Use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit.",
    final=True,
)
BAD_POINT = error_kind(
    "bad-point",
    11,
    "The text does not name a recovery point.",
    "Name a point by its id (see `drengine points`), `latest`, `before:2026-11-23T10:00:00Z`, or its label.",
)
BAD_EXTENTS = error_kind(
    "bad-extents",
    12,
    "An extent table breaks a rule of the protocol.",
    "The peer is faulty or of another version; compare `drengine --version` on both sides.",
    final=True,
)
BAD_LABEL = error_kind(
    "bad-label",
    13,
    "A new point can't be called so.",
    "Choose words that can't be taken for a time, a point's id, `latest`, `before:` or `label:`.",
)
