"""What a CA remembers: which certificates it issued, until when, which it revoked, and which tokens let parties join.

One file, replaced whole, so that a certificate and the use of the token that got it are remembered together or not.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from drengine.durable import replace_durably
from drengine.identity.errors import CA_UNUSABLE
from drengine.identity.tokens import Token
from drengine.model.errors import DrengineError

VERSION = 2
_READABLE = (1, 2)
"""Version 1 had one CA and no tokens."""
INDEX_FILE = "index.json"
FIRST_KEY_FILE = "ca.key"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate that was issued.

    Attributes:
        serial: in hexadecimal; no two certificates of a CA share one.
        identity: whose it is.
        hosts: DNS names and IP addresses that it is valid for.
        both_ways: it may be used as a server's and as a client's.
        begins_at, ends_at: seconds since 1970 between which it is valid.
        revoked_at: when it was revoked; None when it was not.
        issuer: file of the CA that signed it.
        key: SHA-256 of the public key, in hexadecimal; empty where nobody noted it.
        token: id of the token that it was got with; empty without one.
    """

    serial: str
    identity: str
    hosts: tuple[str, ...]
    both_ways: bool
    begins_at: int
    ends_at: int
    revoked_at: int | None = None
    issuer: str = FIRST_KEY_FILE
    key: str = ""
    token: str = ""

    def state(self, now: float) -> str:
        """`valid`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if now < self.ends_at else "expired"


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it.

    Attributes:
        version: of this form.
        site: for which the CA issues.
        crl_number: of the newest CRL.
        entries: oldest first.
        issuing: file of the CA that signs certificates.
        trusted: files of the CAs that parties believe; more than one while one replaces another.
        tokens: oldest first.
    """

    version: int
    site: str
    crl_number: int
    entries: tuple[Entry, ...]
    issuing: str = FIRST_KEY_FILE
    trusted: tuple[str, ...] = (FIRST_KEY_FILE,)
    tokens: tuple[Token, ...] = ()


def read_index(folder: Path) -> Index:
    """The record in a CA's directory.

    Raises:
        DrengineError: CA_UNUSABLE. One that is lost is never taken for an empty one: revoked certificates would be
            valid again with the next CRL.
    """
    path = folder / INDEX_FILE
    try:
        index = msgspec.json.decode(path.read_bytes(), type=Index)
    except OSError as error:
        raise DrengineError(CA_UNUSABLE, f"{path}: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DrengineError(CA_UNUSABLE, f"{path} is damaged: {error}") from error
    if index.version not in _READABLE:
        raise DrengineError(CA_UNUSABLE, f"{path} has version {index.version}, and this program knows {VERSION}")
    return msgspec.structs.replace(index, version=VERSION)


def write_index(folder: Path, index: Index) -> None:
    """Make it durable: old or new after any crash.

    Raises:
        OSError: it could not be made durable.
    """
    content = msgspec.json.format(msgspec.json.encode(index), indent=1)
    replace_durably(folder / INDEX_FILE, content, mode=0o600)
