"""A disk's partition table, read from its own bytes: GPT, or MBR with logical partitions.

The kernel tells numbers and places of partitions, but not their types; of a file it tells nothing. The bytes may be
anything: entries that can't be are left out, and how many are looked at is bounded.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

GPT, MBR = "gpt", "dos"
ENTRIES_MAX: Final = 256
LOGICAL_MAX: Final = 60
"""As many logical partitions as Linux shows."""
_ENTRY_BYTES_MAX = 4096
_EXTENDED = frozenset({0x05, 0x0F, 0x85})

Read = Callable[[int, int], bytes]
"""So many bytes at an offset; fewer at the end, or where they can't be read."""


class Entry(NamedTuple):
    """A partition. `type` is its GUID, or its two hexadecimal digits; `uuid` as in PARTUUID."""

    number: int
    offset_bytes: int
    size_bytes: int
    type: str
    uuid: str


class Partitions(NamedTuple):
    """A table: GPT, MBR, or an empty word where there is none."""

    table: str = ""
    entries: tuple[Entry, ...] = ()


def read_partitions(read: Read, sector_bytes: int = 512) -> Partitions:
    """The table of a disk, whose logical sectors are so large; those of other sizes are tried as well."""
    first = read(0, 512)
    if first[510:512] != b"\x55\xaa":
        return Partitions()
    for sector in dict.fromkeys((sector_bytes, 512, 4096)):
        header = read(sector, 92)
        if header[:8] == b"EFI PART":
            return Partitions(GPT, tuple(_gpt(read, header, sector)))
    return _mbr(read, first, sector_bytes)


def _number(data: bytes, begin: int, length: int) -> int:
    return int.from_bytes(data[begin : begin + length], "little")


def _gpt(read: Read, header: bytes, sector: int) -> list[Entry]:
    at, count, size = _number(header, 72, 8) * sector, _number(header, 80, 4), _number(header, 84, 4)
    if not 128 <= size <= _ENTRY_BYTES_MAX or at > 1 << 62:
        return []
    count = min(count, ENTRIES_MAX)
    table, found = read(at, count * size), []
    for number in range(1, len(table) // size + 1):
        row = table[(number - 1) * size : number * size]
        first, last = _number(row, 32, 8), _number(row, 40, 8)
        if any(row[:16]) and first <= last < 1 << 54:
            kind, own = (str(uuid.UUID(bytes_le=row[begin : begin + 16])) for begin in (0, 16))
            found.append(Entry(number, first * sector, (last - first + 1) * sector, kind, own))
    return found


class _Row(NamedTuple):
    kind: int
    first: int
    sectors: int


def _rows(sector: bytes) -> list[_Row]:
    """The four rows of a boot record; none where that is something else."""
    if sector[510:512] != b"\x55\xaa" or any(sector[446 + 16 * n] & 0x7F for n in range(4)):
        return []
    at = range(446, 510, 16)
    return [_Row(sector[begin + 4], _number(sector, begin + 8, 4), _number(sector, begin + 12, 4)) for begin in at]


def _mbr(read: Read, first: bytes, sector: int) -> Partitions:
    signature = f"{_number(first, 440, 4):08x}"
    found: list[Entry] = []

    def add(number: int, row: _Row, base: int) -> None:
        begin, size = (base + row.first) * sector, row.sectors * sector
        found.append(Entry(number, begin, size, f"{row.kind:02x}", f"{signature}-{number:02x}"))

    extended = 0
    for number, row in enumerate(_rows(first), start=1):
        if row.kind and row.sectors and row.first:
            add(number, row, 0)
            extended = extended or (row.first if row.kind in _EXTENDED else 0)
    base, number = extended, 5
    while extended and base and number < 5 + LOGICAL_MAX:
        rows = _rows(read(base * sector, 512))
        logical = next((row for row in rows if row.kind and row.kind not in _EXTENDED and row.sectors), None)
        if logical:
            add(number, logical, base)
            number += 1
        following = next((row for row in rows if row.kind in _EXTENDED and row.sectors), None)
        base = extended + following.first if following and extended + following.first > base else 0
    return Partitions(MBR, tuple(found)) if found else Partitions()
