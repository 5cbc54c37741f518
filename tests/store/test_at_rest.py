"""Encryption at rest: what a thief of the disk learns, and what somebody who writes it, without the key, can do."""

from __future__ import annotations

import random
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from xxhash import xxh3_64_digest, xxh3_128_digest

from drengine.crypt.errors import (
    KEY_MISSING,
    KEY_NEEDED,
    KEY_WRONG,
    SOURCE_ERASED,
    STORE_IN_CLEAR,
    STORE_TAMPERED,
)
from drengine.crypt.kek import KeyEncryptionKey, KeyEncryptionKeys
from drengine.model.errors import DrengineError, ErrorKind
from drengine.model.extents import BLOCK_BYTES, EXTENT, FRAME, Batch
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.store.blobs import LocalStorage
from drengine.store.care.compaction import CompactionReport, rewrite
from drengine.store.care.retention import RetentionPolicy
from drengine.store.catalogue.epoch import Epoch, EpochNote
from drengine.store.catalogue.rows import row_checksum
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.errors import BRANCH_BUSY, DAMAGED
from drengine.store.keys import StoreKeys
from drengine.store.names import keys_name, manifest_name
from drengine.store.rebuild.manifest import newest_manifests, pack_manifest
from drengine.store.segments import format as codec
from drengine.store.segments.format import CHECKSUM, RECORD, SegmentIndex
from drengine.store.store import Store
from drengine.store.views.layers import open_layer, write_layer
from drengine.store.views.records import Address, SegmentScan, read_header
from tests.clock import ManualClock
from tests.store.harness import KEKS, Source, check_point, crash, encrypted, scratch
from tests.store.make_samples import SAMPLE_OPTIONS

OTHER_KEK = KeyEncryptionKey(bytes(range(100, 132)))
WORDS = b"The quick brown fox jumps over the lazy dog, "
TEXT = (WORDS * 2000)[:BLOCK_BYTES]
NOISE = random.Random(1).randbytes(BLOCK_BYTES)
SIZE = 8 * BLOCK_BYTES


@pytest.fixture(autouse=True)
def with_keys() -> Iterator[None]:
    with encrypted():
        yield


@pytest.fixture
def place() -> Iterator[Path]:
    with scratch() as path:
        yield path / "store"


def life(place: Path, **more: int) -> Source:
    """A store with two sources, a few segments, and something to compact."""
    clock = ManualClock()
    with Store.create(place, options=SAMPLE_OPTIONS, clock=clock) as store:
        for name in ("shop", "web1"):
            source = Source(store, name, disk=SIZE, **more)
            for number, block in enumerate((TEXT, NOISE, TEXT[::-1])):
                source.write(1, number * BLOCK_BYTES, block)
                source.write(1, 5 * BLOCK_BYTES, random.Random(number).randbytes(9000))
                source.cut(f"cut {number}")
                source.commit()
                clock.advance(3600)
            source.writer.close()
    return source


def keys_of(place: Path) -> StoreKeys:
    with Store.open(place) as store:
        identity = store.identity
    return StoreKeys(LocalStorage(place), identity, KEKS)


def segments(place: Path, source: str = "web1") -> list[Path]:
    return sorted(place.glob(f"segments/{source}/**/*.seg"))


def scanned(place: Path, file: Path) -> SegmentIndex:
    reader = LocalStorage(file.parent).open(file.name)
    try:
        scan = SegmentScan(reader, keys_of(place))
        scan.extend(reader, reader.size())
        return scan.index()
    finally:
        reader.close()


