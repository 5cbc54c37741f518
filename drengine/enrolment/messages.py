"""What hosts and the authority say to each other, as JSON over HTTPS.

| what | who may ask | answer |
|---|---|---|
| `GET /v1/ca` | anybody: it is public | `CaAnswer` |
| `GET /v1/agent` | anybody | `AgentAnswer`: which one-file agent is handed out |
| `GET /agent` | anybody | that file itself |
| `POST /v1/enrol` with an `EnrolRequest` | whoever has a token | `IssuedAnswer` |
| `POST /v1/renew` with a `RenewRequest` | whoever proves a certificate that is valid | `IssuedAnswer` |
| `GET /v1/updates?have=VERSION` | the same; answered once there is something newer, or after a while | `Updates` |
| `GET /v1/identities?have=VERSION` | brokers; the same | `IdentitiesAnswer` |

Anything that is refused is a `Refusal`.

A certificate is proved by two headers: itself, and a signature of its key over what is asked and of whom
(`proof_of`). Not by TLS, because there a server's certificate may not be shown by a client, and servers renew too. As
the signature names the authority's own certificate, no other server can use it.
"""

from __future__ import annotations

import hashlib

import msgspec

from drengine.identity.names import Role

WAIT_SECONDS = 20.0
"""How long `updates` is held back while there is nothing new. Whoever asks must wait longer than that."""

CERTIFICATE_HEADER, PROOF_HEADER = "x-drengine-certificate", "x-drengine-proof"
"""In base64: a certificate in DER, and a signature."""


class EnrolRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`id` and `secret` are the token's, in hexadecimal; `csr` is PEM."""

    id: str
    secret: str
    name: str
    csr: str


class RenewRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`csr` is PEM."""

    csr: str


class CaAnswer(msgspec.Struct, frozen=True):
    """The CAs that parties trust, in PEM."""

    ca: str


class AgentAnswer(msgspec.Struct, frozen=True):
    """The one-file agent that is handed out: its version, SHA-256 in hexadecimal, and size."""

    version: str
    sha256: str
    size_bytes: int


class IssuedAnswer(msgspec.Struct, frozen=True):
    """A certificate, the CAs to trust and their CRLs, in PEM."""

    certificate: str
    ca: str
    crl: str


class Updates(msgspec.Struct, frozen=True):
    """The CAs to trust and their CRLs, in PEM."""

    ca: str
    crl: str

    @property
    def version(self) -> str:
        """Names this content."""
        return version_of(self.ca, self.crl)


class EnrolledParty(msgspec.Struct, frozen=True):
    """Somebody who has a certificate that is valid."""

    role: Role
    name: str


class IdentitiesAnswer(msgspec.Struct, frozen=True):
    """All of them."""

    site: str
    identities: tuple[EnrolledParty, ...]

    @property
    def version(self) -> str:
        """Names this content."""
        return version_of(self.site, *(f"{each.role}/{each.name}" for each in self.identities))


class Refusal(msgspec.Struct, frozen=True):
    """Why nothing is given: a key of `drengine.identity.errors.REASONS`, and what was seen."""

    reason: str
    message: str


def version_of(*texts: str) -> str:
    """Names what a party has, so that it is told only of something else."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def proof_of(method: str, target: str, body: bytes, server: bytes) -> bytes:
    """What is signed: a request, and the certificate (DER) of the authority that it is meant for."""
    parts = (b"drengine authority 1", method.encode(), target.encode(), body, server)
    return b"".join(hashlib.sha256(part).digest() for part in parts)
