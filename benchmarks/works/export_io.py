"""A recovered disk: reads, writes and a copy of a promoted branch beside qemu-nbd over a raw file of the same content.

Once while the branch is fresh, and once after many flushes: its history grows, its speed must not fall.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import fio
from benchmarks.bench import Bench
from benchmarks.peers import qemu_nbd, run, serving, uri
from benchmarks.results import Contestant, Figure, Measured, Share, Table, clocked, contest
from benchmarks.site import Site, Target

OURS, PEER, SOURCE = "drengine, promoted branch", "qemu-nbd, raw file", "source"


@dataclass(frozen=True)
class _Work:
    name: str
    title: str
    share: float
    depth: int = 0
    options: tuple[str, ...] = ()

    @property
    def is_copy(self) -> bool:
        return not self.options


WORKS = (
    _Work("export_reads_depth_1", "4 KiB random reads of an export, depth 1", 0.7, 1, fio.READS),
    _Work("export_reads_depth_16", "4 KiB random reads of an export, depth 16", 0.5, 16, fio.READS),
    _Work("export_writes_depth_1", "4 KiB random writes, a flush every 32, depth 1", 0.7, 1, fio.FLUSHED_WRITES),
    _Work("export_writes_depth_16", "4 KiB random writes, a flush every 32, depth 16", 0.6, 16, fio.FLUSHED_WRITES),
    _Work("export_copy", "nbdcopy of the whole branch to null:, after the writes", 0.7),
)


def measure(bench: Bench) -> list[Table]:
    """One table for each kind of work, with the fresh branch and the one with a history."""
    folder = bench.fresh("export")
    raw, socket = folder / "raw.img", folder / "raw.sock"
    shutil.copyfile(bench.image, raw)
    flushes = 1_000 if bench.quick else 100_000
    with bench.site(folder) as here, serving(socket, *qemu_nbd(socket, raw)):
        addresses = {OURS: promote_image(here, bench.image), PEER: uri(socket)}
        fresh = _round(bench, addresses, "")
        for address in addresses.values():
            write_history(address, bench.image_bytes, flushes)
        late = f", after {flushes:,} flushes"
        aged = _round(bench, addresses, late)
    return [
        Table(
            work.name,
            work.title,
            "s" if work.is_copy else "operations/s",
            (*fresh[work.name], *aged[work.name]),
            higher_is_better=not work.is_copy,
            shares={OURS: Share(PEER, work.share), OURS + late: Share(PEER + late, work.share)},
            baseline=PEER,
            remark=f"A {bench.image_bytes >> 20} MiB image; fio's nbd engine and nbdcopy over unix sockets. The branch "
            "is served by the target's daemon, which cuts points of it meanwhile. Its history: fio writes 4 KiB at "
            "random places, one after the other, each with a flush; the peer gets the same.",
        )
        for work in WORKS
    ]


def promote_image(here: Site, image: Path) -> str:
    """Replicate an image, fail over, and return the address of the promoted branch."""
    return here.promote(replicate_image(here, image), SOURCE)


def replicate_image(here: Site, image: Path) -> Target:
    """A target with a point of the image; the agent has been stopped."""
    target = here.start_target()
    since_ns = time.time_ns()
    agent = here.start_agent(target, SOURCE, {"disk": image})
    target.wait_point(SOURCE, since_ns)
    here.stop(agent)
    return target


def write_history(address: str, size_bytes: int, flushes: int) -> None:
    """So many writes of 4 KiB at random places, each followed by a flush."""
    fio.load(address, size_bytes, 1, *fio.WRITES, "--fsync=1", f"--number_ios={flushes}", "--norandommap")


def _round(bench: Bench, addresses: dict[str, str], when: str) -> dict[str, Iterable[Figure]]:
    """All works, in their order, whose contestants take turns; `when` is added to their names."""
    seconds = 1 if bench.quick else 5

    def contestant(work: _Work, name: str) -> Contestant:
        def once() -> Measured:
            if work.is_copy:
                return clocked(lambda: _ignore(run("nbdcopy", addresses[name], "null:")))
            done = fio.load(addresses[name], bench.image_bytes, work.depth, *work.options, seconds=seconds)
            return Measured(done.rate, None, str(done))

        return Contestant(name + when, once, ours=name == OURS)

    return {work.name: contest([contestant(work, name) for name in (OURS, PEER)], bench.rounds) for work in WORKS}


def _ignore(_: str) -> None:
    """What a copy says isn't needed."""