def everything(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def refusal(place: Path, source: Source, keks: KeyEncryptionKeys = KEKS) -> ErrorKind | None:
    """With which error a reader of everything is refused; None when all is as it was written. Never anything else."""
    found: ErrorKind | None = None
    try:
        with Store.open(place, options=SAMPLE_OPTIONS, read_only=True, keks=keks) as store:
            for point in store.points(source.name):
                try:
                    check_point(store, point, source.points[point.id])
                except DrengineError as error:
                    found = error.kind
    except DrengineError as error:
        return error.kind
    return found


def newest(store: Store, source: str = "web1") -> RecoveryPoint:
    return store.find_point(source, PointSelector())


# ---- what a thief learns ----


@pytest.mark.parametrize("moment", ["written", "compacted", "killed"])
def test_nothing_of_what_was_written_is_anywhere_in_the_store(place: Path, moment: str) -> None:
    source = life(place)
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        if moment == "compacted":
            store.rotate_key("web1")
            rewrite_all(store)
        if moment == "killed":
            again = Source(store, "shop", disk=SIZE)
            again.write(1, 3 * BLOCK_BYTES, TEXT)
            crash(again.writer)
    known = {"text": WORDS, "noise": NOISE[:24], "backwards": TEXT[::-1][:24]}
    for block in (TEXT, NOISE, TEXT[::-1]):
        packed = zstandard.ZstdCompressor(level=1).compress(block)
        known |= {f"digest {block[:4]!r}": xxh3_128_digest(block), f"packed {block[:4]!r}": packed[8:40]}
        known[f"checksum {block[:4]!r}"] = xxh3_64_digest(block)
    for name, data in everything(place).items():
        for what, part in known.items():
            assert part not in data and part[::-1] not in data, (name, what)
    assert source.disk.data[1][:BLOCK_BYTES] == TEXT


def test_the_same_would_be_found_in_a_store_in_clear(place: Path) -> None:
    """So that the test before this one means something."""
    with Store.create(place, keks=None) as store:
        source = Source(store, disk=SIZE)
        source.write(1, 0, NOISE)
        source.commit()
        crash(source.writer)
    data = b"".join(everything(place).values())
    assert NOISE[:24] in data and xxh3_128_digest(NOISE) in data


def test_equal_blocks_of_two_sources_are_stored_differently(place: Path) -> None:
    life(place)
    found = []
    for name in ("shop", "web1"):
        for file in segments(place, name):
            index = scanned(place, file)
            found += [bytes(digest) for digest in _stored_digests(index)]
    assert len(found) > 4 and len(set(found)) == len(found)


def _stored_digests(index: SegmentIndex) -> Iterator[bytes]:
    for number in range(index.record_count):
        if index.type(number) == codec.RecordType.BATCH:
            yield from (row[4] for row in EXTENT.iter_unpack(index.table(number)))


# ---- what somebody who writes the disk can do ----


@pytest.mark.fault(2)
def test_no_flipped_bit_of_an_encrypted_segment_is_served(place: Path) -> None:
    with Store.create(place, options=SAMPLE_OPTIONS) as store:
        source = Source(store, disk=3000)
        source.write(1, 10, b"something" * 30)
        source.write(1, 1000, random.Random(2).randbytes(200))
        source.cut("one")
        source.commit()
        source.writer.close()
    assert refusal(place, source) is None
    (file,) = segments(place)
    data = bytearray(file.read_bytes())
    found = set()
    bits = random.Random(secrets.randbits(32))
    for at in range(bits.randrange(3), len(data), 3):  # all bits: python -m tests.store.every_bit --encrypted
        bit = 1 << bits.randrange(8)
        data[at] ^= bit
        file.write_bytes(data)
        data[at] ^= bit
        found.add(refusal(place, source))
    assert found <= {None, DAMAGED}, "either the other copy of a table served, or it was refused"


def forge(place: Path, file: Path, number: int, batch: Batch) -> None:
    """Give a record other tables and payload of the same lengths, and make every checksum fit."""
    index = scanned(place, file)
    data = bytearray(file.read_bytes())
    at = int(index.offsets[number])
    tag = index.stored_table(number)[-16:]
    stored = bytes(batch.table) + batch.frames + tag
    assert len(stored) == len(index.stored_table(number)) and len(batch.payload) == index.payload_range(number)[1]
    fields = bytes(data[at : at + RECORD.size - CHECKSUM.size])
    head = fields + CHECKSUM.pack(codec.checksum(index.header.salt, fields, stored))
    data[at : at + len(head) + len(stored) + len(batch.payload)] = head + stored + bytes(batch.payload)
    headers = [index.records[each].tobytes() for each in range(index.record_count)]
    tables = [index.stored_table(each) for each in range(index.record_count)]
    headers[number], tables[number] = head, stored
    data[index.length :] = codec.pack_seal(index.header.salt, headers, tables, index.length, index.last_sequence)
    file.write_bytes(data)


def batches(place: Path, source: str) -> list[tuple[Path, int]]:
    """Where each BATCH of a source is: file and number."""
    return [
        (file, number)
        for file in segments(place, source)
        for index in [scanned(place, file)]
        for number in range(index.record_count)
        if index.type(number) == codec.RecordType.BATCH
    ]


def rewrite_all(store: Store, source: str = "web1") -> None:
    for row in store.context.catalogue.segments(source, 1):
        rewrite(store.context, row, None, CompactionReport(), lambda: None)


def stored(place: Path, file: Path, number: int) -> Batch:
    index, data = scanned(place, file), file.read_bytes()
    begin, length = index.payload_range(number)
    frames = index.frames[index.frame_rows(number)].tobytes()
    return Batch(index.table(number), frames, data[begin : begin + length])


def same_sized(place: Path) -> Source:
    """Two sources, on each two segments with two records of the same length."""
    with Store.create(place, options=SAMPLE_OPTIONS) as store:
        for name in ("shop", "web1"):
            source = Source(store, name, disk=SIZE)
            for number in range(2):
                source.write(1, 0, random.Random(number).randbytes(400), level=None)
                source.write(1, 0, random.Random(9 - number).randbytes(400), level=None)
                source.cut(f"cut {number}")
                source.commit()
                source.writer.close()
                if number == 0:
                    source.writer = store.writer(name, generation=1)
    return source


@pytest.mark.parametrize("other", ["record", "segment", "source"])
def test_a_frame_from_elsewhere_is_refused_though_all_checksums_fit(place: Path, other: str) -> None:
    source = same_sized(place)
    mine, theirs = batches(place, "web1"), batches(place, "shop")
    assert mine[0][0] == mine[1][0] != mine[2][0]
    forge(place, *mine[0], stored(place, *{"record": mine[1], "segment": mine[2], "source": theirs[0]}[other]))
    assert refusal(place, source) is DAMAGED


def test_an_extent_that_is_moved_is_refused_though_all_checksums_fit(place: Path) -> None:
    source = same_sized(place)
    file = segments(place)[0]
    batch = stored(place, file, 1)
    row = list(EXTENT.unpack(batch.table))
    row[2] = 5 * BLOCK_BYTES
    forge(place, file, 1, Batch(EXTENT.pack(*row), batch.frames, batch.payload))
    assert refusal(place, source) is DAMAGED


def test_a_segment_of_an_earlier_revision_that_is_put_back_is_refused(place: Path) -> None:
    source = life(place)
    before = {file.name: file.read_bytes() for file in segments(place)}
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        rewrite_all(store)
    assert refusal(place, source) is None
    for file in {file for file, _ in batches(place, "web1")}:
        new = file.read_bytes()
        assert file.name not in before
        file.write_bytes(before[file.name.replace(".0002", ".0001")])
        assert refusal(place, source) is DAMAGED
        file.write_bytes(new)


def test_a_segment_in_clear_does_not_pass_for_an_encrypted_one(place: Path) -> None:
    source = same_sized(place)
    file = segments(place)[0]
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        header = scanned(place, file).header
        row = store.context.catalogue.segment("web1", 1, header.segment)
        assert row is not None
    plain = replace(header, version=2, key=b"", key_salt=b"")
    file.write_bytes(plain.pack().ljust(row.length, b"\0"))
    assert refusal(place, source) is DAMAGED


def test_a_longer_segment_in_clear_does_not_pass_where_only_its_beginning_is_wanted(place: Path) -> None:
    """Its length is not that of the one that was committed, so that nobody compares its seal."""
    source = same_sized(place)
    file = segments(place)[0]
    with Store.create(place.parent / "other", options=SAMPLE_OPTIONS, keks=None) as other:
        forger = Source(other, disk=SIZE)
        for _ in range(4):
            forger.write(1, 0, b"forged!!" * 50, level=None)
        forger.commit()
        crash(forger.writer)
    (forged,) = segments(place.parent / "other")[:1]
    reader = LocalStorage(forged.parent).open(forged.name)
    header, length = read_header(reader)
    with Store.open(place) as store:
        head = replace(header, store=store.identity).pack()
    file.write_bytes(head + forged.read_bytes()[length:])
    assert refusal(place, source) is DAMAGED
    with (
        Store.open(place, options=SAMPLE_OPTIONS, read_only=True) as store,
        pytest.raises(DrengineError, match="encrypt"),
    ):
        store.context.records.read(Address("web1", 1, 1, 1), 0, 400)


def test_a_rebuild_tells_of_segments_in_clear(place: Path) -> None:
    source = in_clear(place)
    Store.encrypt(place, KEKS, options=SAMPLE_OPTIONS)
    (place / CATALOGUE_NAME).unlink()
    assert any("in clear" in line for line in Store.rebuild(place, options=SAMPLE_OPTIONS).lost)
    assert refusal(place, source) is None


def test_a_source_that_only_looks_in_leaves_no_keyring(place: Path) -> None:
    with Store.create(place) as store:
        store.ensure_source("stranger")
        store.writer("stranger", generation=1).close()
        assert store.forget_empty("stranger")
    assert sorted(path.name for path in (place / "keys").iterdir()) == ["STORE"]


def change_rows(place: Path, statement: str, *values: object) -> None:
    """Change the catalogue as somebody would who knows how its rows' checksums are made."""
    db = sqlite3.connect(place / CATALOGUE_NAME)
    db.execute(statement, values)
    for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        keys = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[5]]
        for *found, _ in db.execute(f"SELECT * FROM {table}").fetchall():
            by = dict(zip(columns, found, strict=False))
            where = " AND ".join(f"{key} = ?" for key in keys)
            total = row_checksum(table, tuple(found))
            db.execute(f"UPDATE {table} SET checksum = ? WHERE {where}", (total, *(by[key] for key in keys)))
    db.commit()
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM point WHERE sequence = (SELECT max(sequence) FROM point)",
        "UPDATE point SET pinned = 0, received_ns = received_ns + 1",
        "UPDATE source SET generation = generation + 1",
        "DELETE FROM segment WHERE segment = (SELECT max(segment) FROM segment)",
        "UPDATE segment SET seal = x''",
        "UPDATE epoch SET number = number + 5",
        "DELETE FROM head",
        "UPDATE head SET sum = zeroblob(32)",
        "INSERT INTO removal VALUES ('web1', 1, 1, 1, 0)",
    ],
)
def test_whoever_changes_the_catalogue_and_its_checksums_is_found_out(place: Path, statement: str) -> None:
    source = life(place)
    change_rows(place, statement)
    assert refusal(place, source) is STORE_TAMPERED


