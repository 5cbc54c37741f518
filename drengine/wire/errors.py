"""Who broke the protocol, and how: two exception types and the table of reasons (bounded, for metrics and peers)."""

from __future__ import annotations

from drengine.model.errors import DrengineError, error_kind

PROTOCOL_REMOTE = error_kind(
    "protocol-remote",
    16,
    "The peer broke the replication protocol, or bytes were damaged on the way; the session was ended.",
    "It is made anew by itself. If it comes back: the peer is of another version, or something else uses that port.",
    retryable=True,
)
PROTOCOL_LOCAL = error_kind(
    "protocol-local",
    17,
    "This side was about to break the replication protocol; nothing was sent.",
    "This is a defect: please report it with the log.",
)
VERSION_MISMATCH = error_kind(
    "version-mismatch",
    18,
    "Agent and target speak no common version of the replication protocol.",
    "Upgrade the older side; `drengine --version` and `drengine-agent --version` tell which one that is.",
)

REASONS: dict[str, str] = {
    "bad-magic": "the bytes are not a frame of this protocol",
    "tls-unexpected": "the peer speaks TLS, and this side does not",
    "bad-version": "the frame's layout version is unknown",
    "bad-flags": "a flag is set that means nothing",
    "bad-type": "the frame's type is unknown",
    "bad-move": "the event is not legal in this state",
    "bad-sequence": "a frame is missing, repeated or out of order",
    "bad-length": "a length is over its cap or does not add up",
    "bad-check": "the frame's check does not match its header and meta bytes",
    "bad-field": "a field does not decode, or its value is not allowed",
    "bad-terms": "WELCOME names a version or an ability that HELLO did not offer",
    "no-ability": "an ability is used that was not agreed upon",
    "bad-purpose": "the event does not belong to what the session is for",
    "no-credit": "more BATCH bytes than the credit allows, or more credit than may be given",
    "over-limit": "a batch has more plain bytes than was agreed upon",
    "undeclared": "a batch or cut came before any volume was declared",
    "bad-position": "a stream position was skipped, or one was acknowledged that was not sent",
    "bad-query": "a question's number is still open, too many are open, or an answer fits none",
    "truncated": "the stream ended inside a frame or without a goodbye",
}
"""Every reason a session can end for, with its meaning."""

_HINTS = {
    "tls-unexpected": "Configure certificate, key and ca at this side as well.",
}
"""What to do, where the kind's own hint would lead astray."""


class ProtocolError(DrengineError):
    """The protocol was broken. `reason` is a key of REASONS."""

    def __init__(self, reason: str, message: str, *, remote: bool) -> None:
        kind = PROTOCOL_REMOTE if remote else PROTOCOL_LOCAL
        super().__init__(kind, f"{REASONS[reason]}: {message}", hint=_HINTS.get(reason))
        self.reason = reason


class RemoteProtocolError(ProtocolError):
    """The peer broke it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message, remote=True)


class LocalProtocolError(ProtocolError):
    """We would have broken it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message, remote=False)
