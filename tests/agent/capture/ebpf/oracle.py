"""The oracle: whatever is done to a disk, what the tracker says holds everything that a full comparison finds.

`python -m tests.agent.capture.ebpf.oracle --operations 5000 --seed 7`: rounds over raw devices and file systems,
sectors of 512 and 4,096 bytes, whole disks and partitions; the watch is let go and taken up again between operations.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import json
import mmap
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drengine_agent.capture.ebpf.watch import Watch
from tests.agent.capture.ebpf.operations import Place, operate, random_blocks
from tests.agent.capture.ebpf.rig import (
    BLOCK,
    MIB,
    add_partition,
    blocks_of,
    fresh_source,
    loop_device,
    opened,
    run,
    watched,
)

RATIO_MAX = 1.3
ROUND_OPERATIONS = 12
SIZES = {"raw": 48 * MIB, "ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 128 * MIB}
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
START = MIB
libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Scene:
    """A kind of disk.

    Attributes:
        kind: `raw` or a file system.
        sector: logical sectors.
        partition: the volume is a partition that begins at 1 MiB, with more disk behind it.
    """

    kind: str
    sector: int
    partition: bool

    def __str__(self) -> str:
        return f"{self.kind}, {self.sector}, {'partition' if self.partition else 'disk'}"


SCENES = tuple(
    Scene(kind, sector, partition) for kind in SIZES for sector in (512, 4096) for partition in (False, True)
)


@dataclass
class Tally:
    """What a campaign did."""

    operations: int = 0
    comparisons: int = 0
    restarts: int = 0
    changed_blocks: int = 0
    tracked_blocks: int = 0
    healed: int = 0
    worst_ratio: float = 0.0
    names: collections.Counter[str] = field(default_factory=collections.Counter)


class Run:
    """One scene: a disk, its watch, and a copy of what it held when the two were last compared."""

    def __init__(self, scene: Scene, folder: Path, rng: random.Random, tally: Tally) -> None:
        self._scene = scene
        self._folder = folder
        self._rng = rng
        self._tally = tally
        self._source = fresh_source()
        self._tracked: set[int] = set()
        self._old = b""

    def run(self, operations: int) -> None:
        """So many operations, compared after each dozen; then bursts of random 4 KiB writes."""
        with contextlib.ExitStack() as stack:
            volume, place = stack.enter_context(self._disk())
            self._volumes = watched(volume)
            stack.callback(Watch.detach, self._source)
            self._watch = Watch.attach(self._source, self._volumes)
            stack.callback(self._close)
            self._old = self._settle(place)
            self._tracked.clear()
            for number in range(operations):
                self._tally.names[operate(place, self._rng)] += 1
                self._tally.operations += 1
                if self._rng.random() < 0.15:
                    self._restart()
                if self._rng.random() < 0.2:
                    self._take()
                if number % ROUND_OPERATIONS == ROUND_OPERATIONS - 1:
                    self._compare(place)
            self._compare(place)
            self._compare_bursts(place)
            healed = self._watch.statistics().healed
            self._tally.healed += healed

    def _compare_bursts(self, place: Place) -> None:
        """The tracked set must not be much more than what changed."""
        if place.folder is not None:  # all blocks of the file lie somewhere, so that writes move nothing
            with opened(place.path, os.O_RDWR) as fd:
                os.pwrite(fd, self._rng.randbytes(place.size), 0)
            self._compare(place)
        healed = self._watch.statistics().healed
        changed = tracked = 0
        for _ in range(3):
            for _ in range(8):
                random_blocks(place, self._rng)
                self._tally.operations += 1
            found = self._compare(place)
            changed, tracked = changed + found[0], tracked + found[1]
        # btrfs writes elsewhere on purpose, and a tree with it.
        if self._watch.statistics().healed == healed and self._scene.kind != "btrfs":
            self._tally.worst_ratio = max(self._tally.worst_ratio, tracked / changed)
            assert tracked <= RATIO_MAX * changed, f"{self._scene}: {tracked} tracked, {changed} changed"

    @contextlib.contextmanager
    def _disk(self) -> Iterator[tuple[Path, Place]]:
        """A device of the scene and the place to work at."""
        scene, size = self._scene, SIZES[self._scene.kind]
        image = self._folder / "disk.img"
        with contextlib.ExitStack() as stack:
            stack.callback(image.unlink)
            whole = size + 8 * MIB if scene.partition else size
            device = stack.enter_context(loop_device(image, whole, sector=scene.sector, partitions=scene.partition))
            volume = add_partition(device, 1, START, size) if scene.partition else device
            if scene.kind == "raw":
                yield volume, Place(volume, size, scene.sector, None)
                return
            run(*MAKE[scene.kind], volume)
            folder = self._folder / "mounted"
            folder.mkdir(exist_ok=True)
            run("mount", "-o", self._rng.choice(["defaults", "discard"]), volume, folder)
            stack.callback(run, "umount", folder)
            file = folder / "file"
            file.write_bytes(self._rng.randbytes(16 * MIB))
            yield volume, Place(file, 16 * MIB, max(scene.sector, 512), folder)

    def _close(self) -> None:
        self._watch.close()

    def _restart(self) -> None:
        """What an agent's restart or crash does: let go, at any stage, and take up again."""
        if self._rng.random() < 0.5 and not self._watch.has_pending:
            self._watch.flip()
        self._watch.close()
        self._watch = Watch.attach(self._source, self._volumes)
        assert self._watch.doubt == "none", self._watch.doubt
        self._tally.restarts += 1

    def _take(self) -> None:
        if not self._watch.has_pending:
            self._watch.flip()
        self._tracked |= {block for _, block in blocks_of(self._watch.pending())}
        self._watch.clear_pending()

    def _settle(self, place: Place) -> bytes:
        """The disk's content at a moment at which the watch says that nothing happened since all was taken."""
        for _ in range(50):
            with opened(place.folder or place.path, os.O_RDONLY) as fd:
                os.fsync(fd)
                libc.syncfs(fd)
            self._take()
            self._take()
            content = read_all(self._volumes[0].device.name)
            if self._watch.is_quiet() and not self._watch.has_pending:
                return content
        raise AssertionError(f"{self._scene}: never quiet; {self._watch.statistics()}")

    def _compare(self, place: Place) -> tuple[int, int]:
        """(changed, tracked) blocks since the last time; every changed one must be tracked."""
        content = self._settle(place)
        changed = differing(self._old, content)
        missed = changed - self._tracked
        assert not missed, f"{self._scene}: {len(missed)} of {len(changed)} blocks missed: {sorted(missed)[:5]}"
        assert self._watch.check() == "none"
        result = len(changed), len(self._tracked)
        self._tally.comparisons += 1
        self._tally.changed_blocks += result[0]
        self._tally.tracked_blocks += result[1]
        self._old = content
        self._tracked.clear()
        return result


