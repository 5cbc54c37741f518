"""Payloads: hashed, encoded, decoded within bounds, verified."""

from __future__ import annotations

import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.model.extents import (
    BATCH_PLAIN_BYTES_MAX,
    FRAME,
    Batch,
    Codec,
    Extent,
    ExtentKind,
    Frame,
    frames_fault,
    iter_frames,
    pack_table,
)
from drengine.wire.payload import (
    BAD_PAYLOAD,
    SHARED_FRAME_BYTES,
    WINDOW_BYTES_MAX,
    FrameEncoder,
    decode_frame,
    decode_frames,
    decode_many,
    digest,
    encode_frames,
    frame_lengths,
    make_batch,
    verify_batch,
)
from tests.wire.samples import batch_of, batches, zeros

NOISE = Random(7).randbytes(1 << 20)
TEXT = b"the quick brown fox jumps over the lazy dog, again and again. " * 2000


def refused(batch: Batch) -> str:
    with pytest.raises(DrengineError) as caught:
        verify_batch(batch)
    assert caught.value.kind is BAD_PAYLOAD
    return caught.value.message


def one_frame(plain: bytes, level: int | None) -> tuple[Frame, bytes]:
    frames, payload = encode_frames([len(plain)], plain, level)
    (row,) = iter_frames(frames)
    return row, bytes(payload)


def claiming(payload: bytes, plain_length: int, codec: Codec = Codec.ZSTD) -> Batch:
    """A batch of one block whose only frame claims this, with a checksum that fits."""
    row = Frame(plain_length, len(payload), codec, 0, 0, 0, xxhash.xxh3_64_intdigest(payload))
    table = pack_table([Extent(1, ExtentKind.DATA, 0, plain_length & 0x1FFFF, digest(PLAIN))])
    return Batch(table, FRAME.pack(*row), payload)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=5000) | st.integers(1, 65536).map(bytes), max_size=5),
    st.sampled_from([None, -5, -1, 1, 3, 9]),
)
def test_what_is_encoded_decodes_to_itself(parts: list[bytes], level: int | None) -> None:
    plain = b"".join(parts)
    frames, payload = encode_frames(map(len, parts), plain, level)
    assert len(payload) <= len(plain)
    assert frames_fault(frames, len(payload)) is None
    assert [bytes(part) for part in decode_frames(Batch(b"", frames, payload))] == parts


def test_what_does_not_shrink_goes_raw_and_uncopied() -> None:
    lengths = [65536] * 16
    frames, payload = encode_frames(lengths, NOISE, 1)
    assert {row.codec for row in iter_frames(frames)} == {Codec.RAW}
    assert isinstance(payload, memoryview)
    assert payload.obj is NOISE
    assert one_frame(TEXT[:65536], 1)[0].codec == Codec.ZSTD
    assert one_frame(TEXT[:65536], None)[0].codec == Codec.RAW
    assert one_frame(NOISE[:60_000] + bytes(2_000), 1)[0].codec == Codec.RAW  # shrinks by less than a twentieth
    assert one_frame(NOISE[:60_000] + bytes(5_000), 1)[0].codec == Codec.ZSTD
    mixed, _ = encode_frames([65536] * 3, NOISE[:65536] + TEXT[:65536] + NOISE[:65536], 1)
    assert [row.codec for row in iter_frames(mixed)] == [Codec.RAW, Codec.ZSTD, Codec.RAW]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 65536), max_size=12), st.sampled_from([None, 1]), st.integers(0, 2**32))
def test_encoding_as_it_comes_gives_the_same_frames(lengths: list[int], level: int | None, seed: int) -> None:
    random = Random(seed)
    parts = [random.choice([random.randbytes(length), TEXT[:length]]) for length in lengths]
    encoder = FrameEncoder(level)
    for part in parts:
        reused = bytearray(part)
        encoder.add(memoryview(reused))
        reused[:] = bytes(len(reused))
    frames, payload = encode_frames(frame_lengths(lengths), b"".join(parts), level)
    assert encoder.plain_length == sum(lengths)
    assert encoder.finish() == (frames, bytes(payload))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 65536), max_size=40))
