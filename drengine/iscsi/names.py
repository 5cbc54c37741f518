"""Names and numbers by which initiators know targets and disks.

Each LUN has identifiers of its own, made from the instance: tgt's are the same on every host, and an initiator that
runs multipath takes two disks of one identifier for two ways to the same disk.
"""

from __future__ import annotations

import hashlib
import re

AUTHORITY = "iqn.2026-11.net.drengine"
_NAME = re.compile(r"iqn\.\d{4}-\d{2}\.[a-z0-9][a-z0-9.-]*(:[a-z0-9.:-]+)?|(eui\.[0-9A-F]{16})|(naa\.[0-9A-F]{16,32})")
_NAME_CHARACTERS_MAX = 223
_USER = re.compile(r"[A-Za-z0-9_.:@-]{1,200}", re.ASCII)
_SECRET = re.compile(r"[!-~]{12,200}", re.ASCII)


def check_iscsi_name(text: str) -> str:
    """A name of a target or an initiator (RFC 3720, 3.2.6).

    Raises:
        ValueError: it is none.
    """
    if len(text) > _NAME_CHARACTERS_MAX or not _NAME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no iSCSI name, such as {AUTHORITY}:shop")
    return text


def target_name(source: str, *, drill: bool) -> str:
    """What a source's target is called unless somebody says otherwise: the same at each failover."""
    fit = re.sub(r"[^a-z0-9.-]", "-", source)
    return f"{AUTHORITY}:{fit}{':drill' if drill else ''}"


def check_account(user: str, secret: str) -> None:
    """Credentials for CHAP (RFC 3720, 8.2.1): a secret of at least 96 bits, which tgt and iPXE both can hold.

    Raises:
        ValueError: they can't be used. The secret is not in its text.
    """
    if not _USER.fullmatch(user):
        raise ValueError(f"{user[:80]!r} is no user for CHAP: letters, digits and _ . : @ - are possible")
    if not _SECRET.fullmatch(secret):
        raise ValueError(f"the secret of {user} must have 12 to 200 printable characters and no space")


def target_number(instance: str) -> int:
    """tgt makes identifiers from it as well, so it is the instance's own; 28 bits, not 0."""
    return int.from_bytes(_digest(instance)[:4], "big") >> 4 or 1


def disk_identifier(instance: str, volume: str) -> str:
    """32 hexadecimal digits, of which tgt makes an NAA identifier of type 6."""
    return f"6{_digest(f'{instance}/{volume}').hex()[:31]}"


def disk_serial(instance: str, volume: str) -> str:
    """16 hexadecimal digits."""
    return _digest(f"{instance}/{volume}").hex()[:16]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
