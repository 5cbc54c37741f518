"""Payloads: hashing, encoding, bounded decoding, verification. Pure functions over bytes; safe in any thread.

Decoding trusts nothing: the frame must state its content size, it must equal what the batch claims, the window is
capped, and exactly one frame must fill the payload. Only then is memory taken. Source of the frame format: RFC 8878.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator
from typing import NoReturn

import zstandard
from xxhash import xxh3_128_digest

from drengine.model.errors import DrengineError, error_kind
from drengine.model.extents import (
    BATCH_PLAIN_BYTES_MAX,
    BLOCK_BYTES,
    Batch,
    Codec,
    Extent,
    ExtentKind,
    block_ranges,
    iter_table,
    pack_table,
)

BAD_PAYLOAD = error_kind(
    "bad-payload",
    15,
    "A payload does not decode to what its batch claims, or a block's hash differs.",
    "Data was damaged on the way, in memory or by the compressor; it was refused and will be sent again.",
    retryable=True,
)

PAYLOAD_BYTES_MAX = BATCH_PLAIN_BYTES_MAX
"""An encoded payload is never longer than its plain form: data that does not shrink is sent raw."""

WINDOW_BYTES_MAX = 8 << 20
RAW_ABOVE = 0.95
"""Compression must save at least this share's complement, or the payload goes raw."""

_CLAIM = struct.Struct("<4xB11xQ16s")
"""A row of an extent table as far as verification needs it: kind, length, digest."""

_ZERO_BLOCK = bytes(BLOCK_BYTES)
_thread = threading.local()


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """xxh3-128 (canonical, 16 bytes) of plain bytes."""
    return xxh3_128_digest(data)


def encode_payload(plain: bytes | bytearray | memoryview, level: int | None) -> tuple[Codec, bytes | memoryview]:
    """Encode plain bytes at a zstd level, or raw when `level` is None or compression does not pay.

    A raw result is a view of `plain` itself: the caller must not change it before it is sent.
    """
    if level is None or not len(plain):
        return Codec.RAW, memoryview(plain)
    packed = _compressor(level).compress(plain)
    if len(packed) >= len(plain) * RAW_ABOVE:
        return Codec.RAW, memoryview(plain)
    return Codec.ZSTD, packed


def cut_blocks(offset: int, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, memoryview, bool]]:
    """Bytes of a volume cut at block boundaries: where each part lies, the part, and whether it is all zeros."""
    view, begin = memoryview(data), offset
    for at, length in block_ranges(offset, len(view)):
        part = view[at - begin : at - begin + length]
        yield at, part, part[0] == 0 and _ZERO_BLOCK.startswith(part)


def data_extent(volume: int, offset: int, data: memoryview) -> Extent:
    """The row of bytes within one block."""
    return Extent(volume, ExtentKind.DATA, offset, len(data), digest(data))


def make_batch(extents: Iterable[Extent], plain: bytes | bytearray | memoryview, level: int | None) -> Batch:
    """A batch of these rows, whose DATA is `plain`, encoded as `encode_payload` says."""
    codec, payload = encode_payload(plain, level)
    return Batch(pack_table(extents), codec, len(plain), payload)


def decode_payload(batch: Batch) -> memoryview:
    """Decode to exactly the plain length; nothing is allocated before the claim is checked.

    Raises:
        DrengineError: BAD_PAYLOAD.
    """
    codec, payload, plain_length = batch.codec, batch.payload, batch.plain_length
    if not 0 <= plain_length <= BATCH_PLAIN_BYTES_MAX:
        raise DrengineError(BAD_PAYLOAD, f"a plain length of {plain_length} bytes is out of range")
    if bool(plain_length) != bool(len(payload)):
        raise DrengineError(BAD_PAYLOAD, f"a payload of {len(payload)} bytes claims to decode to {plain_length}")
    if codec == Codec.RAW or not plain_length:
        if len(payload) != plain_length:
            raise DrengineError(BAD_PAYLOAD, f"a raw payload of {len(payload)} bytes claims {plain_length}")
        return memoryview(payload)
    if codec != Codec.ZSTD:
        raise DrengineError(BAD_PAYLOAD, f"codec {codec} is unknown")
    try:
        frame = zstandard.get_frame_parameters(payload)
        if frame.content_size != plain_length or frame.window_size > WINDOW_BYTES_MAX or frame.dict_id:
            raise DrengineError(
                BAD_PAYLOAD,
                f"a zstd frame of content size {frame.content_size}, window {frame.window_size} "
                f"does not fit a claim of {plain_length}",
            )
        plain = _decompressor().decompress(payload, max_output_size=plain_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DrengineError(BAD_PAYLOAD, f"the payload does not decompress: {error}") from error
    if len(plain) != plain_length:
        raise DrengineError(BAD_PAYLOAD, f"the payload decoded to {len(plain)} bytes, not {plain_length}")
    return memoryview(plain)


def verify_batch(batch: Batch) -> memoryview:
    """Decode a batch and recompute every block's hash (rule 2); returns the plain bytes.

    Whether the extents fit the volumes is for `model.extents.check_table` to say.

    Raises:
        DrengineError: BAD_PAYLOAD, naming the first extent whose hash differs.
    """
    plain = decode_payload(batch)
    pieces: list[memoryview] = []
    claimed: list[bytes] = []
    begin = 0
    for kind, length, claim in _CLAIM.iter_unpack(batch.table):
        if kind == ExtentKind.DATA:
            end = begin + length
            pieces.append(plain[begin:end])
            claimed.append(claim)
            begin = end
    if begin != len(plain):
        raise DrengineError(BAD_PAYLOAD, f"extents of {begin} bytes have a payload of {len(plain)}")
    found = list(map(xxh3_128_digest, pieces))
    if found != claimed:
        _raise_mismatch(batch, found)
    return plain


def _raise_mismatch(batch: Batch, found: list[bytes]) -> NoReturn:
    rows = [row for row in iter_table(batch.table) if row.kind == ExtentKind.DATA]
    row = next(row for row, actual in zip(rows, found, strict=True) if row.digest != actual)
    raise DrengineError(BAD_PAYLOAD, f"hash-mismatch: volume {row.volume} at {row.offset}, {row.length} bytes")


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """This thread's compressor of a level; making one costs more than a small payload's compression."""
    made: dict[int, zstandard.ZstdCompressor] = _thread.__dict__.setdefault("compressors", {})
    if level not in made:
        made[level] = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return made[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    made: zstandard.ZstdDecompressor | None = getattr(_thread, "decompressor", None)
    if made is None:
        made = _thread.decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
    return made
