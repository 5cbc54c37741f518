"""Who broke the protocol, and how: two exception types and the table of reasons (bounded, for metrics and peers)."""

from __future__ import annotations

from drengine.model.errors import DrengineError, error_kind

PROTOCOL_REMOTE = error_kind(
    "protocol-remote",
    16,
    "The peer broke the replication protocol; the session was ended.",
    "The peer is faulty, of another version, or something else speaks on that port; the log names the rule.",
)
PROTOCOL_LOCAL = error_kind(
    "protocol-local",
    17,
    "This side was about to break the replication protocol; nothing was sent.",
    "This is a defect: please report it with the log.",
)

REASONS: dict[str, str] = {
    "bad-magic": "the bytes are not a frame of this protocol",
    "bad-version": "the frame's version is not the one agreed upon",
    "bad-type": "the frame's type is unknown",
    "bad-flags": "a flag is set that means nothing",
    "bad-length": "a length is over its cap or does not add up",
    "bad-check": "the frame's check does not match its header and meta bytes",
    "bad-sequence": "a frame is missing, repeated or out of order",
    "bad-field": "a field's value is not allowed",
    "bad-move": "the event is not legal in this state",
    "no-credit": "more was sent than the credit allows",
    "truncated": "the stream ended inside a frame or without a goodbye",
}
"""Every reason a session can end for, with its meaning."""


class ProtocolError(DrengineError):
    """The protocol was broken. `reason` is a key of REASONS."""

    def __init__(self, reason: str, message: str, *, remote: bool) -> None:
        super().__init__(PROTOCOL_REMOTE if remote else PROTOCOL_LOCAL, f"{REASONS[reason]}: {message}")
        self.reason = reason


class RemoteProtocolError(ProtocolError):
    """The peer broke it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message, remote=True)


class LocalProtocolError(ProtocolError):
    """We would have broken it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message, remote=False)