def test_rows_of_an_earlier_transaction_do_not_pass_under_the_newest_number(place: Path) -> None:
    source = life(place)
    old = (place / CATALOGUE_NAME).read_bytes()
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        store.pin(newest(store))
        epoch = store.context.catalogue.epoch()
    (place / CATALOGUE_NAME).write_bytes(old)
    for suffix in ("-wal", "-shm"):
        (place / f"{CATALOGUE_NAME}{suffix}").unlink(missing_ok=True)
    change_rows(place, "UPDATE epoch SET number = ?", epoch.number)
    assert refusal(place, source) is STORE_TAMPERED


def test_the_whole_store_put_back_is_told_by_its_head_alone(place: Path, tmp_path: Path) -> None:
    """What is not defended, unless somebody noted the head elsewhere."""
    source = life(place)
    shutil.copytree(place, tmp_path / "old")
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        store.pin(newest(store))
        noted = store.head
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "old", place)
    assert refusal(place, source) is None
    with Store.open(place) as store:
        lineage, number, _ = store.head.split("-")
    assert lineage == noted.split("-")[0] and int(number) < int(noted.split("-")[1])


def test_what_a_row_is_worth_is_not_to_be_seen(place: Path) -> None:
    """Who knew what 256 rows are worth could compute a set of them that together are worth nothing, and put it in."""
    life(place)
    seen = []
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        point, catalogue = newest(store), store.context.catalogue
        for _ in range(3):
            for change in (store.pin, store.unpin):
                before = catalogue.head()
                change(point)
                after = catalogue.head()
                assert before and after
                seen.append(int.from_bytes(before.sum) ^ int.from_bytes(after.sum))
    assert len(set(seen)) == len(seen), "the same rows came and went"


