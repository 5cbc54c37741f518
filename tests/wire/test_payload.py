"""Payloads: hashed, encoded, decoded within bounds, verified."""

from __future__ import annotations

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
from drengine.model.extents import BATCH_PLAIN_BYTES_MAX, Batch, Codec, Extent, ExtentKind, pack_table
from drengine.wire.payload import (
    BAD_PAYLOAD,
    WINDOW_BYTES_MAX,
    decode_payload,
    digest,
    encode_payload,
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


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=5000) | st.integers(1, 5000).map(bytes), st.sampled_from([None, -5, -1, 1, 3, 9]))
def test_what_is_encoded_decodes_to_itself(plain: bytes, level: int | None) -> None:
    codec, payload = encode_payload(plain, level)
    assert len(payload) <= len(plain)
    assert decode_payload(Batch(b"", codec, len(plain), payload)) == plain


def test_what_does_not_shrink_goes_raw_and_uncopied() -> None:
    codec, payload = encode_payload(NOISE, 1)
    assert codec is Codec.RAW
    assert isinstance(payload, memoryview)
    assert payload.obj is NOISE
    assert encode_payload(TEXT, 1)[0] is Codec.ZSTD
    assert encode_payload(TEXT, None)[0] is Codec.RAW
    mostly = NOISE[:100_000] + bytes(5_000)  # shrinks by less than a twentieth
    assert encode_payload(mostly, 1)[0] is Codec.RAW
    mostly = NOISE[:100_000] + bytes(10_000)
    assert encode_payload(mostly, 1)[0] is Codec.ZSTD


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
    batch = Batch(pack_table(rows), Codec.RAW, 4608, one + two)
    assert verify_batch(batch) == one + two
    assert len(verify_batch(zeros(0, 1 << 30))) == 0


@pytest.mark.fault(19)
@pytest.mark.parametrize("row", [0, 1, 15])
def test_a_wrong_block_is_named(row: int) -> None:
    plain = bytearray(NOISE)
    batch = batch_of([(at, NOISE[at : at + 65536]) for at in range(0, 1 << 20, 65536)], level=None)
    plain[row * 65536 + 5] ^= 1
    message = refused(replace(batch, payload=bytes(plain)))
    assert message == f"hash-mismatch: volume 1 at {row * 65536}, 65536 bytes"


@pytest.mark.fault(19)
def test_a_compressor_gone_wrong_is_found_before_anything_is_acknowledged() -> None:
    good = batch_of([(at, TEXT[at : at + 65536]) for at in range(0, len(TEXT) - 65536, 65536)], level=3)
    assert good.codec is Codec.ZSTD
    other = zstandard.ZstdCompressor(level=3).compress(TEXT[1 : good.plain_length + 1])
    assert "hash-mismatch" in refused(replace(good, payload=other))  # decodes, to something else
    for seed in range(200):
        random = Random(seed)
        payload = bytearray(good.payload)
        for _ in range(random.randrange(1, 4)):
            payload[random.randrange(len(payload))] ^= 1 << random.randrange(8)
        try:
            plain = verify_batch(replace(good, payload=bytes(payload)))
        except DrengineError as error:
            assert error.kind is BAD_PAYLOAD
        else:
            assert plain == TEXT[: good.plain_length], f"seed {seed}"


@pytest.mark.fault(37)
def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 30))
    assert len(bomb) < 200_000
    tracemalloc.start()
    for claim in (100, BATCH_PLAIN_BYTES_MAX, BATCH_PLAIN_BYTES_MAX + 1, 1 << 30, 2**32 - 1):
        refused(Batch(zeros(0, 1).table, Codec.ZSTD, claim, bomb))
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
def test_a_payload_that_is_not_exactly_one_honest_frame_is_refused(why: str, payload: bytes) -> None:
    table = pack_table([Extent(1, ExtentKind.DATA, 0, len(PLAIN), digest(PLAIN))])
    assert verify_batch(Batch(table, Codec.ZSTD, len(PLAIN), frame_of(PLAIN))) == PLAIN
    assert refused(Batch(table, Codec.ZSTD, len(PLAIN), payload)), why


@pytest.mark.fault(37)
def test_a_content_size_that_was_falsified_in_the_header_is_refused() -> None:
    payload = bytearray(frame_of(PLAIN))
    at = bytes(payload).index((65536 - 256).to_bytes(2, "little"))  # the field's own form for this size
    payload[at : at + 2] = (65536 - 256 + 1).to_bytes(2, "little")
    table = pack_table([Extent(1, ExtentKind.DATA, 0, 65536), Extent(1, ExtentKind.DATA, 65536, 1)])
    refused(Batch(table, Codec.ZSTD, 65537, bytes(payload)))


@pytest.mark.fault(37)
def test_a_huge_window_is_refused() -> None:
    plain = bytes(1 << 20)
    payload = bytearray(frame_of(plain, content_size=True))
    # Rewrite the header: not a single segment, an own window descriptor of 2^27, the content size as it was.
    parameters = zstandard.get_frame_parameters(bytes(payload))
    assert parameters.content_size == len(plain)
    assert payload[4] & 0x20, "a single segment: no window descriptor"
    payload[4] &= ~0x20
    payload[5:5] = bytes([(27 - 10) << 3])
    table = pack_table([Extent(1, ExtentKind.DATA, at, 65536, digest(bytes(65536))) for at in range(0, 1 << 20, 65536)])
    batch = Batch(table, Codec.ZSTD, len(plain), bytes(payload))
    assert zstandard.get_frame_parameters(batch.payload).window_size == 1 << 27 > WINDOW_BYTES_MAX
    assert "window" in refused(batch)
    allowed = bytearray(payload)
    allowed[5] = (20 - 10) << 3
    assert verify_batch(replace(batch, payload=bytes(allowed))) == plain


@pytest.mark.parametrize(
    ("codec", "plain_length", "payload"),
    [
        (Codec.RAW, 4, b"abc"),
        (Codec.RAW, 2, b"abc"),
        (Codec.RAW, 0, b"abc"),
        (Codec.RAW, 3, b""),
        (Codec.RAW, -1, b""),
    ],
)
def test_a_raw_payload_has_the_length_that_it_claims(codec: Codec, plain_length: int, payload: bytes) -> None:
    refused(Batch(zeros(0, 1).table, codec, plain_length, payload))


@pytest.mark.fault(11)
@pytest.mark.parametrize("lengths", [[4096], [4096, 4096, 4096], [8191], [2**63], [2**64 - 1, 8193]])
def test_extents_that_do_not_add_up_to_the_payload_are_refused(lengths: list[int]) -> None:
    table = pack_table([Extent(1, ExtentKind.DATA, 0, length, bytes(16)) for length in lengths])
    refused(Batch(table, Codec.RAW, 8192, bytes(8192)))


def test_threads_verify_and_encode_beside_each_other() -> None:
    parts = [TEXT[at : at + 65536] for at in range(0, 32768, 1024)]

    def there_and_back(part: bytes) -> bool:
        codec, payload = encode_payload(part, 1)
        table = pack_table([Extent(1, ExtentKind.DATA, 0, len(part), digest(part))])
        return verify_batch(Batch(table, codec, len(part), payload)) == part

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, parts * 4))
