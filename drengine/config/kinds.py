"""Kinds of values: how each is written by a person and what it becomes."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_SIZE = re.compile(r"(\d{1,19})(?:\.(\d{1,9}))?\s*([KkMGT]i?)?B?", re.ASCII)
_FACTORS = {"": 1, "k": 1000, "K": 1000, "ki": 1 << 10, "Ki": 1 << 10, "M": 1000**2, "Mi": 1 << 20}
_FACTORS |= {"G": 1000**3, "Gi": 1 << 30, "T": 1000**4, "Ti": 1 << 40}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|h|d|w)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_HOST_PORT = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]/\s]+)):(\d{1,5})", re.ASCII)
UNIX_PATH_BYTES_MAX = 107
COUNT_MAX = (1 << 63) - 1


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind of value.

    Attributes:
        name: shown in the reference.
        parse: from what TOML holds; raises ValueError saying what is wrong.
        show: back to what a person writes.
    """

    name: str
    parse: Callable[[Any], T]
    show: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect: a host and port, or a unix socket's path."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def joined(addresses: Iterable[Address]) -> str:
    """Addresses as a person writes them where there is room for one text."""
    return ", ".join(map(str, addresses))


def parse_size(text: str) -> int:
    """``64MiB``, ``1.5 GiB``, ``4096``, ``10GB``: bytes; KiB, MiB... are powers of 1024, kB, MB... of 1000.

    Raises:
        ValueError: it is none, not a whole number of bytes, or beyond COUNT_MAX.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text[:40]!r} is no size; write for example 256MiB")
    fraction = match[2] or ""
    count, part = divmod(int(match[1] + fraction) * _FACTORS[match[3] or ""], int("1" + "0" * len(fraction)))
    if part or count > COUNT_MAX:
        what = "too large" if count > COUNT_MAX else "not a whole number of bytes"
        raise ValueError(f"{text[:40]!r} is {what}; write for example 256MiB")
    return count


def parse_duration(text: str) -> float:
    """``250ms``, ``5s``, ``10m``, ``1h``, ``7d``: seconds.

    Raises:
        ValueError: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text[:40]!r} is no duration; write for example 500ms, 5s, 10m, 1h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def show_size(count: float) -> str:
    """The shortest exact way to write a size."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if count and count % _FACTORS[unit] == 0:
            return f"{int(count) // _FACTORS[unit]}{unit}B"
    return str(int(count))


def show_duration(seconds: float) -> str:
    """The shortest exact way to write a duration."""
    for unit in ("d", "h", "m", "s"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds / _SECONDS[unit])}{unit}"
    return f"{seconds * 1000:g}ms"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 1024:
        raise ValueError("a printable text of at most 1024 characters is needed")
    return value


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a table is needed")  # noqa: TRY004
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is needed")  # noqa: TRY004 (one type for all that a person wrote wrong)
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= COUNT_MAX:
        raise ValueError(f"a whole number from 0 to {COUNT_MAX} is needed")
    return value


def _size(value: Any) -> int:
    return _count(value) if isinstance(value, int) else parse_size(_text(value))


def _duration(value: Any) -> float:
    return parse_duration(_text(value))


def _rate(value: Any) -> int:
    text = _text(value)
    if not text.endswith("/s"):
        raise ValueError(f"{text[:40]!r} is no rate; write for example 20MiB/s")
    return parse_size(text.removesuffix("/s"))


def _path(value: Any) -> Path:
    text = _text(value)
    if not text:
        raise ValueError("a path is needed")
    return Path(text)


def _address(value: Any) -> Address:
    text = _text(value)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not 0 < len(path.encode()) <= UNIX_PATH_BYTES_MAX:
            raise ValueError(f"a unix socket's path has 1 to {UNIX_PATH_BYTES_MAX} bytes")
        return Address(path=path)
    match = _HOST_PORT.fullmatch(text)
    if not match or int(match[3]) > 65535:
        raise ValueError(f"{text[:60]!r} is no address; write HOST:PORT, [IPV6]:PORT or unix:PATH")
    return Address(host=match[1] or match[2], port=int(match[3]))


def _addresses(value: Any) -> tuple[Address, ...]:
    texts = value if isinstance(value, list) else [each.strip() for each in _text(value).split(",")]
    found = tuple(map(_address, texts))
    if len(set(found)) < len(found):
        raise ValueError("an address is named twice")
    return found


def _show_addresses(addresses: tuple[Address, ...]) -> str:
    return _quoted(addresses[0]) if len(addresses) == 1 else f"[{', '.join(map(_quoted, addresses))}]"


def _networks(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("a list of networks is needed, for example ['10.1.0.0/16']")  # noqa: TRY004
    return tuple(str(ipaddress.ip_network(_text(each))) for each in value)


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError('a list of texts is needed: ["program", "argument"]')
    return tuple(value)


def _quoted(value: Any) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


TEXT = Kind("text", _text, _quoted)
FLAG = Kind("true or false", _flag, lambda value: "true" if value else "false")
TABLE: Kind[Mapping[str, Any]] = Kind("table", _table, lambda value: "{}")
COUNT = Kind("number", _count, str)
SIZE = Kind("size", _size, lambda value: _quoted(show_size(value)))
DURATION = Kind("duration", _duration, lambda value: _quoted(show_duration(value)))
RATE = Kind("rate", _rate, lambda value: _quoted(show_size(value) + "/s"))
PATH = Kind("path", _path, _quoted)
ADDRESS = Kind("address", _address, _quoted)
ADDRESSES = Kind("address, or list of addresses", _addresses, _show_addresses)
NETWORKS = Kind("list of networks", _networks, lambda value: "[" + ", ".join(map(_quoted, value)) + "]")

WORDS = Kind("list of texts", _words, lambda value: "[" + ", ".join(map(_quoted, value)) + "]")


def choice(*names: str) -> Kind[str]:
    """One of a few words."""

    def parse(value: Any) -> str:
        if value not in names:
            raise ValueError(f"one of {', '.join(names)} is needed")
        return str(value)

    return Kind(" or ".join(f"`{name}`" for name in names), parse, _quoted)