def test_small_extents_share_a_frame_and_none_is_parted(lengths: list[int]) -> None:
    frames = list(frame_lengths(lengths))
    assert set(itertools.accumulate(frames)) <= set(itertools.accumulate(lengths)) and sum(frames) == sum(lengths)
    assert all(frame <= max([SHARED_FRAME_BYTES, *lengths]) for frame in frames)
    assert all(one + other > SHARED_FRAME_BYTES for one, other in itertools.pairwise(frames))


def test_a_digest_is_the_canonical_xxh3_of_the_plain_bytes() -> None:
    assert digest(b"") == bytes.fromhex("99aa06d3014798d86001c324468d497f")
    assert digest(memoryview(TEXT)) == xxhash.xxh3_128(TEXT).digest()


@settings(max_examples=100, deadline=None)
@given(batches())
def test_an_honest_batch_verifies(batch: Batch) -> None:
    assert len(verify_batch(batch)) == batch.plain_length


def test_zero_and_discard_rows_between_data_rows_carry_nothing() -> None:
    one, two = b"1" * 4096, b"2" * 512
    rows = [
        Extent(1, ExtentKind.DATA, 0, 4096, digest(one)),
        Extent(1, ExtentKind.ZERO, 8192, 1 << 40),
        Extent(2, ExtentKind.DISCARD, 0, 512),
        Extent(2, ExtentKind.DATA, 7, 512, digest(two)),
    ]
    batch = make_batch(rows, one + two, None)
    assert verify_batch(batch) == one + two
    assert len(verify_batch(zeros(0, 1 << 30))) == 0


@pytest.mark.fault(19)
@pytest.mark.parametrize("row", [0, 1, 15])
def test_a_wrong_block_is_named(row: int) -> None:
    plain = bytearray(NOISE)
    batch = batch_of([(at, NOISE[at : at + 65536]) for at in range(0, 1 << 20, 65536)], level=None)
    plain[row * 65536 + 5] ^= 1
    assert "checksum" in refused(replace(batch, payload=bytes(plain)))
    frames, payload = encode_frames([65536] * 16, plain, None)
    message = refused(replace(batch, frames=frames, payload=payload))
    assert message == f"hash-mismatch: volume 1 at {row * 65536}, 65536 bytes"


