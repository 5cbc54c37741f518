"""Bringing a replica up to date: 1 % random 4 KiB blocks, 1 % contiguous, nothing; by scan and tracked by the tap."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.image import GRAIN_BYTES, change_contiguous, change_random, random_blocks
from benchmarks.peers import NBDCOPY, copies, updates
from benchmarks.results import Contestant, Measured, Share, Table, contest
from benchmarks.site import Agent, Target, check_replica
from drengine.nbd.client import NbdClient

SHARE = 0.01
WHOLE_COPIES = 5.5
"""The aim of a scan: so many of them in the time in which nbdcopy copies everything, 0.45 s where that takes 2.5 s."""

SCAN, TRACKED = "drengine, scan", "drengine, tracked"
REMARK = (
    "Ours: daemons that run already, from the command until the point is in the target's catalogue; compared with the "
    "image after the last change. rsync: the whole command, destination synced, its copy compared after each run. "
    "nbdcopy copies everything."
)
Change = Callable[[Path, int], None]


def measure(bench: Bench) -> list[Table]:
    """One table for each kind of change."""
    image = bench.folder / "changing.img"
    shutil.copyfile(bench.image, image)
    tapped = bench.folder / "tapped.img"
    shutil.copyfile(bench.image, tapped)
    peers = updates(image, bench.fresh("updates"))
    whole = next(each for each in copies(image, bench.fresh("whole")) if each.name == NBDCOPY)
    with bench.site(bench.fresh("scanned")) as scanned, bench.site(bench.fresh("tracked")) as tracked:
        scan_target, tap_target = scanned.start_target(), tracked.start_target()
        since_ns = time.time_ns()
        scanner = scanned.start_agent(scan_target, "source", {"disk": image})
        tap = tracked.start_agent(tap_target, "source", {"disk": tapped}, tracker="nbd")
        scan_target.wait_point("source", since_ns)
        tap_target.wait_point("source", since_ns)

        def table(name: str, title: str, change: Change, write: Callable[[Agent, int], None], *, aimed: bool) -> Table:
            """In each round whoever comes first makes one change, and every replica meets it once."""
            newest = 0
            met: dict[str, int] = {}

            def changed(contestant: str, run: Callable[[], Measured]) -> Callable[[], Measured]:
                def both() -> Measured:
                    nonlocal newest
                    if met.get(contestant, 0) == newest:
                        newest += 1
                        change(image, newest)
                    met[contestant] = newest
                    return run()

                return both

            _scan(scan_target, scanner)
            contestants = [
                Contestant(SCAN, changed(SCAN, lambda: _scan(scan_target, scanner)), ours=True),
                Contestant(TRACKED, lambda: _ship(tap_target, tap, write), ours=True),
            ]
            for peer in peers:
                peer.run()  # its replica has everything before the first change
                contestants.append(Contestant(peer.name, changed(peer.name, peer.run)))
            contestants.append(whole)
            return Table(
                name,
                title,
                "s",
                contest(contestants, bench.rounds),
                aims={TRACKED: 0.15} if aimed and bench.has_aims else {},
                shares={SCAN: Share(NBDCOPY, WHOLE_COPIES)} if aimed else {},
                baseline=SCAN,
                remark=REMARK,
            )

        tables = [
            table(
                "random_1_percent",
                "1 % changed, random 4 KiB blocks",
                lambda path, seed: _ignore(change_random(path, SHARE, seed=seed)),
                _write_random,
                aimed=True,
            ),
            table(
                "contiguous_1_percent",
                "1 % changed, one contiguous range",
                lambda path, seed: _ignore(change_contiguous(path, SHARE, seed=seed)),
                _write_contiguous,
                aimed=False,
            ),
            _unchanged(bench, scan_target, scanner, tap_target, tap, peers),
        ]
        _scan(scan_target, scanner)
        check_replica(scan_target, "source", image)
        tracked.stop(tap)
        check_replica(tap_target, "source", tapped)
    for path in (image, tapped):
        path.unlink()
    return tables


def _unchanged(
    bench: Bench, scan_target: Target, scanner: Agent, tap_target: Target, tap: Agent, peers: list[Contestant]
) -> Table:
    def idle() -> Measured:
        before = tap.ask("status")["bytes_read"]
        since_ns, begun = time.time_ns(), time.perf_counter()
        tap.ask("cut", label="idle")
        seconds = tap_target.wait_point("source", since_ns) - begun
        read = tap.ask("status")["bytes_read"] - before
        return Measured(seconds, 0, f"{read} bytes read; a labelled point was asked for")

    _scan(scan_target, scanner)
    contestants = [
        Contestant(SCAN, lambda: _scan(scan_target, scanner), ours=True),
        Contestant(TRACKED, idle, ours=True),
        *peers,
    ]
    return Table(
        "no_change",
        "No change",
        "s",
        contest(contestants, bench.rounds),
        aims={} if not bench.has_aims else {SCAN: 0.35},
        baseline=SCAN,
        remark=REMARK,
    )


def _scan(target: Target, agent: Agent) -> Measured:
    sent, cpu = agent.wire_bytes(), (agent.cpu_seconds(), target.cpu_seconds())
    since_ns, begun = time.time_ns(), time.perf_counter()
    agent.ask("sync")
    seconds = target.wait_point(agent.source, since_ns) - begun
    note = f"CPU: agent {agent.cpu_seconds() - cpu[0]:.2f} s, target {target.cpu_seconds() - cpu[1]:.2f} s"
    return Measured(seconds, agent.wire_bytes() - sent, note)


def _ship(target: Target, agent: Agent, write: Callable[[Agent, int], None]) -> Measured:
    """What the tap recorded while replication was paused, from `resume` on: session, shipping, durable point."""
    agent.ask("pause")
    write(agent, time.time_ns())
    sent, cpu = agent.wire_bytes(), (agent.cpu_seconds(), target.cpu_seconds())
    since_ns, begun = time.time_ns(), time.perf_counter()
    agent.ask("resume")
    seconds = target.wait_point(agent.source, since_ns) - begun
    note = f"CPU: agent {agent.cpu_seconds() - cpu[0]:.2f} s, target {target.cpu_seconds() - cpu[1]:.2f} s"
    return Measured(seconds, agent.wire_bytes() - sent, note)


def _write_random(agent: Agent, seed: int) -> None:
    with NbdClient(str(agent.tap), "disk") as disk:
        for offset, data in random_blocks(disk.size_bytes, SHARE, seed=seed):
            disk.write(offset, data)


def _write_contiguous(agent: Agent, seed: int) -> None:
    with NbdClient(str(agent.tap), "disk") as disk:
        length = int(disk.size_bytes * SHARE) // GRAIN_BYTES * GRAIN_BYTES
        rng, middle = random.Random(seed), disk.size_bytes // 2 // GRAIN_BYTES * GRAIN_BYTES
        for at in range(0, length, 1 << 20):
            disk.write(middle + at, rng.randbytes(min(1 << 20, length - at)))


def _ignore(_: int) -> None:
    """What a change says about itself isn't needed."""
