"""Payloads: hashing, encoding, bounded decoding, verification. Pure functions over bytes; safe in any thread.

Decoding trusts nothing: a frame's bytes must match their checksum, a compressed frame must be exactly one zstd frame
that states the content size which its row claims, and that is bounded. Only then is memory taken. Source of zstd's
format: RFC 8878.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

import zstandard
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from drengine.model.errors import DrengineError, error_kind
from drengine.model.extents import (
    BATCH_PLAIN_BYTES_MAX,
    BLOCK_BYTES,
    EXTENT,
    FRAME,
    FRAME_PLAIN_BYTES_MAX,
    Batch,
    Codec,
    Extent,
    ExtentKind,
    Frame,
    block_ranges,
    frames_fault,
    iter_frames,
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

Buffer = bytes | bytearray | memoryview

PAYLOAD_BYTES_MAX = BATCH_PLAIN_BYTES_MAX
"""An encoded payload is never longer than its plain form: a frame that does not shrink is sent raw."""

SHARED_FRAME_BYTES = 32 << 10
"""Small extents share a frame up to this: more shrinks better, less makes a read of one of them cheaper."""

WINDOW_BYTES_MAX = 8 << 20
RAW_ABOVE = 0.95
"""Compression must save at least this share's complement, or the frame goes raw."""

_BLOCK_HEADER_BYTES = 3
"""In a zstd frame: one bit says that it is the last block, two its type, the rest its length."""
_RLE_BLOCK = 1

_ZERO_BLOCK = bytes(BLOCK_BYTES)
_thread = threading.local()


def digest(data: Buffer) -> bytes:
    """xxh3-128 (canonical, 16 bytes) of plain bytes."""
    return xxh3_128_digest(data)


def cut_blocks(offset: int, data: Buffer) -> Iterator[tuple[int, memoryview, bool]]:
    """Bytes of a volume cut at block boundaries: where each part lies, the part, and whether it is all zeros."""
    view, begin = memoryview(data), offset
    for at, length in block_ranges(offset, len(view)):
        part = view[at - begin : at - begin + length]
        yield at, part, part[0] == 0 and _ZERO_BLOCK.startswith(part)


def data_extent(volume: int, offset: int, data: memoryview, known: bytes | None = None) -> Extent:
    """The row of bytes within one block; `known` is their digest where it was made already."""
    return Extent(volume, ExtentKind.DATA, offset, len(data), known or digest(data))


def make_batch(extents: Sequence[Extent], plain: Buffer, level: int | None) -> Batch:
    """A batch of these rows, whose DATA is `plain`, compressed at a zstd level where that pays; None: all raw.

    Where all frames are raw the payload is `plain` itself: the caller must not change it before it is sent.
    """
    lengths = frame_lengths(extent.length for extent in extents if extent.kind == ExtentKind.DATA)
    frames, payload = encode_frames(lengths, plain, level)
    return Batch(pack_table(extents), frames, payload)


def frame_lengths(data_lengths: Iterable[int]) -> Iterator[int]:
    """Plain lengths of frames for DATA extents of these lengths: no extent is parted, small neighbours share one."""
    filled = 0
    for length in data_lengths:
        if filled and filled + length > SHARED_FRAME_BYTES:
            yield filled
            filled = 0
        filled += length
    if filled:
        yield filled


def encode_frames(lengths: Iterable[int], plain: Buffer, level: int | None) -> tuple[bytes, Buffer]:
    """The frame table and the payload of plain bytes that are cut into frames of these lengths."""
    view, at = memoryview(plain), 0
    rows: list[bytes] = []
    parts: list[Buffer] = []
    for length in lengths:
        row, part = _encode_frame(view[at : at + length], level)
        at += length
        rows.append(row)
        parts.append(part)
    is_raw = sum(map(len, parts)) == len(view)
    return b"".join(rows), view if is_raw else b"".join(parts)


