"""Tokens let a host join: short-lived secrets, bound to a role and a pattern of names.

What is printed holds all that a host needs: where the authority is, which CA it must have (the pin), and the secret.
The CA keeps only the secret's hash, which says enough as the secret is 160 random bits.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import secrets
import zlib
from dataclasses import dataclass

import msgspec

from drengine.config import ADDRESS, Address
from drengine.identity.errors import EnrolmentError
from drengine.identity.names import Role

PREFIX = "drt1."
ID_BYTES, SECRET_BYTES, PIN_BYTES, CHECK_BYTES = 6, 20, 32, 4
TEXT_CHARS_MAX = 600


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token as the CA remembers it.

    Attributes:
        id: its public part, in hexadecimal.
        digest: SHA-256 of the secret, in hexadecimal.
        role: what who comes with it becomes.
        name: pattern of the names that it may take: `*`, `?` and `[...]` as in a shell.
        hosts: what certificates got with it are valid for: a server's addresses.
        both_ways: as for certificates.
        begins_at, ends_at: seconds since 1970 between which it counts.
        uses, used: how many certificates it may get, and has got.
        replace: it may take a name that a valid certificate has, which is then revoked.
        revoked_at: when it was revoked; None when it was not.
    """

    id: str
    digest: str
    role: Role
    name: str
    hosts: tuple[str, ...]
    both_ways: bool
    begins_at: int
    ends_at: int
    uses: int
    used: int = 0
    replace: bool = False
    revoked_at: int | None = None

    def state(self, now: float) -> str:
        """`valid`, `expired`, `used` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        if now >= self.ends_at:
            return "expired"
        return "used" if self.used >= self.uses else "valid"

    def is_opened_by(self, secret: bytes) -> bool:
        """Whether this is its secret; takes the same time whatever is wrong with it."""
        return hmac.compare_digest(digest_of(secret), self.digest)

    def admits(self, name: str) -> bool:
        """Whether it may take this name."""
        return fnmatch.fnmatchcase(name, self.name)


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a printed token says.

    Attributes:
        authority: where `drengine ca serve` answers.
        pin: SHA-256 of the CA's certificate (DER).
        id, secret: the token's two parts.
    """

    authority: Address
    pin: bytes
    id: str
    secret: bytes

    def __str__(self) -> str:
        body = bytes.fromhex(self.id) + self.secret + self.pin + str(self.authority).encode()
        check = zlib.crc32(body).to_bytes(CHECK_BYTES, "big")
        return PREFIX + base64.urlsafe_b64encode(body + check).decode().rstrip("=")

    @staticmethod
    def parse(text: str) -> Invitation:
        """Read what was printed.

        Raises:
            EnrolmentError: token-malformed.
        """
        text = text.strip()
        if not text.startswith(PREFIX) or len(text) > TEXT_CHARS_MAX:
            raise EnrolmentError("token-malformed", f"a token begins with {PREFIX}")
        try:
            coded = text.removeprefix(PREFIX).encode("ascii")
            content = base64.b64decode(coded + b"=" * (-len(coded) % 4), altchars=b"-_", validate=True)
            body, check = content[:-CHECK_BYTES], content[-CHECK_BYTES:]
            if zlib.crc32(body).to_bytes(CHECK_BYTES, "big") != check:
                raise EnrolmentError("token-malformed", "its checksum is wrong")
            id_, secret, pin, address = _cut(body, ID_BYTES, SECRET_BYTES, PIN_BYTES)
            return Invitation(_place(address.decode()), pin, id_.hex(), secret)
        except (ValueError, binascii.Error) as error:
            raise EnrolmentError("token-malformed", str(error)) from error


def new_secret() -> tuple[str, bytes]:
    """A token's id and secret."""
    return secrets.token_hex(ID_BYTES), secrets.token_bytes(SECRET_BYTES)


def digest_of(secret: bytes) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret).hexdigest()


def _place(text: str) -> Address:
    address = ADDRESS.parse(text)
    if not address.host:
        raise ValueError(f"{text[:80]!r} is no HOST:PORT")
    return address


def _cut(body: bytes, *sizes: int) -> tuple[bytes, ...]:
    parts = []
    for size in sizes:
        parts.append(body[:size])
        body = body[size:]
    return (*parts, body)
