"""Layer files: flat maps of a group of segments, mapped into memory; and which groups cover a branch's history.

File, little endian::

    header, 40 bytes: magic "DRENMAP1" | u32 version | u32 volumes | u64 file length | u64 xxh3-64 of the volume table
                      | u64 xxh3-64 of the header's first 32 bytes
    volume table, 24 bytes a volume: u32 volume | u32 zero | u64 rows | u64 xxh3-64 of its columns
    columns of each volume, each padded to 8 bytes:
                      starts u64 | lengths u64 | segments u32 | records u32 | plain offsets u32

Layers are derived: a missing or damaged one is made again. Groups are aligned: level k holds 16**k consecutive
segments, and segment numbers begin at 1, so level 1 holds 1-16, 17-32, ... Source of the
idea: the compaction levels of LTX files.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
from xxhash import xxh3_64_intdigest

from drengine.model.errors import DrengineError
from drengine.store.blobs import Storage
from drengine.store.errors import DAMAGED
from drengine.store.extentmap import FlatMap

FANOUT = 16
LEVEL_MAX = 3
MAGIC = b"DRENMAP1"
VERSION = 1
HEADER = struct.Struct("<8sIIQQQ")
VOLUME = struct.Struct("<IIQQ")
COLUMN_TYPES = ("<u8", "<u8", "<u4", "<u4", "<u4")
ROW_BYTES = sum(np.dtype(kind).itemsize for kind in COLUMN_TYPES)


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


def write_layer(storage: Storage, name: str, maps: Mapping[int, FlatMap]) -> None:
    """Store the maps of each volume under `name`, whole or not at all."""
    table, body = b"", b""
    parts: list[bytes] = []
    for volume, flat in sorted(maps.items()):
        columns = b"".join(
            _padded(np.ascontiguousarray(getattr(flat, column.name), dtype=kind).tobytes())
            for column, kind in zip(fields(FlatMap), COLUMN_TYPES, strict=True)
        )
        table += VOLUME.pack(volume, 0, len(flat), xxh3_64_intdigest(columns))
        parts.append(columns)
    body = b"".join(parts)
    length = HEADER.size + len(table) + len(body)
    fixed = HEADER.pack(MAGIC, VERSION, len(maps), length, xxh3_64_intdigest(table), 0)[:32]
    storage.put(name, fixed + struct.pack("<Q", xxh3_64_intdigest(fixed)) + table + body)


def open_layer(storage: Storage, name: str) -> dict[int, FlatMap]:
    """The maps of a layer file; every byte's check is verified before any is used.

    Raises:
        FileNotFoundError: there is none.
        DrengineError: DAMAGED.
    """
    reader = storage.open(name)
    try:
        data = memoryview(reader.map())
    finally:
        reader.close()
    if len(data) < HEADER.size:
        raise DrengineError(DAMAGED, f"{name} is cut short")
    magic, version, count, length, table_check, check = HEADER.unpack_from(data)
    if magic != MAGIC or check != xxh3_64_intdigest(data[:32]) or length != len(data):
        raise DrengineError(DAMAGED, f"{name} has a damaged header or length")
    if version != VERSION:
        raise DrengineError(DAMAGED, f"{name} has version {version}, not {VERSION}")
    at = HEADER.size + count * VOLUME.size
    table = data[HEADER.size : at]
    if len(table) != count * VOLUME.size or xxh3_64_intdigest(table) != table_check:
        raise DrengineError(DAMAGED, f"{name} has a damaged volume table")
    maps: dict[int, FlatMap] = {}
    for volume, _, rows, columns_check in VOLUME.iter_unpack(table):
        sizes = [_padded_length(rows * np.dtype(kind).itemsize) for kind in COLUMN_TYPES]
        columns = data[at : at + sum(sizes)]
        if len(columns) != sum(sizes) or xxh3_64_intdigest(columns) != columns_check:
            raise DrengineError(DAMAGED, f"{name} has damaged columns for volume {volume}")
        arrays = []
        for kind, size in zip(COLUMN_TYPES, sizes, strict=True):
            arrays.append(np.frombuffer(data, dtype=kind, count=rows, offset=at))
            at += size
        maps[volume] = FlatMap(*arrays)
    return maps


def _padded_length(length: int) -> int:
    return (length + 7) // 8 * 8


def _padded(data: bytes) -> bytes:
    return data.ljust(_padded_length(len(data)), b"\0")
