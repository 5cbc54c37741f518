"""Frames of a record: each is read, verified and damaged on its own; segments of version 1 are read on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.model.extents import BLOCK_BYTES, FRAME, Frame
from drengine.store.blobs import LocalStorage
from drengine.store.care.compaction import CompactionReport, rewrite
from drengine.store.care.retention import RetentionPolicy
from drengine.store.damage import DamagedRange, damaged_ranges
from drengine.store.errors import DAMAGED, STORE_VERSION
from drengine.store.keys import StoreKeys
from drengine.store.segments import format as codec
from drengine.store.segments.format import CHECKSUM, RECORD, RecordType
from drengine.store.store import Store
from drengine.store.views.records import Address, SegmentScan
from tests.clock import ManualClock
from tests.store.harness import Source, check_point, crash, scratch
from tests.store.make_samples import SAMPLE_OPTIONS, contents

SAMPLES = Path(__file__).parent / "samples"
SIZE = 8 * BLOCK_BYTES
BLOCKS = [
    random.Random(number).randbytes(BLOCK_BYTES) if number % 2 else bytes([number + 1]) * BLOCK_BYTES
    for number in range(8)
]


@pytest.fixture
def place() -> Iterator[Path]:
    with scratch() as path:
        yield path


@pytest.fixture
def source(place: Path) -> Iterator[Source]:
    """A store whose second record has eight frames, raw and compressed in turn, and a point that shows it."""
    with Store.create(place / "store", clock=ManualClock()) as store:
        source = Source(store, disk=SIZE)
        source.write(1, 0, b"".join(BLOCKS))
        source.cut()
        source.commit()
        yield source
        source.writer.close()


def segment_of(path: Path) -> Path:
    (file,) = path.glob("store/segments/**/*.seg")
    return file


def scanned(file: Path) -> codec.SegmentIndex:
    reader = LocalStorage(file.parent).open(file.name)
    try:
        scan = SegmentScan(reader, StoreKeys(LocalStorage(file.parent), b"", None))
        scan.extend(reader, file.stat().st_size)
        return scan.index()
    finally:
        reader.close()


def spoil(place: Path, frame: int) -> None:
    """Flip a bit in the middle of a frame of record 1."""
    file = segment_of(place)
    index = scanned(file)
    row = index.frame_rows(1).start + frame
    at = int(index.frame_offsets[row]) + int(index.frames["length"][row]) // 2
    data = bytearray(file.read_bytes())
    data[at] ^= 0x20
    file.write_bytes(data)


@pytest.mark.fault(2)
@pytest.mark.parametrize("frame", [0, 3, 7])
def test_a_damaged_frame_spoils_its_own_range_and_no_other(place: Path, source: Source, frame: int) -> None:
    spoil(place, frame)
    with source.store.view(source.point("1-3")) as view:
        for number, block in enumerate(BLOCKS):
            if number == frame:
                with pytest.raises(DrengineError, match="checksum") as caught:
                    view.read(1, number * BLOCK_BYTES + 5, 10)
                assert caught.value.kind is DAMAGED
            else:
                assert view.read(1, number * BLOCK_BYTES, BLOCK_BYTES) == block
    damaged = [DamagedRange(1, frame * BLOCK_BYTES, BLOCK_BYTES)]
    assert source.store.verify(source.point("1-3")).damaged == damaged
    assert source.store.scrub().points_damaged == [("web1", "1-3")]
    assert damaged_ranges(source.store.context, "web1") == damaged, "only this is asked of the source again"


@pytest.mark.fault(2)
def test_a_point_that_shows_only_the_other_frames_is_whole_and_the_range_sent_again_heals(
    place: Path, source: Source
) -> None:
    spoil(place, 3)
    source.store.scrub()
    source.write(1, 3 * BLOCK_BYTES, BLOCKS[3])
    source.cut()
    source.commit()
    assert [point.damaged for point in source.store.points("web1")] == [True, False]
    check_point(source.store, source.point("1-5"), source.disk)
    assert damaged_ranges(source.store.context, "web1") == []


def test_a_small_read_costs_one_frame(place: Path, source: Source) -> None:
    source.writer.close()
    read: list[int] = []

    class Counting(LocalStorage):
        def open(self, name: str):
            reader = super().open(name)
            inner = reader.read_at
            reader.read_at = lambda offset, length: (read.append(length), inner(offset, length))[1]  # type: ignore[method-assign]
            return reader

    store = source.store
    store.context.records._storage = Counting(place / "store")
    with store.view(source.point("1-3")) as view:
        view.read(1, 0, 1)  # opens the segment
        read.clear()
        assert view.read(1, 5 * BLOCK_BYTES + 4096, 4096) == BLOCKS[5][4096:8192]
        assert read == [BLOCK_BYTES]
        read.clear()
        view.read(1, 5 * BLOCK_BYTES, 100)
        assert read == [], "the frame is kept"
        view.read(1, 6 * BLOCK_BYTES + 4096, 4096)
        assert sum(read) < 100, "a compressed frame costs what it has in the file"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_range_of_a_record_reads_the_same_every_way(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, BLOCK_BYTES), min_size=1, max_size=6))
    parts = [
        os.urandom(length) if number % 2 else bytes(range(1, 201)) * (length // 200 + 1)
        for number, length in enumerate(lengths)
    ]
    parts = [part[:length] for part, length in zip(parts, lengths, strict=True)]
    plain = b"".join(parts)
    with scratch() as place, Store.create(place / "store") as store:
        source = Source(store, disk=8 * BLOCK_BYTES)
        source.write(1, 0, plain)
        source.commit()
        records, address = store.context.records, Address("web1", 1, 1, 1)
        for _ in range(5):
            begin = data.draw(st.integers(0, len(plain) - 1))
            end = data.draw(st.integers(begin + 1, len(plain)))
            now = records.read_now(address, begin, end - begin)
            assert now is None or now == plain[begin:end]
            assert records.read(address, begin, end - begin) == plain[begin:end]
            assert records.read_now(address, begin, end - begin) == plain[begin:end]
            if data.draw(st.booleans()):
                records.forget(address)
        for begin, length in ((len(plain), 1), (0, len(plain) + 1)):
            for read in (records.read, records.read_now):
                with pytest.raises(DrengineError, match="behind its end"):
                    records.read(address, 0, 1)
                    read(address, begin, length)
        source.writer.close()


def test_of_a_raw_frame_that_was_verified_only_what_is_wanted_is_read(place: Path, source: Source) -> None:
    records, address = source.store.context.records, Address("web1", 1, 1, 1)
    records.read(address, 0, 1)
    part = records._open.get(address[:3])
    assert part is not None
    read: list[int] = []
    data = segment_of(place).read_bytes()

    def read_now(offset: int, length: int) -> bytes:
        read.append(length)
        return data[offset : offset + length]

    part.reader.read_now = read_now  # type: ignore[method-assign]
    for at in (100, 300, 60_000):
        assert records.read_now(address, 5 * BLOCK_BYTES + at, 4096) == BLOCKS[5][at : at + 4096]
    assert read == [BLOCK_BYTES, 4096, 4096]
    data = data.replace(BLOCKS[7][1000:2000], bytes(1000))
    with pytest.raises(DrengineError, match="checksum"):
        records.read_now(address, 7 * BLOCK_BYTES + 1000, 10)
    with pytest.raises(DrengineError, match="checksum"):
        records.read_now(address, 7 * BLOCK_BYTES, 10)
    assert records.read_now(address, 4 * BLOCK_BYTES + 5, 9) == BLOCKS[4][5:14], "a compressed one is decoded"
    read.clear()
    assert records.read_now(address, 4 * BLOCK_BYTES + 70, 9) == BLOCKS[4][70:79]
    assert read == [], "and kept"


def test_what_would_wait_is_not_answered_now(source: Source) -> None:
    records, address = source.store.context.records, Address("web1", 1, 1, 1)
    assert records.read_now(address, 0, 10) is None, "its index is not known yet"
    records.read(address, 0, 10)
    assert records.read_now(address, 0, 10) == BLOCKS[0][:10]
    (part,) = [records._open.get(address[:3])]
    assert part is not None
    part.reader.read_now = lambda *_: None  # type: ignore[method-assign]
    assert records.read_now(address, 4 * BLOCK_BYTES, 10) is None
    assert records.read_now(address, 0, 10) == BLOCKS[0][:10], "the frame is kept"


def test_reads_go_on_through_a_compaction_and_let_the_old_file_go(place: Path) -> None:
    clock = ManualClock()
    with Store.create(place / "store", clock=clock) as store:
        source = Source(store, disk=SIZE)
        for number in range(3):
            source.write(1, 0, b"".join(BLOCKS[number:] + BLOCKS[:number]))
            source.cut()
            source.commit()
            clock.advance(3600)
        source.writer.close()
        with store.view(source.point("1-7")) as view:
            assert view.read(1, 100, 10) == source.disk.data[1][100:110]
            store.retain(RetentionPolicy(0, ()), clock.now_ns())
            assert store.compact().segments_rewritten == 1
            assert view.read(1, 0, SIZE) == source.disk.data[1], "frames are numbered anew in the new revision"
        held = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
        assert not [name for name in held if "(deleted)" in name and str(place) in name]


def rebuilt_record(file: Path, number: int, rows: list[Frame], flips: dict[int, int] | None = None) -> None:
    """Give a record another frame table, with a checksum that fits: what somebody who writes the store could do."""
    index = scanned(file)
    data = bytearray(file.read_bytes())
    at, table = int(index.offsets[number]), index.table(number)
    packed = b"".join(FRAME.pack(*row) for row in rows)
    old = index.frame_rows(number)
    assert len(packed) == (old.stop - old.start) * FRAME.size
    begin = at + RECORD.size + len(table)
    data[begin : begin + len(packed)] = packed
    head = bytes(data[at : at + RECORD.size - CHECKSUM.size])
    fields = CHECKSUM.pack(codec.checksum(index.header.salt, head, table, packed))
    data[at + RECORD.size - CHECKSUM.size : at + RECORD.size] = fields
    file.write_bytes(data)


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    "changed",
    [
        {"plain_length": 0},
        {"plain_length": BLOCK_BYTES - 1},
        {"plain_length": BLOCK_BYTES + 1},
        {"plain_length": 2**32 - 1},
        {"length": 1},
        {"length": 2**32 - 1},
        {"codec": 0},
        {"codec": 9},
        {"cipher": 1},
        {"reserved": 1},
        {"key": 1},
        {"checksum": 0},
    ],
    ids=str,
)
def test_a_frame_table_that_breaks_a_rule_is_refused_and_nothing_of_it_is_served(
    place: Path, changed: dict[str, int]
) -> None:
    with Store.create(place / "store") as store:
        source = Source(store, disk=SIZE)
        source.write(1, 0, b"".join(BLOCKS))
        source.cut()
        source.commit()
        crash(source.writer)
    file = segment_of(place)
    index = scanned(file)
    rows = [index.frame(row) for row in range(*index.frame_rows(1).indices(len(index.frames)))]
    rows[2] = rows[2]._replace(**changed)
    rebuilt_record(file, 1, rows)
    with Store.open(place / "store") as store:
        point = next(iter(store.points("web1")))
        with pytest.raises(DrengineError) as caught, store.view(point) as view:
            view.read(1, 2 * BLOCK_BYTES, BLOCK_BYTES)
        assert caught.value.kind is DAMAGED
        report = store.scrub()
        assert report.records_damaged and report.points_damaged


def test_segments_of_version_1_are_read_and_compaction_writes_version_2(place: Path) -> None:
    path = Path(shutil.copytree(SAMPLES / "v1-good", place / "store"))
    with Store.open(path, options=SAMPLE_OPTIONS) as store:
        versions = {scanned(file).header.version for file in path.glob("segments/**/*.seg")}
        assert versions == {1}
        for row in store.context.catalogue.segments("web1", 1):
            rewrite(store.context, row, None, CompactionReport(), lambda: None)
        found = {scanned(file).header.version for file in path.glob("segments/**/*.seg")}
        assert found == {2}
        point = next(point for point in store.points("web1") if point.label == "newest")
        with store.view(point) as view:
            assert (view.read(1, 0, 8000), view.read(2, 0, 1003)) == contents()
        assert not store.scrub().records_damaged
    for name in ("catalogue.sqlite", "catalogue.sqlite-wal", "catalogue.sqlite-shm"):
        (path / name).unlink(missing_ok=True)
    assert Store.rebuild(path, options=SAMPLE_OPTIONS).lost == []


def test_a_segment_of_a_newer_version_is_refused_by_name(place: Path, source: Source) -> None:
    source.writer.close()
    file = segment_of(place)
    data = bytearray(file.read_bytes())
    length = scanned(file).header.pack().__len__()
    data[8] = 4
    data[length - 8 : length] = CHECKSUM.pack(
        codec.checksum(int.from_bytes(data[32:40], "little"), bytes(data[:120]), bytes(data[120 : length - 8]))
    )
    file.write_bytes(data)
    with (
        Store.open(place / "store") as store,
        store.view(next(iter(store.points("web1")))) as view,
        pytest.raises(DrengineError, match="format 4") as caught,
    ):
        view.read(1, 0, 1)
    assert caught.value.kind is STORE_VERSION


def test_the_indexes_columns_tell_where_each_frame_is(place: Path, source: Source) -> None:
    file = segment_of(place)
    index, data = scanned(file), segment_of(place).read_bytes()
    assert index.type(1) == RecordType.BATCH
    for row, block in zip(range(*index.frame_rows(1).indices(len(index.frames))), BLOCKS, strict=True):
        at, frame = int(index.frame_offsets[row]), index.frame(row)
        assert codec.checksum(0, data[at : at + frame.length]) == frame.checksum
        assert frame.plain_length == len(block)
    assert np.array_equal(index.frame_plain_ends[index.frame_rows(1)], np.arange(1, 9) * BLOCK_BYTES)
    assert index.head(1).length == int(index.offsets[1]) and not len(index.head(1).frames)