class FrameEncoder:
    """Encodes the bytes of DATA extents into frames as they come, so that none of them is copied before that.

    Attributes:
        plain_length: bytes that were added.
    """

    def __init__(self, level: int | None) -> None:
        self.plain_length = 0
        self._level = level
        self._rows: list[bytes] = []
        self._payload = bytearray()
        self._shared = bytearray()

    def add(self, part: memoryview) -> None:
        """The next extent's bytes, which may change afterwards."""
        self.plain_length += len(part)
        if self._shared and len(self._shared) + len(part) > SHARED_FRAME_BYTES:
            self._end_shared()
        if len(part) >= SHARED_FRAME_BYTES:
            self._put(part)
        else:
            self._shared += part

    def finish(self) -> tuple[bytes, bytearray]:
        """The frame table and the payload; the encoder is of no more use."""
        self._end_shared()
        return b"".join(self._rows), self._payload

    def _end_shared(self) -> None:
        if self._shared:
            self._put(self._shared)
            self._shared = bytearray()

    def _put(self, plain: Buffer) -> None:
        row, stored = _encode_frame(plain, self._level)
        self._rows.append(row)
        self._payload += stored


def _encode_frame(plain: Buffer, level: int | None) -> tuple[bytes, Buffer]:
    """One frame's row and bytes: compressed where that pays."""
    stored, codec = plain, Codec.RAW
    if level is not None:
        packed = _compressor(level).compress(plain)
        if len(packed) < len(plain) * RAW_ABOVE:
            stored, codec = packed, Codec.ZSTD
    return FRAME.pack(len(plain), len(stored), codec, 0, 0, 0, xxh3_64_intdigest(stored)), stored


