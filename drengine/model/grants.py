"""Grants as values: who may do what with a branch, a point, or a source's way home (drengine/store/log/grants.py)."""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from dataclasses import dataclass

SECRET_MARK = "~"
"""Between an export's name and the capability that a client shows, 32 to 64 hexadecimal digits."""
_SHOWN_SECRET = re.compile(rf"(?<={SECRET_MARK})[0-9a-f]{{32,64}}")


class Access(enum.StrEnum):
    """What a grant allows."""

    READ = "read"
    """Read a point, or a branch as it is."""
    WRITE = "write"
    """Read and write a branch."""
    PRESERVE = "preserve"
    """Ship what the source holds beyond the replica onto a divergent branch."""
    REVERSE = "reverse"
    """Read any point of the source's history, to make its disks equal to it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A living grant.

    Attributes:
        id: names it; the same whenever the same is given.
        source, branch: what it is for.
        sequence: with `branch`, a point; 0: the branch itself.
        access: what it allows.
        holder: ``ROLE/NAME`` of the party that may use it; empty: whoever shows the secret.
        instance: the workload or run that it was given for.
        expires_ns: when its time is over; 0: it has no end of its own.
    """

    id: str
    source: str
    branch: int
    sequence: int
    access: Access
    holder: str
    instance: str
    expires_ns: int
    issued_ns: int
    secret_digest: bytes = b""

    def is_opened_by(self, secret: str) -> bool:
        """Whether this secret is its own; in a time that says nothing about it."""
        return bool(self.secret_digest) and hmac.compare_digest(self.secret_digest, secret_digest(secret))


def secret_digest(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def without_secret(text: str) -> str:
    """A text in which exports are named, with their capabilities left out."""
    return _SHOWN_SECRET.sub("***", text)
