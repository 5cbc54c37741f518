"""The ring alone: what comes back is what went in, or a refusal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.model.extents import ExtentKind
from drengine_agent.capture.tap.journal import HEADER, ROW, Journal, JournalDamagedError, JournalFullError
from drengine_agent.capture.tap.superblock import Register

EPOCH = bytes(range(16))
CAPACITY = 4096


class Ring:
    def __init__(self, path: Path) -> None:
        self.path = path / "ring"
        self.registers = memoryview(bytearray(4096)).cast("Q")
        self.opened: list[Journal] = []
        self.journal = self.open()
        self.journal.begin(EPOCH, 1000)
        self.edges = [1000]

    def open(self) -> Journal:
        journal = Journal(self.path, CAPACITY, self.registers)
        self.opened.append(journal)
        return journal

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()

    def append(self, *datas: bytes, volume: int = 1) -> int:
        rows = b"".join(ROW.pack(volume, ExtentKind.DATA, i * 100, len(data)) for i, data in enumerate(datas))
        head = self.journal.append(rows, datas, sum(map(len, datas)), 7)
        self.edges.append(head)
        return head

    def reopened(self) -> Journal:
        journal = self.open()
        head, acked = self.registers[Register.HEAD], self.registers[Register.ACKED]
        try:
            journal.recover(EPOCH, 1000, head=head, acked=acked)
        except JournalDamagedError:
            self.opened.remove(journal)
            journal.close()
            raise
        return journal


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    ring = Ring(tmp_path)
    yield ring
    ring.close()


def read_all(journal: Journal, start: int) -> list[bytes]:
    found = []
    while start < journal.head:
        writes, start, _ = journal.read(start, journal.head, 700)
        found += [bytes(write.data) for write in writes]
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.booleans(), st.booleans()), max_size=60))
def test_order_and_bytes_survive_many_laps(tmp_path_factory, steps) -> None:
    ring = Ring(tmp_path_factory.mktemp("ring"))
    journal, kept, acked = ring.journal, [], 1000
    for index, (length, acknowledge, reopen) in enumerate(steps):
        data = bytes([index]) * length
        try:
            kept.append((ring.append(data), data))
        except JournalFullError:
            assert journal.head + length > journal.acked + CAPACITY // 2 - 2 * HEADER.size
        if acknowledge and kept:
            acked, _ = kept[len(kept) // 2]
            journal.acknowledge(acked)
            kept = kept[len(kept) // 2 + 1 :]
        if reopen:
            ring.journal = journal = ring.reopened()
        assert read_all(journal, acked) == [data for _, data in kept]
        assert journal.used_bytes == journal.head - acked
        assert bool(journal.oldest_ns) == bool(journal.used_bytes)
    ring.close()


@pytest.mark.fault(22)
def test_a_batch_torn_at_any_byte_is_dropped_whole_and_what_was_before_is_kept(ring: Ring) -> None:
    ring.append(b"first", b"second")
    before = ring.journal.head
    head = ring.append(b"x" * 50, b"y" * 31)
    whole = ring.path.read_bytes()
    for length in range(head - before):
        ring.registers[Register.HEAD] = before  # killed in the middle of the write
        torn = bytearray(whole)
        torn[before + length : head] = bytes(head - before - length)
        ring.path.write_bytes(torn)
        journal = ring.reopened()
        complete = bytes(torn[before:head]) == whole[before:head]
        assert journal.head == (head if complete else before), length
        ring.opened.remove(journal)
        journal.close()


@pytest.mark.fault(22)
def test_every_flipped_bit_in_what_is_unacknowledged_is_found(ring: Ring) -> None:
    ring.append(b"first", b"second")
    head = ring.append(b"third")
    whole = ring.path.read_bytes()
    for place in range(1000, head):
        for bit in range(8):
            rotten = bytearray(whole)
            rotten[place] ^= 1 << bit
            ring.path.write_bytes(rotten)
            with pytest.raises(JournalDamagedError):
                ring.reopened()
            with pytest.raises(JournalDamagedError):
                read_all(ring.journal, 1000)


def test_a_stale_record_behind_a_new_tail_is_not_taken_for_a_new_one(ring: Ring) -> None:
    ring.append(b"a" * 10)
    before = ring.journal.head
    ring.append(b"b" * 10)
    ring.append(b"stale")
    ring.registers[Register.HEAD] = before  # the kernel lost the middle of a torn tail, not its end
    with ring.path.open("r+b") as file:
        file.seek(before)
        file.write(bytes(HEADER.size))
    ring.journal = ring.reopened()
    assert ring.journal.head == before
    ring.append(b"c" * 10)
    assert read_all(ring.reopened(), 1000) == [b"a" * 10, b"c" * 10]


def test_a_journal_in_another_epoch_has_no_old_records(ring: Ring) -> None:
    ring.append(b"old")
    ring.journal.begin(os.urandom(16), 1000)
    with pytest.raises(JournalDamagedError):
        ring.journal.read(1000, 2000, 100)


def test_a_kill_after_the_end_of_the_ring_was_skipped_is_no_damage(ring: Ring) -> None:
    ring.append(b"z" * (CAPACITY - 1000 - HEADER.size - ROW.size - 20))
    ring.journal.acknowledge(ring.journal.head)
    ring.journal._pad(ring.journal.head % CAPACITY, 20, 7)
    assert ring.reopened().head == CAPACITY


def test_a_directory_that_is_missing_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DrengineError) as caught:
        Journal(tmp_path / "no" / "ring", CAPACITY, memoryview(bytearray(64)).cast("Q"))
    assert caught.value.kind.id == "journal-unusable"