def test_a_seal_of_another_length_is_none(place: Path) -> None:
    source = life(place)
    change_rows(place, "UPDATE head SET sum = ?", b"\x01" + bytes(32))
    assert refusal(place, source) is STORE_TAMPERED


def test_a_transaction_begins_on_no_forged_row(place: Path) -> None:
    life(place)
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        point = newest(store)
        change_rows(place, "UPDATE head SET sum = zeroblob(32)")
        with pytest.raises(DrengineError) as caught:
            store.pin(point)
        assert caught.value.kind is STORE_TAMPERED


def test_a_scrub_notices_what_was_changed_while_the_store_was_open(place: Path) -> None:
    life(place)
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        change_rows(place, "UPDATE point SET pinned = 1")
        with pytest.raises(DrengineError) as caught:
            store.scrub()
        assert caught.value.kind is STORE_TAMPERED


def test_a_forged_layer_is_made_again(place: Path) -> None:
    source = life(place)
    storage = LocalStorage(place)
    names = [name for name in storage.list("segments/web1/") if name.endswith(".map")]
    key = keys_of(place).store_key("layers")
    maps = {name: open_layer(storage, name, key) for name in names}
    for name in names:
        for forged in (b"", b"another key"):
            write_layer(storage, name, maps[names[0]], forged)
            assert refusal(place, source) is None
    storage.put(names[1], (place / names[0]).read_bytes())
    assert refusal(place, source) is None


