"""Whether a peer is who this connection needs, by what its certificate says, which OpenSSL has verified before.

A certificate that names an identity is held to it, whoever has it. One without a name is judged by the configuration.
Without TLS there is nothing to judge: plain connections are allowed or not by address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drengine.identity.names import Identity, Role, identity_among
from drengine.model.errors import DrengineError
from drengine.transport.causes import CAUSES
from drengine.transport.errors import TransportError, refused_peer
from drengine.transport.x509 import Certificate, parse_certificate


@dataclass(frozen=True, slots=True)
class PeerRules:
    """What is asked of peers.

    Attributes:
        own: who we are; peers with an identity are of the same site. None: that is not asked.
        is_revoked: whether a certificate (DER) was revoked, perhaps since its handshake.
        is_required: a peer must have an identity.
        by_common_name: the common name names the source where a certificate has no identity.
    """

    own: Callable[[], Identity | None] = lambda: None
    is_revoked: Callable[[bytes], bool] = lambda der: False
    is_required: bool = False
    by_common_name: bool = False

    def agent_of(self, der: bytes | None) -> str:
        """Name of the agent that the peer has proved to be; empty: it has proved nothing, and that is allowed.

        Raises:
            TransportError: TLS_FAILED, naming what was seen.
        """
        if der is None:
            return ""
        certificate, identity = _read(der)
        self.require_unrevoked(der)
        if identity is None and self.by_common_name:
            return certificate.subject
        return identity.name if self._holds(certificate, identity, Role.AGENT) and identity else ""

    def identify(self, der: bytes) -> Identity | None:
        """Who a peer is, of whatever role; None when its certificate has no name.

        Raises:
            TransportError: TLS_FAILED: it is revoked, of another site, or its name can't be read.
        """
        _, identity = _read(der)
        self.require_unrevoked(der)
        if identity is not None:
            self._require_site(identity)
        return identity

    def require_unrevoked(self, der: bytes | None) -> None:
        """A session's peer must not have been revoked since it came.

        Raises:
            TransportError: TLS_FAILED, naming what was seen.
        """
        if der is not None and self.is_revoked(der):
            certificate = parse_certificate(der)
            seen = ", ".join(certificate.uris) or f"common name {certificate.subject[:80]!r}"
            raise _refused("tls-peer-revoked", f"{seen}, serial {certificate.serial:x}")

    def require_target(self, der: bytes | None) -> bool:
        """Only a target takes in what is shipped; whether the peer has proved to be one.

        Raises:
            TransportError: TLS_FAILED, naming what was seen.
        """
        return der is not None and self._holds(*_read(der), Role.TARGET)

    def require_broker(self, der: bytes | None) -> None:
        """Only a broker carries control messages.

        Raises:
            TransportError: TLS_FAILED, naming what was seen.
        """
        if der is not None:
            self._holds(*_read(der), Role.BROKER)

    def _holds(self, certificate: Certificate, identity: Identity | None, role: Role) -> bool:
        """Whether the peer has an identity; then it is of this role, and of our site."""
        if identity is None:
            if self.is_required:
                raise _refused("identity-missing", f"common name {certificate.subject[:80]!r}")
            return False
        if identity.role is not role:
            raise _refused("identity-role", f"{identity}, where {role} is needed")
        self._require_site(identity)
        return True

    def _require_site(self, identity: Identity) -> None:
        own = self.own()
        if own is not None and own.site != identity.site:
            raise _refused("identity-site", f"{identity}, and we are {own}")


def shown_certificate(der: bytes | None) -> str:
    """What a certificate says of whoever shows it, for people; empty without one."""
    if not der:
        return ""
    try:
        certificate = parse_certificate(der)
    except ValueError:
        return "a certificate that can't be read"
    return ", ".join(certificate.uris)[:200] or f"common name {certificate.subject[:80]!r}"


def refused_source(der: bytes | None, source: str) -> TransportError:
    """TLS_FAILED: this agent does not speak for that source."""
    return _refused("identity-source", f"{shown_certificate(der)}, source {source!r}")


def refused_role(identity: Identity, why: str) -> TransportError:
    """TLS_FAILED: a party of this role has no business here."""
    return _refused("identity-role", f"{identity} {why}")


def _read(der: bytes) -> tuple[Certificate, Identity | None]:
    try:
        certificate = parse_certificate(der)
        return certificate, identity_among(certificate.uris)
    except DrengineError as error:
        raise _refused("identity-malformed", error.message) from error
    except ValueError as error:
        raise _refused("identity-malformed", str(error)) from error


def _refused(code: str, seen: str) -> TransportError:
    return refused_peer(code, f"{CAUSES[code].meaning}: {seen}")
