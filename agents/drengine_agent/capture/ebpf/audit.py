"""Proof that no completion went by unseen: the programs' sums against the kernel's own statistics of the disk.

A kernel may leave a program's run out without telling anyone (there are kernels that run none in the name of certain
tasks). So each copy of the completion program adds up the sectors that it saw, and the kernel adds the same numbers to
/sys/block/X/stat, just after. Read the statistics first and the sums afterwards: if nothing was left out, the sums are
not behind. When they are, the ledger says what was issued lately; all of that is handed out again, which costs some
reading and no rescan.

Disks that complete requests only; a device mapper or md device counts its bios before the event.
"""

from __future__ import annotations

import enum
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from drengine_agent.capture.ebpf import layout as at
from drengine_agent.capture.ebpf import program
from drengine_agent.capture.ebpf.bits import load_word, runs, store_word
from drengine_agent.capture.ebpf.device import SYSFS, major_minor
from drengine_agent.capture.ebpf.layout import Layout, Region

_TRIES: Final = 40
_WRITE_SECTORS_FIELD, _DISCARD_SECTORS_FIELD = 6, 13
_WORD: Final = 1 << 64
_EMPTY, _ROTATED, _DRAINED = 0, 1, 2


class Verdict(enum.Enum):
    """What a comparison says.

    Attributes:
        EXACT: every completion was seen, at a moment without any under way.
        BUSY: too much goes on to tell.
        SHORT: at least one completion was left out.
    """

    EXACT = "exact"
    BUSY = "busy"
    SHORT = "short"


