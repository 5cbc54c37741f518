"""Writes and reads through the tap beside other NBD servers, with fio's nbd engine over unix sockets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import GIB, MIB, Bench
from benchmarks.fio import LARGE_READS, LARGE_WRITES, WRITES, Load, load
from benchmarks.peers import qemu_nbd, serving, uri
from benchmarks.results import Contestant, Measured, Share, Table, contest

TAP, REPLICATING = "drengine tap", "drengine tap, replicating meanwhile"
QEMU, QEMU_URING, NBDKIT = "qemu-nbd, threads (its default)", "qemu-nbd, io_uring", "nbdkit, file plugin"


@dataclass(frozen=True)
class _Work:
    name: str
    title: str
    load: Sequence[str]
    depth: int
    aims: dict[str, Share]
    large: bool = False

    def measured(self, load: Load, note: str) -> Measured:
        return Measured(load.bytes_per_second / 1e6 if self.large else load.rate, None, note)


WORKS = (
    *(
        _Work(
            f"tap_depth_{depth}",
            f"4 KiB random writes over NBD, depth {depth}",
            WRITES,
            depth,
            {TAP: Share(QEMU, 0.7), REPLICATING: Share(QEMU, 0.75)},
        )
        for depth in (1, 16)
    ),
    _Work("tap_large_writes", "1 MiB writes over NBD, depth 4", LARGE_WRITES, 4, {REPLICATING: Share(QEMU, 0.5)}, True),
    _Work("tap_large_reads", "1 MiB reads over NBD, depth 4", LARGE_READS, 4, {REPLICATING: Share(QEMU, 0.8)}, True),
)


def measure(bench: Bench) -> list[Table]:
    """One table for each kind of load."""
    return [_measure(bench, work) for work in WORKS]


def _measure(bench: Bench, work: _Work) -> Table:
    folder = bench.fresh("taps")
    seconds = 1 if bench.quick else 3
    size = 256 * MIB if bench.quick else GIB

    def disk(name: str) -> Path:
        """A written file in the page cache, so that nobody pays for allocation."""
        path = folder / f"{name}.img"
        if not path.exists():
            with path.open("wb") as file:
                for _ in range(size // MIB):
                    file.write(bytes(range(256)) * 4096)
        return path

    def served(*command: str | Path) -> Measured:
        with serving(socket, *command):
            done = load(uri(socket), size, work.depth, *work.load, seconds=seconds)
        return work.measured(done, str(done))

    def tap(*, replicating: bool) -> Measured:
        path = disk("tap")
        with bench.site(bench.fresh("tapped")) as here:
            target = here.start_target()
            agent = here.start_agent(
                target, "source", {"disk": path}, tracker="nbd", paused=True, nbd={"journal": "4GiB"}
            )
            if replicating:
                agent.ask("resume")
                target.wait_point("source", 0)
            cpu = agent.cpu_seconds(), target.cpu_seconds()
            done = load(uri(agent.tap, "disk"), size, work.depth, *work.load, seconds=seconds)
            status = agent.ask("status")
            note = (
                f"{done}; CPU: agent {agent.cpu_seconds() - cpu[0]:.2f} s, target {target.cpu_seconds() - cpu[1]:.2f} s"
                f" in {seconds} s; order {'kept' if status['journaling'] else 'LOST (journal full)'}"
            )
            if not (replicating or work.large or status["journaling"]):
                raise RuntimeError("the journal was too small for this measurement")
        return work.measured(done, note)

    socket = folder / "peer.sock"
    figures = contest(
        [
            Contestant(TAP, lambda: tap(replicating=False), ours=True),
            Contestant(REPLICATING, lambda: tap(replicating=True), ours=True),
            Contestant(QEMU, lambda: served(*qemu_nbd(socket, disk("qemu"), "--aio=threads"))),
            Contestant(QEMU_URING, lambda: served(*qemu_nbd(socket, disk("qemu"), "--aio=io_uring"))),
            Contestant(NBDKIT, lambda: served("nbdkit", "-f", "-U", socket, "file", disk("nbdkit"))),
        ],
        bench.rounds,
    )
    return Table(
        work.name,
        work.title,
        "MB/s" if work.large else "operations/s",
        figures,
        higher_is_better=True,
        shares=work.aims,
        baseline=QEMU,
        remark="The tap writes each block to its journal and to the volume, the others once.",
    )