def test_a_forged_manifest_is_none(place: Path) -> None:
    life(place)
    storage, keys = LocalStorage(place), keys_of(place)
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        store.pin(newest(store))
        identity, source = store.identity, newest(store).source
    known, unreadable = newest_manifests(storage, identity, keys)
    manifest = known[source].manifest
    assert unreadable == []
    for key in (b"", b"another key"):
        forged = manifest_name(source, manifest.number + 1)
        storage.put(forged, pack_manifest(manifest, key))
        assert newest_manifests(storage, identity, keys) == (known, [forged])


# ---- keys ----


def test_without_its_key_a_store_says_so(place: Path) -> None:
    source = life(place)
    for keks, kind in ((None, KEY_NEEDED), (KeyEncryptionKeys(OTHER_KEK), KEY_WRONG)):
        for do in (Store.open, Store.rebuild):
            with pytest.raises(DrengineError) as caught:
                do.__wrapped__(place, keks=keks) if hasattr(do, "__wrapped__") else do(place, keks=keks)
            assert caught.value.kind is kind
    assert refusal(place, source) is None


def test_a_store_in_clear_is_not_taken_for_the_encrypted_one(place: Path) -> None:
    Store.create(place, keks=None).close()
    with pytest.raises(DrengineError) as caught:
        Store.open(place)
    assert caught.value.kind is STORE_IN_CLEAR


@pytest.mark.parametrize("lost", ["missing", "damaged", "foreign", "older"])
def test_a_lost_keyring_is_told_and_nothing_is_removed(place: Path, lost: str) -> None:
    source = life(place)
    ring, older = place / keys_name("web1"), b""
    with Store.open(place, options=SAMPLE_OPTIONS, clock=ManualClock(10**18)) as store:
        older = ring.read_bytes()
        store.rotate_key("web1")
        again = store.writer("web1", generation=1)
        again.append_batch(again.appended_sequence + 1, again.durable.mark, _some(), generation=1)
        again.commit(generation=1)
        again.close()
    kept = ring.read_bytes()
    before = {file: file.read_bytes() for file in segments(place)}
    match lost:
        case "missing":
            ring.unlink()
        case "damaged":
            ring.write_bytes(kept[:30] + b"?" + kept[31:])
        case "foreign":
            ring.write_bytes((place / keys_name("shop")).read_bytes())
        case "older":
            ring.write_bytes(older)
    kind = KEY_WRONG if lost == "foreign" else KEY_MISSING
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        if lost != "older":
            with pytest.raises(DrengineError) as caught, store.view(newest(store)) as view:
                view.read(1, 0, SIZE)
            assert caught.value.kind is kind
            with pytest.raises(DrengineError) as caught:
                store.writer("web1", generation=1)
            assert caught.value.kind is kind
        with pytest.raises(DrengineError) as caught, store.head_view("web1") as view:
            view.read(1, 0, SIZE)
        assert caught.value.kind is kind
        policy = RetentionPolicy(keep_all_seconds=0, steps=())
        store.retain(policy, 2 * 10**18)
        try:
            assert store.compact().segments_skipped
        except DrengineError as error:
            assert error.kind is kind
        assert not store.context.catalogue.damage("web1")
    assert {file: file.read_bytes() for file in segments(place)} == before
    ring.write_bytes(kept)
    left = {point.id for point in Store.open(place).points("web1")}
    source.points = {id: disk for id, disk in source.points.items() if id in left}
    assert refusal(place, source) is None


