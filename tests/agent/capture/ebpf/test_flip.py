"""No completed write is ever lost by a flip: writers hammer while the halves are swapped again and again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from drengine_agent.capture.ebpf import syscalls
from drengine_agent.capture.ebpf.watch import Watch
from tests.agent.capture.ebpf.hammer import Hammer, hammering
from tests.agent.capture.ebpf.rig import BLOCK, MIB, blocks_of, loop_device, needs_kernel, watched, watching
from tests.agent.capture.ebpf.slow import slow_programs

pytestmark = needs_kernel
SIZE = 512 * MIB


class Ledger:
    """Checks each answer: what completed before a flip is in that flip's answer or in the one before.

    A kernel may leave a program's run out. The watch must find that out by itself, and hand the block out late.

    Attributes:
        checked: writes that were looked for.
        missing: blocks of completed writes that no answer had yet.
        invented: blocks of answers that nobody wrote, apart from those after a healing.
    """

    def __init__(self, hammers: list[Hammer]) -> None:
        self._hammers = hammers
        self._before = [hammer.completed() for hammer in hammers]
        self._last: set[int] = set()
        self._healed = 0
        self._flips = 0
        self.checked = 0
        self.missing: set[int] = set()
        self.invented: set[int] = set()

    def flip(self, watch: Watch) -> None:
        """Take an answer and look."""
        now = [hammer.completed() for hammer in self._hammers]
        watch.flip()
        answer = {block for _, block in blocks_of(watch.pending())}
        watch.clear_pending()
        after = [hammer.completed() for hammer in self._hammers]
        wanted: set[int] = set()
        possible: set[int] = set()
        for hammer, start, end, latest in zip(self._hammers, self._before, now, after, strict=True):
            wanted |= hammer.blocks(start, end)
            possible |= hammer.blocks(start, latest + 2)
            self.checked += end - start
        self.missing = (self.missing | (wanted - self._last)) - answer
        healed = watch.statistics().healed
        if self.checked and healed == self._healed:
            # The first answer also has what was written from the flip before the ledger until the ledger began.
            self.invented |= answer - possible - self._last if self._flips else set()
            assert healed or not self.missing, "lost, and nobody noticed"
        self._healed = healed
        self._flips += 1
        self._before, self._last = now, answer


def run(folder: Path, flips: int) -> set[int]:
    """So many flips under load; the blocks that were lost or invented."""
    with (
        loop_device(folder / "disk.img", SIZE) as disk,
        watching(watched(disk)) as watch,
        hammering(disk, folder, SIZE // BLOCK) as hammers,
    ):
        while not all(hammer.completed() for hammer in hammers):
            time.sleep(0.01)
        watch.flip()
        watch.clear_pending()
        ledger = Ledger(hammers)
        for _ in range(flips):
            ledger.flip(watch)
        for hammer in hammers:
            hammer.stop()
        for _ in range(50):
            ledger.flip(watch)
            if watch.is_quiet():
                break
        assert watch.is_quiet()
        assert watch.check() == "none"
        assert ledger.checked > flips
        print(f"lost {ledger.missing}, invented {ledger.invented}, {watch.statistics()}")
        return ledger.missing | ledger.invented


@pytest.mark.fault(23)
def test_writers_hammer_while_the_halves_are_swapped_and_no_bit_is_lost(tmp_path: Path) -> None:
    assert run(tmp_path, 250) == set()


@pytest.mark.fault(23)
def test_a_program_that_lingers_between_reading_and_marking_loses_nothing_either(tmp_path: Path) -> None:
    with slow_programs():
        assert run(tmp_path, 150) == set()


def test_without_the_grace_period_the_same_schedule_does_lose_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two tests above could fail."""
    monkeypatch.setattr(syscalls, "grace_period", lambda: None)
    with slow_programs(copies=1), pytest.raises(AssertionError):
        for _ in range(10):
            assert run(tmp_path, 400) == set()
