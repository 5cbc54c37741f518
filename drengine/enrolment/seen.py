"""What the authority's service leaves in the CA's directory for commands: where it is, and when each party was heard.

It is information for people. Nothing is granted by it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from drengine.config import Address
from drengine.durable import replace_durably

SEEN_FILE, ADDRESS_FILE = "seen.json", "address.json"


class Seen(msgspec.Struct, frozen=True):
    """The last time.

    Attributes:
        at: seconds since 1970.
        address: from which.
        serial: of the certificate that was shown, in hexadecimal.
        has: version of the CAs and CRLs that it had; see `messages.version_of`.
    """

    at: int
    address: str
    serial: str
    has: str = ""


def read_seen(folder: Path) -> dict[str, Seen]:
    """By identity, from a CA's directory; empty where nothing can be read."""
    try:
        return msgspec.json.decode((folder / SEEN_FILE).read_bytes(), type=dict[str, Seen])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def write_seen(folder: Path, seen: dict[str, Seen]) -> None:
    """Replace it.

    Raises:
        OSError: it could not be made durable.
    """
    replace_durably(folder / SEEN_FILE, msgspec.json.encode(seen), mode=0o600)


def remember_address(folder: Path, address: Address) -> None:
    """Here hosts find us.

    Raises:
        OSError: it could not be made durable.
    """
    replace_durably(folder / ADDRESS_FILE, msgspec.json.encode(str(address)), mode=0o600)


def remembered_address(folder: Path) -> str:
    """Where the authority was served last, as HOST:PORT; empty when it never was."""
    try:
        return msgspec.json.decode((folder / ADDRESS_FILE).read_bytes(), type=str)
    except (OSError, msgspec.DecodeError):
        return ""
