"""Layer files: flat maps of a group of segments, mapped into memory; and which groups cover a branch's history.

File, little endian::

    header, 48 bytes: magic "DRENMAP1" | u32 version | u32 volumes | u64 file length | u64 xxh3-64 of the file's name
                      | u64 xxh3-64 of the volume table | u64 xxh3-64 of the header's first 40 bytes
    volume table, 24 bytes a volume: u32 volume | u32 zero | u64 rows | u64 xxh3-64 of its columns
    columns of each volume, each padded to 8 bytes: starts u64 | lengths u64 | segments u32 | records u32
                      | plain offsets u32
    in an encrypted store (version 2) 32 bytes: HMAC-SHA256, under a key of the store, of all before and the name

So a mapping takes 28 bytes. The name says which segments are covered; its checksum keeps a file from passing for
another.

Layers are derived: a missing or damaged one is made again. Groups are aligned: level k holds 16**k consecutive
segments, and segment numbers begin at 1, so level 1 holds 1-16, 17-32, ... The idea: LTX's compaction levels.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from drengine.model.errors import DrengineError
from drengine.store.blobs import Reader, Storage
from drengine.store.errors import DAMAGED, os_errors
from drengine.store.views.extentmap import FlatMap

FANOUT = 16
LEVEL_MAX = 3
MAGIC = b"DRENMAP1"
VERSION = 1
VERSION_WITH_TAG = 2
TAG_BYTES = 32
HEADER = struct.Struct("<8sIIQQQ")
"""Without its own checksum, which follows as CHECKSUM."""
CHECKSUM = struct.Struct("<Q")
VOLUME = struct.Struct("<IIQQ")
COLUMN_TYPES = tuple(map(np.dtype, ("<u8", "<u8", "<u4", "<u4", "<u4")))
TABLE_BYTES_MAX = 1 << 20
_READ_BYTES = 1 << 20


def cover(segment: int) -> list[tuple[int, int, int]]:
    """The groups that together hold segments 1 to `segment`: (level, first, last), oldest first."""
    groups: list[tuple[int, int, int]] = []
    done = 0
    for level in range(LEVEL_MAX, -1, -1):
        step = FANOUT**level
        while done + step <= segment:
            groups.append((level, done + 1, done + step))
            done += step
    return groups


def write_layer(storage: Storage, name: str, maps: Mapping[int, FlatMap], key: bytes = b"") -> None:
    """Store the maps of each volume under `name`, whole or not at all; with a tag where there is a key.

    Raises:
        DrengineError: STORE_FULL, STORE_IO, STORE_READ_ONLY.
    """
    table, body = b"", bytearray()
    for volume, flat in sorted(maps.items()):
        begin = len(body)
        for column, kind in zip(flat.columns, COLUMN_TYPES, strict=True):
            body += np.ascontiguousarray(column, dtype=kind).view(np.uint8).data
            body += bytes(-len(body) % 8)
        table += VOLUME.pack(volume, 0, len(flat), xxh3_64_intdigest(memoryview(body)[begin:]))
    length = HEADER.size + CHECKSUM.size + len(table) + len(body) + (TAG_BYTES if key else 0)
    name_check, table_check = xxh3_64_intdigest(name.encode()), xxh3_64_intdigest(table)
    header = HEADER.pack(MAGIC, VERSION_WITH_TAG if key else VERSION, len(maps), length, name_check, table_check)
    data = header + CHECKSUM.pack(xxh3_64_intdigest(header)) + table + body
    if key:
        data += hmac.digest(key, data + name.encode(), "sha256")
    with os_errors(f"writing {name}"):
        storage.put(name, data)


def open_layer(storage: Storage, name: str, key: bytes = b"") -> dict[int, FlatMap]:
    """The maps of a layer file; every byte is checked before any is used, also the tag where there is a key.

    Raises:
        FileNotFoundError: there is none.
        DrengineError: DAMAGED, also when the disk cannot read it: make it again.
    """
    try:
        reader = storage.open(name)
        try:
            places = _check(reader, name, key)
            data = reader.map()
        finally:
            reader.close()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DrengineError(DAMAGED, f"{name} cannot be read: {error}") from error
    maps = {}
    for place in places:
        columns, at = [], place.offset
        for kind in COLUMN_TYPES:
            columns.append(np.frombuffer(data, dtype=kind, count=place.rows, offset=at))
            at += _padded_length(place.rows, kind)
        maps[place.volume] = FlatMap(*columns)
    return maps


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the columns of a volume are in the file, in bytes."""

    volume: int
    rows: int
    offset: int


def _check(reader: Reader, name: str, key: bytes) -> list[_Place]:
    """Where the columns are, once the whole file has passed its checks.

    It is read rather than touched through the mapping, where a bad sector would kill the process.
    """
    header = reader.read_at(0, HEADER.size + CHECKSUM.size)
    if len(header) < HEADER.size + CHECKSUM.size:
        raise DrengineError(DAMAGED, f"{name} is cut short")
    magic, version, count, length, name_check, table_check = HEADER.unpack_from(header)
    (check,) = CHECKSUM.unpack_from(header, HEADER.size)
    if magic != MAGIC or check != xxh3_64_intdigest(header[: HEADER.size]):
        raise DrengineError(DAMAGED, f"{name} has a damaged header")
    if version != (VERSION_WITH_TAG if key else VERSION) or name_check != xxh3_64_intdigest(name.encode()):
        raise DrengineError(DAMAGED, f"{name} is of version {version} or was made under another name")
    if length != reader.size() or count * VOLUME.size > TABLE_BYTES_MAX:
        raise DrengineError(DAMAGED, f"{name} is not as long as it should be")
    table = reader.read_at(len(header), count * VOLUME.size)
    if len(table) != count * VOLUME.size or xxh3_64_intdigest(table) != table_check:
        raise DrengineError(DAMAGED, f"{name} has a damaged volume table")
    places, at = [], len(header) + len(table)
    for volume, _, rows, columns_check in VOLUME.iter_unpack(table):
        size = sum(_padded_length(rows, kind) for kind in COLUMN_TYPES)
        if at + size > length or _checksum(reader, at, size) != columns_check:
            raise DrengineError(DAMAGED, f"{name} has damaged columns for volume {volume}")
        places.append(_Place(volume, rows, at))
        at += size
    if key and not _is_tagged(reader, name, at, key):
        raise DrengineError(DAMAGED, f"{name} was not written by somebody with the key")
    if at + (TAG_BYTES if key else 0) != length:
        raise DrengineError(DAMAGED, f"{name} has bytes that belong to no volume")
    return places


def _is_tagged(reader: Reader, name: str, length: int, key: bytes) -> bool:
    state = hmac.new(key, digestmod="sha256")
    for at in range(0, length, _READ_BYTES):
        state.update(reader.read_at(at, min(_READ_BYTES, length - at)))
    state.update(name.encode())
    return hmac.compare_digest(state.digest(), reader.read_at(length, TAG_BYTES))


def _checksum(reader: Reader, offset: int, length: int) -> int:
    state = xxh3_64()
    for at in range(offset, offset + length, _READ_BYTES):
        state.update(reader.read_at(at, min(_READ_BYTES, offset + length - at)))
    return state.intdigest()


def _padded_length(rows: int, kind: np.dtype[np.generic]) -> int:
    return (rows * kind.itemsize + 7) // 8 * 8