@pytest.mark.fault(19)
def test_a_compressor_gone_wrong_is_found_before_anything_is_acknowledged() -> None:
    plain = TEXT[: len(TEXT) // 65536 * 65536]
    good = batch_of([(at, plain[at : at + 65536]) for at in range(0, len(plain), 65536)], level=3)
    assert {row.codec for row in iter_frames(good.frames)} == {Codec.ZSTD}
    frames, other = encode_frames([65536] * (len(plain) // 65536), TEXT[1 : len(plain) + 1], 3)
    assert "hash-mismatch" in refused(replace(good, frames=frames, payload=other))  # decodes, to something else
    for seed in range(200):
        random = Random(seed)
        payload = bytearray(good.payload)
        for _ in range(random.randrange(1, 4)):
            payload[random.randrange(len(payload))] ^= 1 << random.randrange(8)
        if payload == good.payload:
            continue
        assert "checksum" in refused(replace(good, payload=bytes(payload)))
        try:  # a compressor that went wrong before the checksum was made
            found = verify_batch(replace(good, payload=bytes(payload), frames=checked(good.frames, payload)))
        except DrengineError as error:
            assert error.kind is BAD_PAYLOAD
        else:
            assert found == plain, f"seed {seed}"


def checked(frames: bytes, payload: bytes | bytearray) -> bytes:
    """The same rows with checksums of what the payload holds."""
    rows, at = [], 0
    for row in iter_frames(frames):
        part = bytes(payload[at : at + row.length])
        rows.append(FRAME.pack(*row._replace(checksum=xxhash.xxh3_64_intdigest(part))))
        at += row.length
    return b"".join(rows)


@pytest.mark.fault(37)
def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 30))
    assert len(bomb) < 200_000
    tracemalloc.start()
    for claim in (100, 65536, 65537, BATCH_PLAIN_BYTES_MAX + 1, 1 << 30, 2**32 - 1):
        refused(claiming(bomb, claim))
        row = Frame(claim, len(bomb), Codec.ZSTD, 0, 0, 0, xxhash.xxh3_64_intdigest(bomb))
        with pytest.raises(DrengineError, match="bad-payload"):
            decode_frame(row, bomb, plain_bytes_max=BATCH_PLAIN_BYTES_MAX)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def frame_of(plain: bytes, *, content_size: bool = True, **options: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, write_content_size=content_size, **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)


PLAIN = TEXT[:65536]


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("why", "payload"),
    [
        ("no content size", frame_of(PLAIN, content_size=False)),
        ("a content size below the truth", frame_of(PLAIN[:-1])),
        ("a content size above the truth", frame_of(PLAIN + b"x")),
        ("two frames", frame_of(PLAIN[:100]) + frame_of(PLAIN[100:])),
        ("a second frame behind", frame_of(PLAIN) + frame_of(b"x")),
        ("a byte behind", frame_of(PLAIN) + b"\0"),
        ("a skippable frame in front", b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + frame_of(PLAIN)),
        ("a skippable frame that claims the length", b"\x50\x2a\x4d\x18\0\0\x01\0" + PLAIN),
        ("the last byte is missing", frame_of(PLAIN)[:-1]),
        ("only a header", frame_of(PLAIN)[:8]),
        ("nothing", b""),
        ("no frame at all", b"no zstd frame at all, but bytes"),
        ("raw bytes", PLAIN),
    ],
)
def test_a_frame_that_is_not_exactly_one_honest_zstd_frame_is_refused(why: str, payload: bytes) -> None:
    assert verify_batch(claiming(frame_of(PLAIN), len(PLAIN))) == PLAIN
    assert refused(claiming(payload, len(PLAIN))), why


@pytest.mark.fault(37)
def test_a_frame_with_a_dictionary_is_refused() -> None:
    trained = zstandard.train_dictionary(4096, [TEXT[at : at + 400] for at in range(0, 60_000, 300)])
    packed = zstandard.ZstdCompressor(level=3, dict_data=trained).compress(PLAIN)
    assert zstandard.get_frame_parameters(packed).dict_id
    assert "does not fit" in refused(claiming(packed, len(PLAIN)))


@pytest.mark.fault(37)
def test_a_content_size_that_was_falsified_in_the_header_is_refused() -> None:
    payload = bytearray(frame_of(PLAIN[:-1]))
    at = bytes(payload).index((65535 - 256).to_bytes(2, "little"))  # the field's own form for this size
    payload[at : at + 2] = (65536 - 256).to_bytes(2, "little")
    refused(claiming(bytes(payload), 65536))


@pytest.mark.fault(37)
def test_a_huge_window_is_refused() -> None:
    payload = bytearray(frame_of(PLAIN))
    # Rewrite the header: not a single segment, an own window descriptor of 2^27, the content size as it was.
    assert zstandard.get_frame_parameters(bytes(payload)).content_size == len(PLAIN)
    assert payload[4] & 0x20, "a single segment: no window descriptor"
    payload[4] &= ~0x20
    payload[5:5] = bytes([(27 - 10) << 3])
    assert zstandard.get_frame_parameters(bytes(payload)).window_size == 1 << 27 > WINDOW_BYTES_MAX
    assert "window" in refused(claiming(bytes(payload), len(PLAIN)))
    payload[5] = (20 - 10) << 3
    assert verify_batch(claiming(bytes(payload), len(PLAIN))) == PLAIN


@pytest.mark.parametrize(("plain_length", "payload"), [(4, b"abc"), (2, b"abc"), (0, b"abc"), (3, b"")])
def test_a_raw_frame_has_the_length_that_it_claims(plain_length: int, payload: bytes) -> None:
    refused(claiming(payload, plain_length, Codec.RAW))


