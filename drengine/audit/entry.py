"""An entry of the audit log, and the line that it becomes.

A line is `HASH JSON`. HASH is the SHA-256 of the text `PREVIOUS JSON` in hexadecimal, where PREVIOUS is the hash of the
entry before; of the first, the SHA-256 of a space and the log's id. So a line vouches for all before it, and
`sha256sum` can check it without this program.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from drengine.redaction import is_secret_name, without_secrets

LINE_BYTES_MAX = 8192
TEXT_CHARACTERS_MAX = 256
DETAIL_CHARACTERS_MAX = 512
DETAILS_MAX = 32
DEPTH_MAX = 4
DETAILS_BYTES_MAX = 4096
_HASH_CHARACTERS = 64


class Outcome(enum.StrEnum):
    """What became of it."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who did what.

    Attributes:
        number: 1, 2, 3...
        at_ns: when it was recorded, nanoseconds since 1970 by this host's clock.
        who: `person:NAME`, `local:UID`, `drengine://SITE/ROLE/NAME`, or how somebody unknown called himself.
        proved: how that is known, such as `certificate`, `token`, `password`, `peer`; empty: it was only claimed.
        did: a dotted word, such as `run.approve`.
        on: what it was done to, such as a run's id.
        outcome: what became of it.
        error: id of the error where it was refused or failed.
        times: how often the same happened, if more than once was folded into this entry.
        details: further facts, bounded, without secrets.
    """

    number: int
    at_ns: int
    who: str
    proved: str
    did: str
    on: str
    outcome: Outcome
    error: str
    times: int
    details: dict[str, Any]


def encode(entry: Entry) -> bytes:
    """The entry as canonical JSON: one way to write each."""
    return _ENCODER.encode(entry)


def chain(previous: str, content: bytes) -> str:
    """The hash of an entry that is written as `content` and follows one of hash `previous`."""
    return hashlib.sha256(previous.encode() + b" " + content).hexdigest()


def genesis(log: str) -> str:
    """What stands for the hash before the first entry of a log with this id."""
    return chain("", log.encode())


def line_of(previous: str, entry: Entry) -> tuple[str, bytes]:
    """An entry's hash, and its line with the line feed."""
    content = encode(entry)
    hashed = chain(previous, content)
    return hashed, hashed.encode() + b" " + content + b"\n"


def read_line(previous: str, number: int, line: bytes) -> tuple[str, Entry]:
    """The hash and the entry of a line, if it is entry `number` and follows `previous`.

    Raises:
        ValueError: it is not; the message says why.
    """
    if not line.endswith(b"\n"):
        raise ValueError("its line has no end")
    hashed, content = line[:_HASH_CHARACTERS], line[_HASH_CHARACTERS + 1 : -1]
    if line[_HASH_CHARACTERS : _HASH_CHARACTERS + 1] != b" " or chain(previous, content).encode() != hashed:
        raise ValueError("it does not fit the entry before it")
    try:
        entry = msgspec.json.decode(content, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it can't be read: {error}") from error
    if entry.number != number:
        raise ValueError(f"it has the number {entry.number}, and should have {number}")
    return hashed.decode(), entry


def cut(text: object, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """A text as the log keeps it: bounded, valid, without secrets."""
    shown = without_secrets(str(text)[: 4 * characters_max].encode("utf-8", "backslashreplace").decode())
    return shown if len(shown) <= characters_max else shown[: characters_max - 3] + "..."


def bounded(details: Mapping[str, Any], *, bytes_max: int = DETAILS_BYTES_MAX) -> dict[str, Any]:
    """Details as the log keeps them, whoever made them up: so many, so deep, so long, without secrets."""
    kept = _bounded(details, 0)
    if len(_ENCODER.encode(kept)) <= bytes_max:
        return dict(kept)
    return {"cut": cut(_ENCODER.encode(kept).decode(), min(DETAIL_CHARACTERS_MAX, bytes_max // 8))}


def _bounded(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    if depth < DEPTH_MAX and isinstance(value, Mapping):
        return {
            cut(name): "***" if isinstance(each, str) and is_secret_name(str(name)) else _bounded(each, depth + 1)
            for name, each in list(value.items())[:DETAILS_MAX]
        }
    if depth < DEPTH_MAX and isinstance(value, (list, tuple, set, frozenset)):
        return [_bounded(each, depth + 1) for each in list(value)[:DETAILS_MAX]]
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return "..."
    return cut(value, DETAIL_CHARACTERS_MAX)


_ENCODER = msgspec.json.Encoder(order="sorted")
