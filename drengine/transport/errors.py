"""What can go wrong between two hosts: kinds for people and exit codes, reasons for metrics."""

from __future__ import annotations

import ssl

from drengine.model.errors import DrengineError, ErrorKind, error_kind
from drengine.transport.causes import CAUSES, Cause, cause_of, details_of
from drengine.wire.errors import ProtocolError

OUTSIDE_DATA_NETWORK = error_kind(
    "outside-data-network",
    20,
    "The peer's address is outside the configured data networks; no data may go there.",
    "Add its network to `data_networks` if block data may travel there, or correct the address.",
)
PLAIN_REFUSED = error_kind(
    "plain-refused",
    21,
    "Plain TCP is allowed only on loopback.",
    "Configure TLS certificates on both sides, or set `allow_plain = true` knowingly.",
)
BAD_TLS_FILES = error_kind(
    "bad-tls-files",
    22,
    "A certificate, key or CA file is missing, unreadable or does not fit.",
    "The message names the file and the cause; docs/errors.md lists all of them.",
)
TLS_FAILED = error_kind(
    "tls-failed",
    19,
    "TLS could not be agreed upon with the peer, or a certificate was refused.",
    "The message names the cause; docs/errors.md lists all of them.",
    retryable=True,
)
UNREACHABLE = error_kind(
    "peer-unreachable",
    23,
    "The peer can't be reached, or the connection broke.",
    "Check the address, the service at the other end, and the network between.",
    retryable=True,
)
TIMED_OUT = error_kind(
    "peer-silent",
    24,
    "The peer said or took nothing for too long.",
    "The network may be half open or the peer overloaded; the session is made anew.",
    retryable=True,
)

REASONS: dict[str, str] = {
    "outside-data-network": "the peer's address is outside the data networks",
    "plain-refused": "plain TCP to or from another machine was not allowed",
    "local-stranger": "a process of another user of this machine is at the other end",
    "unreachable": "the address does not resolve, or nothing answers there",
    "too-many-connections": "as many connections as may be are open",
    "opening-timeout": "the session was not agreed upon in time",
    "silent": "nothing was heard from the peer for too long",
    "stalled": "the peer took nothing of what was sent for too long",
    "truncated": "the peer closed the stream without a goodbye",
    "broken": "the connection broke",
    "closed": "the connection is closed",
    **{cause.code: cause.meaning for cause in CAUSES.values()},
}
"""Every reason a connection can fail for, besides those of wire.errors.REASONS."""


class TransportError(DrengineError):
    """A connection failed or was refused. `reason` is a key of REASONS."""

    def __init__(self, kind: ErrorKind, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(kind, message, hint=hint)
        assert reason in REASONS
        self.reason = reason


def reason_of(error: DrengineError) -> str:
    """A bounded code for metrics and for REFUSE: a protocol or transport reason, else the error's id."""
    return error.reason if isinstance(error, TransportError | ProtocolError) else error.kind.id


def files_error(code: str, message: str) -> TransportError:
    """BAD_TLS_FILES for this cause."""
    return _caused(BAD_TLS_FILES, CAUSES[code], message)


def refused_peer(code: str, message: str) -> TransportError:
    """TLS_FAILED for a peer whose certificate OpenSSL believes, and that is not who it should be."""
    return _caused(TLS_FAILED, CAUSES[code], message)


def tls_failure(peer: str, error: ssl.SSLError) -> TransportError:
    """TLS_FAILED, for what OpenSSL says of the session with `peer`."""
    cause = cause_of(error)
    return _caused(TLS_FAILED, cause, f"{peer}: {cause.meaning} ({details_of(error)})")


def broken(peer: str, error: Exception | None, *, handshake: bool = False) -> TransportError:
    """What a socket's or TLS's own error means; `handshake` while TLS is being agreed upon, when a peer that refuses
    our certificate may just hang up."""
    match error:
        case None:
            return TransportError(UNREACHABLE, "closed", f"{peer}: the connection is closed")
        case ssl.SSLError():
            return tls_failure(peer, error)
        case _ if handshake:
            cause = CAUSES["tls-broken-off"]
            return _caused(TLS_FAILED, cause, f"{peer}: {cause.meaning}")
        case _:
            return TransportError(UNREACHABLE, "broken", f"{peer}: {error or type(error).__name__}")


def _caused(kind: ErrorKind, cause: Cause, message: str) -> TransportError:
    return TransportError(kind, cause.code, message, hint=cause.hint)