def decode_frame(
    frame: Frame, stored: Buffer, *, seed: int = 0, plain_bytes_max: int = FRAME_PLAIN_BYTES_MAX
) -> Buffer:
    """One frame's plain bytes; nothing is allocated before its claims are checked.

    Args:
        frame: its row.
        stored: its bytes.
        seed: of the checksum.
        plain_bytes_max: what it may decode to.

    Raises:
        DrengineError: BAD_PAYLOAD.
    """
    plain_length = frame.plain_length
    if len(stored) != frame.length or xxh3_64_intdigest(stored, seed) != frame.checksum:
        raise DrengineError(BAD_PAYLOAD, f"a frame of {frame.length} bytes fails its checksum")
    if frame.cipher:
        raise DrengineError(BAD_PAYLOAD, f"a frame is encrypted with cipher {frame.cipher}, which is unknown")
    if frame.codec == Codec.RAW:
        if frame.length != plain_length:
            raise DrengineError(BAD_PAYLOAD, f"a raw frame of {frame.length} bytes claims {plain_length}")
        return stored
    if frame.codec != Codec.ZSTD:
        raise DrengineError(BAD_PAYLOAD, f"codec {frame.codec} is unknown")
    if not 0 < plain_length <= plain_bytes_max:
        raise DrengineError(BAD_PAYLOAD, f"a plain length of {plain_length} bytes is out of range")
    try:
        found = zstandard.get_frame_parameters(stored)
        if found.content_size != plain_length or found.window_size > WINDOW_BYTES_MAX or found.dict_id:
            raise DrengineError(
                BAD_PAYLOAD,
                f"a zstd frame of content size {found.content_size}, window {found.window_size} "
                f"does not fit a claim of {plain_length}",
            )
        plain = _decompressor().decompress(stored, max_output_size=plain_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DrengineError(BAD_PAYLOAD, f"a frame does not decompress: {error}") from error
    if len(plain) != plain_length:
        raise DrengineError(BAD_PAYLOAD, f"a frame decoded to {len(plain)} bytes, not {plain_length}")
    return plain


def decode_many(frames: Sequence[Frame], stored: Sequence[Buffer], *, seed: int = 0) -> list[Buffer]:
    """As `decode_frame`, of many at once; those that zstd has packed are decoded without the interpreter's lock.

    What decodes is backed by memory that they share: whoever keeps one of them copies it.

    Raises:
        DrengineError: BAD_PAYLOAD, of the first that fails.
    """
    plains: list[Buffer] = []
    packed: list[int] = []
    for number, (frame, part) in enumerate(zip(frames, stored, strict=True)):
        if frame.codec == Codec.ZSTD and _is_decodable(frame, part, seed):
            packed.append(number)
            plains.append(b"")
        else:
            plains.append(decode_frame(frame, part, seed=seed))
    if packed:
        sizes = array("Q", [frames[number].plain_length for number in packed])
        try:
            decoded = _decompressor().multi_decompress_to_buffer(
                [stored[n] for n in packed], decompressed_sizes=sizes.tobytes()
            )
        except zstandard.ZstdError:
            return [decode_frame(frame, part, seed=seed) for frame, part in zip(frames, stored, strict=True)]
        for at, number in enumerate(packed):
            plains[number] = memoryview(decoded[at])  # type: ignore[arg-type]  # its stub lacks __buffer__
    return plains


def _is_decodable(frame: Frame, stored: Buffer, seed: int) -> bool:
    """Whether a frame can be decoded together with others, as most can; `decode_frame` sees to the rest, or says what
    is wrong with it.
    """
    if frame.cipher or not 0 < frame.plain_length <= FRAME_PLAIN_BYTES_MAX or len(stored) != frame.length:
        return False
    if xxh3_64_intdigest(stored, seed) != frame.checksum:
        return False
    try:
        found = zstandard.get_frame_parameters(stored)
        at = zstandard.frame_header_size(stored)
    except zstandard.ZstdError:
        return False
    if found.content_size != frame.plain_length or found.window_size > WINDOW_BYTES_MAX or found.dict_id:
        return False
    # One block, and nothing behind it: the call for many does not look there.
    block = int.from_bytes(stored[at : at + _BLOCK_HEADER_BYTES], "little")
    length = 1 if block >> 1 & 3 == _RLE_BLOCK else block >> 3
    return bool(block & 1) and not found.has_checksum and at + _BLOCK_HEADER_BYTES + length == len(stored)


def decode_frames(batch: Batch) -> list[memoryview]:
    """The plain bytes of each frame.

    Raises:
        DrengineError: BAD_PAYLOAD.
    """
    payload, at, plains = memoryview(batch.payload), 0, []
    if fault := frames_fault(batch.frames, len(payload)):
        raise DrengineError(BAD_PAYLOAD, fault)
    for frame in iter_frames(batch.frames):
        plains.append(memoryview(decode_frame(frame, payload[at : at + frame.length])))
        at += frame.length
    return plains


def verify_batch(batch: Batch) -> memoryview:
    """Decode a batch and recompute every block's hash (rule 2); returns the plain bytes.

    Whether the extents fit the volumes is for `model.extents.check_table` to say.

    Raises:
        DrengineError: BAD_PAYLOAD, naming the first extent whose hash differs.
    """
    plains = check_batch(batch)
    return plains[0] if len(plains) == 1 else memoryview(b"".join(plains))


def check_batch(batch: Batch) -> list[memoryview]:
    """As `verify_batch`, but the plain bytes are returned by frame, not copied together.

    Raises:
        DrengineError: see `verify_batch`.
    """
    plains = decode_frames(batch)
    pieces: list[memoryview] = []
    claimed: list[bytes] = []
    frame, begin = 0, 0
    for _, kind, _, length, claim in EXTENT.iter_unpack(batch.table):
        if kind != ExtentKind.DATA:
            continue
        if frame < len(plains) and begin == len(plains[frame]):
            frame, begin = frame + 1, 0
        end = begin + length
        if frame >= len(plains) or end > len(plains[frame]):
            raise DrengineError(BAD_PAYLOAD, "extents do not fit the frames of their payload")
        pieces.append(plains[frame][begin:end])
        claimed.append(claim)
        begin = end
    if plains and (frame, begin) != (len(plains) - 1, len(plains[-1])):
        raise DrengineError(BAD_PAYLOAD, "a payload holds more than its extents")
    found = list(map(xxh3_128_digest, pieces))
    if found != claimed:
        _raise_mismatch(batch, found)
    return plains


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