def read_all(device: str) -> bytes:
    """Everything on a device, past the page cache."""
    with opened(Path("/dev") / device, os.O_RDONLY | os.O_DIRECT) as fd:
        size = os.lseek(fd, 0, os.SEEK_END)
        with contextlib.closing(mmap.mmap(-1, size)) as buffer:
            done = 0
            while done < size:
                with memoryview(buffer) as view, view[done : done + 8 * MIB] as part:
                    done += os.preadv(fd, [part], done)
            return buffer[:]


def differing(one: bytes, two: bytes) -> set[int]:
    """Blocks that are not the same."""
    assert len(one) == len(two)
    chunk = 64 * BLOCK
    found = set()
    for start in range(0, len(one), chunk):
        if one[start : start + chunk] != two[start : start + chunk]:
            for offset in range(start, min(start + chunk, len(one)), BLOCK):
                if one[offset : offset + BLOCK] != two[offset : offset + BLOCK]:
                    found.add(offset // BLOCK)
    return found


def campaign(operations: int, seed: int, *, scenes: tuple[Scene, ...] = SCENES, loud: bool = False) -> Tally:
    """Spread so many operations over the scenes; an AssertionError names the scene and the blocks."""
    tally = Tally()
    turn = 0
    share = max(ROUND_OPERATIONS, min(120, operations // len(scenes)))
    while tally.operations < operations:
        scene = scenes[turn % len(scenes)]
        rng = random.Random(f"{seed}/{turn}")
        with tempfile.TemporaryDirectory(prefix="drengine-oracle-") as folder:
            Run(scene, Path(folder), rng, tally).run(share)
        turn += 1
        if loud:
            print(f"{scene}: {tally.operations} operations, {tally.comparisons} comparisons", file=sys.stderr)
    return tally


def main() -> int:
    """Print what was done as one line of JSON; 1 when the tracker missed something."""
    parser = argparse.ArgumentParser(prog="python -m tests.agent.capture.ebpf.oracle", description=__doc__)
    parser.add_argument("--operations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    began = time.monotonic()
    print(f"seed {seed}", file=sys.stderr)
    try:
        tally = campaign(options.operations, seed, loud=True)
    except AssertionError as error:
        print(json.dumps({"seed": seed, "failed": str(error)}))
        return 1
    print(json.dumps({"seed": seed, "seconds": round(time.monotonic() - began), **vars(tally)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