def _some() -> Batch:
    from tests.store.harness import batch

    return batch((1, 7 * BLOCK_BYTES, b"some"))


def test_a_new_data_key_is_for_new_segments_and_old_ones_are_read(place: Path) -> None:
    source = life(place)
    old = {scanned(place, file).header.key for file in segments(place)}
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        source.store, source.writer = store, store.writer("web1", generation=1)
        made = store.rotate_key("web1")
        source.write(1, 0, NOISE[::-1])
        source.cut("rotated")
        source.commit()
        source.writer.close()
    new = {scanned(place, file).header.key for file in segments(place)} - old
    assert len(old) == 1 and new == {bytes.fromhex(made)}
    assert refusal(place, source) is None


def test_an_erased_source_says_so_and_the_others_are_whole(place: Path) -> None:
    web, shop = life(place), Source.__new__(Source)
    clock = ManualClock(10**18)
    with Store.open(place, options=SAMPLE_OPTIONS, clock=clock) as store:
        with store.view(newest(store)) as view:
            assert view.read(1, 0, SIZE) == web.disk.data[1]
            assert store.erase("web1") == 1
            with pytest.raises(DrengineError) as caught:
                view.read(1, 0, SIZE)
            assert caught.value.kind is SOURCE_ERASED
        assert all(point.erased and point.damaged for point in store.points("web1"))
        assert not any(point.damaged for point in store.points("shop"))
        assert store.erase("web1") == 0, "again: nothing is left"
        point = store.points("web1")[-1]
        with pytest.raises(DrengineError) as caught:
            store.promote(point, expected_generation=1)
        assert caught.value.kind is SOURCE_ERASED
        with store.view(newest(store, "shop")) as view:
            assert view.read(1, 0, SIZE) == web.disk.data[1]
        store.scrub()
        assert all(point.erased for point in store.points("web1"))
        store.retain(RetentionPolicy(keep_all_seconds=10, steps=()), clock.now_ns())
        assert store.compact().segments_removed, "what nobody can see goes as ever"
        writer = store.writer("web1", generation=1)
        writer.append_batch(writer.appended_sequence + 1, writer.durable.mark, _some(), generation=1)
        writer.commit(generation=1)
        writer.close()
        assert [bool(key.erased_ns) for key in store.encryption().sources[1].keys] == [True, False]
    for name in (CATALOGUE_NAME, f"{CATALOGUE_NAME}-wal", f"{CATALOGUE_NAME}-shm"):
        (place / name).unlink(missing_ok=True)
    Store.rebuild(place, options=SAMPLE_OPTIONS)
    del shop


def test_a_source_that_is_written_is_not_erased(place: Path) -> None:
    life(place)
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        writer = store.writer("web1", generation=1)
        with pytest.raises(DrengineError) as caught:
            store.erase("web1")
        assert caught.value.kind is BRANCH_BUSY
        writer.close()


def test_a_new_kek_wraps_all_keyrings_and_no_segment_is_written(place: Path) -> None:
    source = life(place)
    before = {file: file.stat().st_mtime_ns for file in segments(place)}
    both = KeyEncryptionKeys(OTHER_KEK, [KEKS.newest])
    with Store.open(place, keks=both) as store:
        assert store.rewrap_keys() == 3
        assert store.rewrap_keys() == 0
    assert refusal(place, source, KeyEncryptionKeys(OTHER_KEK)) is None
    assert refusal(place, source, KEKS) is KEY_WRONG
    assert {file: file.stat().st_mtime_ns for file in segments(place)} == before


class Killed(BaseException):
    pass