class Audit:
    """The comparison for all disks of a watch that complete requests. Not thread-safe."""

    def __init__(
        self, control: mmap.mmap, bits: mmap.mmap, layout: Layout, missed: Callable[[], tuple[int, ...]]
    ) -> None:
        """`missed` gives the runs that the kernel says it left out: of the ledger's program, then of each copy."""
        self._control = control
        self._bits = bits
        self._layout = layout
        self._missed = missed
        self._seen: dict[int, tuple[tuple[int, ...], int]] = {}
        self._regions = [
            (index, region, _open(region, "stat"), _open(region, "inflight"))
            for index, region in enumerate(layout.regions)
            if not region.bio and _counts(region)
        ]

    def close(self) -> None:
        """Give the files back."""
        for _, _, stat_fd, inflight_fd in self._regions:
            os.close(stat_fd)
            os.close(inflight_fd)
        self._regions = []

    def begin(self) -> None:
        """Take the difference between sums and statistics as it is now for the right one.

        Too large a difference only means that a loss is believed that was none; it must never be too small.
        """
        missed = self._missed()
        for index, _, stat_fd, _ in self._regions:
            best: tuple[int, ...] | None = None
            for _ in range(3):  # an event half way between sum and statistics makes the difference too large
                sample = self._sample(index, stat_fd)
                if sample is None:
                    continue
                sums, counted = sample
                balances = tuple(_signed(total - counted) for total in sums)
                best = balances if best is None else tuple(map(min, best, balances))
            if best is None:
                counted = _counted(stat_fd)
                best = tuple(_signed(total - counted) for total in self._sums(index))
            self._store_balances(index, best)
        self._store_missed(missed)

    def verdict(self) -> Verdict:
        """Compare, a few microseconds long for each disk."""
        missed = self._missed()
        copies = [copy for copy in range(program.COPIES) if missed[1 + copy] == self._stored_missed(1 + copy)]
        samples = []
        for index, _, stat_fd, inflight_fd in self._regions:
            sample = self._sample(index, stat_fd)
            if sample is None:
                return Verdict.BUSY
            sums, counted = sample
            excess = [_signed(sums[copy] - counted - self._balance(index, copy)) for copy in copies]
            if 0 not in excess:
                if excess and max(excess) < 0:
                    return Verdict.SHORT
                # More than there should be: one is half way. If it stays, the statistics left something out.
                stays = self._seen.get(index) == sample and _inflight(inflight_fd) == 0
                self._seen[index] = sample
                return Verdict.SHORT if stays else Verdict.BUSY
            samples.append((index, sample))
        if self._missed() != missed:
            return Verdict.BUSY
        for index, (sums, counted) in samples:
            self._store_balances(index, [_signed(total - counted) for total in sums])
        self._store_missed(missed)
        return Verdict.EXACT

    def ledger_is_whole(self) -> bool:
        """The kernel says that it left out no run of the ledger's program."""
        return self._missed()[0] == self._stored_missed(0)

    def issued(self) -> Iterator[tuple[int, int]]:
        """Runs of fine bits of all that was issued lately."""
        for ledger in (0, 1):
            start = self._ledger_start(ledger)
            for region in self._layout.regions:
                if region.bio:
                    continue
                first = start + region.ledger_bit // 8
                last = first + -(-region.blocks // (at.LEDGER_BLOCKS * 8))
                for bit, count in runs(self._bits[first:last]):
                    low = bit * at.LEDGER_BLOCKS
                    high = min((bit + count) * at.LEDGER_BLOCKS, region.blocks)
                    if low < high:
                        yield region.fine_bit + low, high - low

    def rotate(self) -> bool:
        """Begin a new ledger if the one before isn't needed. The caller waits for a grace period, then `rotated`."""
        if load_word(self._control, at.AT_LEDGER_STAGE) != _EMPTY:
            return False
        current = load_word(self._control, at.AT_LEDGER)
        both = 4 * self._layout.half_words + self._layout.ledger_words
        store_word(self._control, at.AT_LEDGER, both - current)
        return True

    def rotated(self) -> None:
        """Programs mark in the new ledger only."""
        store_word(self._control, at.AT_LEDGER_STAGE, _ROTATED)

    def tend(self, verdict: Verdict) -> None:
        """Forget the ledger before once all that stands in it has completed, and a comparison since then was exact."""
        stage = load_word(self._control, at.AT_LEDGER_STAGE)
        if stage == _DRAINED and verdict is Verdict.EXACT:
            first = load_word(self._control, at.AT_LEDGER) == self._ledger_start(0) // 8
            start = self._ledger_start(1 if first else 0)
            length = self._layout.ledger_words * 8
            self._bits[start : start + length] = bytes(length)
            store_word(self._control, at.AT_LEDGER_STAGE, _EMPTY)
        elif stage == _ROTATED and all(_inflight(fd) == 0 for *_, fd in self._regions):
            store_word(self._control, at.AT_LEDGER_STAGE, _DRAINED)

    def _ledger_start(self, ledger: int) -> int:
        """Its first byte in the bitmap map."""
        return (2 * self._layout.half_words + ledger * self._layout.ledger_words) * 8

    def _sample(self, index: int, stat_fd: int) -> tuple[tuple[int, ...], int] | None:
        """Sums and statistics with no event between; None while there always is one."""
        before = self._sums(index)
        for _ in range(_TRIES):
            counted = _counted(stat_fd)
            after = self._sums(index)
            if before == after:
                return after, counted
            before = after
        return None

    def _sums(self, index: int) -> tuple[int, ...]:
        here = at.AT_REGIONS + index * at.REGION_BYTES + at.REGION_SECTORS
        return tuple(load_word(self._control, here + 8 * copy) for copy in range(program.COPIES))

    def _balance(self, index: int, copy: int) -> int:
        here = at.AT_REGIONS + index * at.REGION_BYTES + at.REGION_BALANCE
        return load_word(self._control, here + 8 * copy)

    def _store_balances(self, index: int, balances: Sequence[int]) -> None:
        here = at.AT_REGIONS + index * at.REGION_BYTES + at.REGION_BALANCE
        for copy, balance in enumerate(balances):
            store_word(self._control, here + 8 * copy, balance % _WORD)

    def _stored_missed(self, number: int) -> int:
        return load_word(self._control, at.AT_MISSED + 8 * number)

    def _store_missed(self, missed: Sequence[int]) -> None:
        for number, count in enumerate(missed):
            store_word(self._control, at.AT_MISSED + 8 * number, count)


def _signed(value: int) -> int:
    value %= _WORD
    return value - _WORD if value >= _WORD >> 1 else value


def _place(region: Region) -> Path:
    major, minor = major_minor(region.disk)
    return SYSFS / f"{major}:{minor}"


def _open(region: Region, name: str) -> int:
    return os.open(_place(region) / name, os.O_RDONLY | os.O_CLOEXEC)


def _counts(region: Region) -> bool:
    """Whether the kernel keeps statistics of this disk."""
    with suppress(OSError):
        return (_place(region) / "queue/iostats").read_text().strip() != "0"
    return True


def _counted(stat_fd: int) -> int:
    """Sectors written and discarded."""
    fields = os.pread(stat_fd, 512, 0).split()
    discarded = int(fields[_DISCARD_SECTORS_FIELD]) if len(fields) > _DISCARD_SECTORS_FIELD else 0
    return int(fields[_WRITE_SECTORS_FIELD]) + discarded


def _inflight(inflight_fd: int) -> int:
    """Writes that the device has and has not completed."""
    return int(os.pread(inflight_fd, 64, 0).split()[1])
