"""The tap against an oracle, under random schedules of clients, pipeline, target, kills and clean restarts.

The key invariant: whenever a cut is offered, the replica equals all disks together as they were after some
batch of writes, in order: no earlier than the cut before it, and the newest one when nothing was waiting.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.agent.capture.tap.rig import SIZES, Replica, Site, trim, write, zero

RARE = "lose-session kill kill-half restart unreadable journal-error disk-error doubt time rot"
STEPS = st.sampled_from(["write"] * 12 + ["pull"] * 6 + ["commit"] * 4 + ["late-read"] * 3 + RARE.split())


class World:
    def __init__(self, path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.site = Site(path, journal_bytes=self.random.choice([4096, 12 << 10, 40 << 10]))
        self.replica = Replica(self.site)
        self.history = [self.site.disks()]
        self.cut_at = -1
        self.stamp = 0

    def step(self, name: str) -> None:
        getattr(self, name.replace("-", "_"))()

    def requests(self, volume: int) -> list:
        made = []
        for _ in range(self.random.choice([1, 1, 2, 5])):
            self.stamp += 1
            size = SIZES[volume]
            length = min(size, self.random.choice([1, 7, 512, 4096, 4096, 9000]))
            offset = self.random.randrange(size - length + 1)
            if self.random.random() < 0.5:
                offset -= offset % 4096
            kind = self.random.choice("wwwwzt")
            if kind == "w":
                made.append(write(offset, (self.stamp.to_bytes(4, "big") * (length // 4 + 1))[:length]))
            else:
                made.append((zero if kind == "z" else trim)(offset, length))
        return made

    def write(self) -> None:
        volume = self.random.choice(sorted(SIZES))
        self.site.apply(volume, *self.requests(volume))
        self.history.append(self.site.disks())

    def pull(self) -> None:
        self.judge(self.replica.pull(self.random.choice([1, 5000, 1 << 20])))

    def late_read(self) -> None:
        """Writes slip in between the tracker's answer and the reading of its ranges (fault 23)."""
        changes = self.site.tap.changes(self.replica.at, bytes_max=self.random.choice([1, 9000, 1 << 20]))
        self.write()
        self.replica.read(changes)
        self.judge(changes, newest=False)

    def judge(self, changes, *, newest: bool = True) -> None:
        if not changes.cut_ok:
            return
        image = self.replica.image()
        matches = [i for i, disks in enumerate(self.history) if disks == image and i >= self.cut_at]
        assert matches, "a cut shows a state that never was, or one older than the last cut"
        if newest and not changes.more:
            assert image == self.history[-1]
        self.cut_at = matches[0]

    def commit(self) -> None:
        self.replica.commit()
        self.committed_cut = self.cut_at

    committed_cut = -1

    def lose_session(self) -> None:
        self.replica.lose_session()
        self.cut_at = self.committed_cut

    def kill(self) -> None:
        self.site.crash()
        self.site.open()
        self.lose_session()
        self.history.append(self.site.disks())
        assert self.history[-1] == self.history[-2]

    def kill_half(self) -> None:
        """Killed after the journal and before the volume, or before both; the client never heard of it."""
        volume = self.random.choice(sorted(SIZES))
        tap = self.site.tap
        before_journal = self.random.random() < 0.3
        requests = self.requests(volume)
        was_journaling = not tap._degraded
        tap._write = lambda volume, requests: set()
        tap._journal.applied = lambda position: None
        if before_journal:
            tap._journal.append = lambda *arguments: 0
        if was_journaling:
            self.site.apply(volume, *requests)
        self.site.crash()
        self.site.open()
        self.lose_session()
        self.history.append(self.site.disks())

    def restart(self) -> None:
        self.site.close()
        self.site.open()
        self.lose_session()

    def unreadable(self) -> None:
        """Some of the ranges can't be read (fault 26): they go back."""
        changes = self.site.tap.changes(self.replica.at, bytes_max=1 << 20)
        bad = [part for part in changes.ranges if self.random.random() < 0.5]
        self.site.tap.mark_dirty(bad)
        good = [part for part in changes.ranges if part not in bad]
        object.__setattr__(changes, "ranges", good)
        self.replica.read(changes)
        self.judge(changes)
        assert not (bad and changes.cut_ok)

    def journal_error(self) -> None:
        """The journal's disk fails for one write (ENOSPC or EIO, perhaps after a part was written)."""
        journal = self.site.tap._journal
        whole = journal._write

        def broken(place, parts, length):
            if self.random.random() < 0.5:
                whole(place, [b"".join(parts)[: length // 2]], length // 2)
            raise OSError(self.random.choice([5, 28]), "injected")

        journal._write = broken
        self.write()
        journal._write = whole

    def disk_error(self) -> None:
        """The volume fails one write: its client gets an error and the range's content is unknown."""
        number = self.random.choice(sorted(SIZES))
        volume = self.site.tap.volumes[number]

        def broken(*arguments, **options):
            raise OSError(5, "injected")

        names = ("write", "write_all", "zero")
        for name in names:
            setattr(volume, name, broken)
        requests = self.requests(number)
        assert self.site.apply(number, *requests) == set(range(len(requests)))
        for name in names:
            delattr(volume, name)

    def doubt(self) -> None:
        self.site.tap.request_rescan("operator")

    def time(self) -> None:
        self.site.clock.advance(31)

    rotten = False

    def rot(self) -> None:
        """A bit of the ring flips: nothing unacknowledged there is shipped wrong, at worst rescanned."""
        ring = self.site.path / "journal" / "ring"
        with ring.open("r+b") as file:
            place = self.random.randrange(ring.stat().st_size)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << self.random.randrange(8)]))
        self.rotten = True

    def finish(self) -> None:
        self.site.clock.advance(31)
        self.replica.catch_up()
        assert self.rotten or "journal-damaged" not in self.replica.scans
        assert self.site.tap.reason == "none"
        assert not self.site.lost()
        assert self.site.tap.backlog_bytes() == 0
        assert self.site.tap.behind_since_ns() == 0
        self.site.crash()


@pytest.mark.fault(20)
@pytest.mark.fault(22)
@pytest.mark.fault(23)
@pytest.mark.fault(24)
@pytest.mark.fault(26)
@pytest.mark.fault(28)
@pytest.mark.fault(31)
@pytest.mark.fault(63)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.integers(0, 2**32), st.lists(STEPS, min_size=5, max_size=60))
def test_every_cut_is_a_moment_of_all_disks(seed: int, steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as path:
        world = World(Path(path), seed)
        for name in steps:
            world.step(name)
        world.finish()