def killing(storage: LocalStorage, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the storage die at its n-th change."""
    left = [call]
    for name in ("put", "delete", "create", "sync_dir"):
        real = getattr(LocalStorage, name)

        def dying(self: LocalStorage, *args: object, real: object = real) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(LocalStorage, name, dying)


@pytest.mark.parametrize("call", range(4))
def test_a_rewrap_that_is_killed_anywhere_leaves_everything_readable(
    place: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = life(place)
    both = KeyEncryptionKeys(OTHER_KEK, [KEKS.newest])
    with Store.open(place, keks=both) as store, monkeypatch.context() as patch:
        killing(LocalStorage(place), call, patch)
        try:
            store.rewrap_keys()
        except Killed:
            assert call < 3
    assert refusal(place, source, both) is None
    with Store.open(place, keks=both) as store:
        assert store.rewrap_keys() == 3 - min(call, 3)
    assert refusal(place, source, KeyEncryptionKeys(OTHER_KEK)) is None


# ---- a store that was in clear ----


def in_clear(place: Path) -> Source:
    clock = ManualClock()
    with Store.create(place, options=SAMPLE_OPTIONS, clock=clock, keks=None) as store:
        source = Source(store, disk=SIZE)
        for number, block in enumerate((TEXT, NOISE)):
            source.write(1, number * BLOCK_BYTES, block)
            source.cut(f"cut {number}")
            source.commit()
        source.writer.close()
    return source


def test_a_store_in_clear_is_encrypted_by_compaction(place: Path) -> None:
    source = in_clear(place)
    Store.encrypt(place, KEKS, options=SAMPLE_OPTIONS)
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        status = store.encryption()
        assert status.clear_bytes and not status.sources[0].encrypted_bytes
        with pytest.raises(DrengineError) as caught:
            store.erase("web1")
        assert caught.value.kind in (STORE_IN_CLEAR, KEY_MISSING)
        source.store, source.writer = store, store.writer("web1", generation=1)
        source.write(1, 3 * BLOCK_BYTES, b"new")
        source.cut("new")
        source.commit()
        source.writer.close()
        assert refusal(place, source) is None
        assert store.compact().segments_rewritten
        assert not store.encryption().clear_bytes
        assert not store.compact().segments_rewritten
    assert refusal(place, source) is None
    data = b"".join(everything(place).values())
    assert NOISE[:24] not in data and xxh3_128_digest(NOISE) not in data


@pytest.mark.parametrize("call", range(3))
def test_an_encryption_that_is_killed_is_gone_on_with(place: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = in_clear(place)
    with monkeypatch.context() as patch:
        killing(LocalStorage(place), call, patch)
        try:
            Store.encrypt(place, KEKS, options=SAMPLE_OPTIONS)
        except Killed:
            assert call < 2
    Store.encrypt(place, KEKS, options=SAMPLE_OPTIONS)
    assert refusal(place, source) is None
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        assert store.is_encrypted and store.head


def test_an_encrypted_store_is_rebuilt_from_its_segments(place: Path) -> None:
    source = life(place)
    for name in (CATALOGUE_NAME, f"{CATALOGUE_NAME}-wal", f"{CATALOGUE_NAME}-shm"):
        (place / name).unlink(missing_ok=True)
    assert Store.rebuild(place, options=SAMPLE_OPTIONS).lost == []
    assert refusal(place, source) is None
    with Store.open(place, options=SAMPLE_OPTIONS) as store:
        assert store.head and not store.encryption().clear_bytes and not store.scrub().records_damaged


def test_a_rebuild_takes_no_forged_record(place: Path) -> None:
    source = same_sized(place)
    file = segments(place)[0]
    batch = stored(place, file, 1)
    row = list(EXTENT.unpack(batch.table))
    row[2] = 5 * BLOCK_BYTES
    forge(place, file, 1, Batch(EXTENT.pack(*row), batch.frames, batch.payload))
    for name in (CATALOGUE_NAME, f"{CATALOGUE_NAME}-wal", f"{CATALOGUE_NAME}-shm"):
        (place / name).unlink(missing_ok=True)
    assert Store.rebuild(place, options=SAMPLE_OPTIONS).lost
    assert refusal(place, source) is DAMAGED


def test_a_note_of_an_epoch_that_never_was_is_refused(place: Path) -> None:
    source = life(place)
    with Store.open(place) as store:
        epoch = store.context.catalogue.epoch()
    note = EpochNote(place)
    note.write(Epoch(epoch.lineage, epoch.number + 9))
    note.close()
    found = refusal(place, source)
    assert found is not None and found.id == "catalogue-damaged"


assert FRAME.size == 24
