"""4 KiB random writes through the tap beside other NBD servers, with fio's nbd engine over unix sockets."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.bench import GIB, MIB, Bench
from benchmarks.peers import qemu_nbd, run, serving, uri
from benchmarks.results import Contestant, Measured, Table, contest
from benchmarks.site import site

TAP, REPLICATING, QEMU = (
    "drengine tap",
    "drengine tap, replicating meanwhile",
    "qemu-nbd, threads (its default)",
)
DEPTHS = (1, 16)
AIM_OF_QEMU = 0.7


def measure(bench: Bench) -> list[Table]:
    """One table for each queue depth; the aim is a share of qemu-nbd's rate in this run."""
    return [_at_depth(bench, depth) for depth in DEPTHS]


def _at_depth(bench: Bench, depth: int) -> Table:
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

    def served(name: str, *command: str | Path) -> Measured:
        socket = folder / "peer.sock"
        with serving(socket, *(part if part != "SOCKET" else socket for part in command)):
            return write_rate(uri(socket), depth, seconds, size)

    def tap(*, replicating: bool) -> Measured:
        path = disk("tap")
        with site(bench.fresh("tapped")) as here:
            target = here.start_target()
            agent = here.start_agent(
                target, "source", {"disk": path}, tracker="nbd", paused=True, nbd={"journal": "4GiB"}
            )
            if replicating:
                agent.ask("resume")
                target.wait_point("source", 0)
            cpu = agent.cpu_seconds(), target.cpu_seconds()
            measured = write_rate(uri(agent.tap, "disk"), depth, seconds, size)
            status = agent.ask("status")
            note = (
                f"CPU: agent {agent.cpu_seconds() - cpu[0]:.2f} s, target {target.cpu_seconds() - cpu[1]:.2f} s "
                f"in {seconds} s; order {'kept' if status['journaling'] else 'LOST (journal full)'}"
            )
            if not replicating and not status["journaling"]:
                raise RuntimeError("the journal was too small for this measurement")
        return Measured(measured.value, None, note)

    socket = folder / "peer.sock"
    contestants = [
        Contestant(TAP, lambda: tap(replicating=False), ours=True),
        Contestant(REPLICATING, lambda: tap(replicating=True), ours=True),
        Contestant(QEMU, lambda: served("qemu", *qemu_nbd(socket, disk("qemu"), "--aio=threads"))),
        Contestant("qemu-nbd, io_uring", lambda: served("qemu", *qemu_nbd(socket, disk("qemu"), "--aio=io_uring"))),
        Contestant(
            "nbdkit, file plugin",
            lambda: served("nbdkit", "nbdkit", "-f", "-U", socket, "file", disk("nbdkit")),
        ),
    ]
    figures = contest(contestants, bench.rounds)
    qemu = next((figure.value for figure in figures if figure.name == QEMU), None)
    return Table(
        f"tap_depth_{depth}",
        f"4 KiB random writes over NBD, depth {depth}",
        "writes/s",
        figures,
        higher_is_better=True,
        aims={TAP: AIM_OF_QEMU * qemu} if qemu else {},
        baseline=QEMU,
        remark="The tap writes each block to its journal and to the volume, the others once. Aim: 0.7 of qemu-nbd.",
    )


def write_rate(address: str, depth: int, seconds: float, size_bytes: int) -> Measured:
    """Writes a second that fio gets through."""
    report = run(
        "fio", "--name=writes", "--ioengine=nbd", f"--uri={address}", "--rw=randwrite", "--bs=4k", f"--iodepth={depth}",
        f"--size={size_bytes}", "--time_based", f"--runtime={seconds}", "--randrepeat=0", "--refill_buffers",
        "--buffer_compress_percentage=50", "--output-format=json",
    )  # fmt: skip
    job = json.loads(report[report.index("{") : report.rindex("}") + 1])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio: error {job['error']}")
    return Measured(float(job["write"]["iops"]))