@pytest.mark.parametrize("codec", [2, 255])
def test_an_unknown_codec_or_cipher_is_refused(codec: int) -> None:
    row = Frame(4, 3, codec, 0, 0, 0, xxhash.xxh3_64_intdigest(b"abc"))
    for bad in (row, row._replace(plain_length=3, codec=0, cipher=codec)):
        with pytest.raises(DrengineError, match="bad-payload"):
            decode_frame(bad, b"abc")
        refused(Batch(zeros(0, 1).table, FRAME.pack(*bad), b"abc"))


@pytest.mark.fault(11)
@pytest.mark.parametrize("lengths", [[4096], [4096, 4096, 4096], [8191], [8191, 2], [2**63], [2**64 - 1, 8193], []])
def test_extents_that_do_not_fit_their_frames_are_refused(lengths: list[int]) -> None:
    table = pack_table([Extent(1, ExtentKind.DATA, 0, length, bytes(16)) for length in lengths])
    for frames in ([8192], [4096, 4096]):
        refused(Batch(table, *encode_frames(frames, bytes(8192), None)))


def test_a_damaged_frame_says_nothing_about_its_neighbours() -> None:
    frames, payload = encode_frames([65536] * 3, TEXT[:65536] * 3, 1)
    rows, spoiled = list(iter_frames(frames)), bytearray(payload)
    spoiled[rows[0].length + 7] ^= 1
    parts = [spoiled[: rows[0].length], spoiled[rows[0].length : -rows[2].length], spoiled[-rows[2].length :]]
    assert decode_frame(rows[0], parts[0]) == decode_frame(rows[2], parts[2]) == TEXT[:65536]
    with pytest.raises(DrengineError, match="checksum"):
        decode_frame(rows[1], parts[1])


def test_threads_verify_and_encode_beside_each_other() -> None:
    parts = [TEXT[at : at + 65536] for at in range(0, 32768, 1024)]

    def there_and_back(part: bytes) -> bool:
        return verify_batch(make_batch([Extent(1, ExtentKind.DATA, 0, len(part), digest(part))], part, 1)) == part

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, parts * 4))


@given(st.lists(st.tuples(st.integers(1, 65536), st.sampled_from("nt0"), st.sampled_from([None, 1, 19])), max_size=12))
def test_frames_decoded_together_are_what_each_is_alone(rows: list[tuple[int, str, int | None]]) -> None:
    plains = [{"n": NOISE, "t": TEXT, "0": bytes(65536)}[kind][:length] for length, kind, _ in rows]
    made = [one_frame(plain, level) for plain, (_, _, level) in zip(plains, rows, strict=True)]
    found = decode_many([frame for frame, _ in made], [stored for _, stored in made])
    assert [bytes(plain) for plain in found] == plains


@given(st.integers(0, 3), st.sampled_from(["flip", "tail", "head", "claim", "two", "cipher", "codec"]), st.data())
def test_one_frame_that_is_refused_alone_is_refused_among_others(at: int, how: str, data: st.DataObject) -> None:
    made = [one_frame(TEXT[:length], 1) for length in (4096, 65536, 100, 30_000)]
    frame, stored = made[at]
    match how:
        case "flip":
            place = data.draw(st.integers(0, len(stored) - 1))
            stored = stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :]
        case "tail":
            stored += b"more"
        case "head":
            stored = b"\x50\x2a\x4d\x18\x04\0\0\0skip" + stored
        case "claim":
            frame = frame._replace(plain_length=frame.plain_length + data.draw(st.sampled_from([-1, 1])))
        case "two":
            stored += stored
        case "cipher":
            frame = frame._replace(cipher=1)
        case "codec":
            frame = frame._replace(codec=9)
    if how != "flip":  # somebody who can write a frame can write its checksum
        frame = frame._replace(length=len(stored), checksum=xxhash.xxh3_64_intdigest(stored))
    made[at] = (frame, stored)
    with pytest.raises(DrengineError) as alone:
        decode_frame(frame, stored)
    with pytest.raises(DrengineError) as together:
        decode_many([frame for frame, _ in made], [stored for _, stored in made])
    assert together.value.message == alone.value.message
