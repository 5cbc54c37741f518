"""A live disk tracked inside the kernel: points against the rate of writing, freezes, and what shipping costs.

Loop devices over files of the measured disk, the real agent and the real target. Root only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.bench import MIB, Bench
from benchmarks.peers import require, run
from benchmarks.results import Figure, Table
from benchmarks.site import Agent, Site, Target
from drengine_agent.capture.ebpf.watch import Watch

BLOCK_BYTES = 4096
RATES = (5, 20, 50, 100, 200)
"""Writes a second, at random moments."""

FREEZE_AIM_MS = 1000.0


def measure(bench: Bench) -> list[Table]:
    """Quiet cuts by rate; freezes and lag of a busy file system; CPU for each GB."""
    if os.geteuid() != 0:
        raise RuntimeError("needs root")
    require("fio", "losetup", "mkfs.ext4")
    return [_quiet_cuts(bench), _freezes(bench), _cost(bench)]


@dataclass
class _Host:
    site: Site
    target: Target
    agent: Agent
    device: Path


@contextlib.contextmanager
def _tracked(bench: Bench, size: int, *, format_it: bool = False, **options: str) -> Iterator[_Host]:
    """A target, and an agent that tracks a fresh loop device; the first point is there."""
    folder = bench.fresh("live")
    image = folder / "disk.img"
    image.write_bytes(bytes(size))
    device = Path(run("losetup", "--show", "--find", "--direct-io=on", image).strip())
    source = f"bench-{secrets.token_hex(4)}"
    try:
        if format_it:
            run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
        with bench.site(folder) as here:
            target = here.start_target()
            agent = here.start_agent(target, source, {"disk": device}, tracker="ebpf", **options)  # type: ignore[arg-type]
            yield _Host(here, target, agent, device)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Watch.detach(source)
        run("losetup", "--detach", device)


def _quiet_cuts(bench: Bench) -> Table:
    seconds = 3.0 if bench.quick else 15.0
    figures = []
    with _tracked(bench, 64 * MIB) as host:
        host.target.wait_point(host.agent.source, 0)
        for rate in RATES:
            figures.append(_at_rate(host, rate, seconds))
            time.sleep(0.5)
    return Table(
        "live_quiet_cuts",
        "Quiet points of a disk that is written at random moments",
        "points/s",
        tuple(figures),
        higher_is_better=True,
        remark="4 KiB writes past the page cache, with exponentially distributed pauses; a quiet cut needs a stretch "
        "without a completed write from the flip (a grace period of the kernel) until everything was read.",
    )


def _at_rate(host: _Host, rate: int, seconds: float) -> Figure:
    begun_ns = time.time_ns()
    written = _write_at(host.device, rate, seconds)
    ended_ns = time.time_ns()
    points = [point for point in host.target.points(host.agent.source) if begun_ns <= point.time_ns <= ended_ns]
    moments = [begun_ns, *(point.time_ns for point in points), ended_ns]
    gaps = sorted((after - before) / 1e6 for before, after in pairwise(moments))
    note = f"{written} writes, {len(points)} points; longest time without one {gaps[-1]:,.0f} ms"
    return Figure(f"{rate} writes/s", len(points) / seconds, (), None, note, ours=True)


def _write_at(device: Path, rate: int, seconds: float) -> int:
    moments, buffer = random.Random(rate), mmap.mmap(-1, BLOCK_BYTES)
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    size = os.lseek(fd, 0, os.SEEK_END)
    due = begun = time.perf_counter()
    count = 0
    try:
        while (due := due + moments.expovariate(rate)) < begun + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            buffer[:8] = count.to_bytes(8, "little")
            os.pwrite(fd, buffer, moments.randrange(size // BLOCK_BYTES) * BLOCK_BYTES)
            count += 1
    finally:
        os.close(fd)
    return count


def _freezes(bench: Bench) -> Table:
    seconds = 5 if bench.quick else 30
    options = {"cuts.kinds": "frozen", "cuts.frozen_after": "1s"}
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(_tracked(bench, 512 * MIB, format_it=True, **options))
        mount = host.site.folder / "mount"
        mount.mkdir()
        run("mount", host.device, mount)
        stack.callback(run, "umount", mount)
        stopped = threading.Event()
        lags: list[float] = []
        watcher = threading.Thread(target=_follow_lag, args=(host.agent, lags, stopped))
        load = subprocess.Popen(
            [
                "fio", "--name=load", f"--filename={mount}/load", "--size=256m", "--rw=randwrite", "--bs=8k",
                "--fsync=8", "--rate_iops=400", "--time_based", f"--runtime={seconds}", "--ioengine=psync",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        watcher.start()
        try:
            load.wait()
        finally:
            stopped.set()
            watcher.join()
        status = host.agent.ask("status")
    longest = status["freeze_seconds_longest"] * 1000
    note = f"{status['freezes']} freezes; failed: {status['cuts_failed'] or 'none'}"
    settled = sorted(lags[len(lags) // 4 :]) or [float("nan")]  # without the first copy
    figures = (
        Figure("longest freeze", longest, (), None, note, ours=True),
        Figure("last freeze", status["freeze_seconds_last"] * 1000, (), None, "", ours=True),
        Figure("lag, median", settled[len(settled) // 2] * 1000, (), None, f"{len(settled)} looks", ours=True),
        Figure("lag, worst", settled[-1] * 1000, (), None, "", ours=True),
    )
    return Table(
        "live_freezes",
        "Frozen points of an ext4 file system under 400 synchronous writes a second",
        "ms",
        figures,
        aims={"longest freeze": FREEZE_AIM_MS},
        remark="Only frozen cuts are allowed, one a second; the watchdog thaws after 1,000 ms at the latest.",
    )


def _follow_lag(agent: Agent, lags: list[float], stopped: threading.Event) -> None:
    while not stopped.wait(0.05):
        lags.append(float(agent.ask("status")["lag_seconds"]))


def _cost(bench: Bench) -> Table:
    size = (128 if bench.quick else 768) * MIB
    with _tracked(bench, size) as host:
        host.target.wait_point(host.agent.source, 0)
        cpu = host.agent.cpu_seconds(), host.target.cpu_seconds()
        begun = time.perf_counter()
        with host.device.open("r+b", buffering=0) as disk:
            for _ in range(size // MIB):
                disk.write(os.urandom(MIB))
            os.fsync(disk.fileno())
        ended = host.target.wait_point(host.agent.source, time.time_ns())
        used = host.agent.cpu_seconds() - cpu[0], host.target.cpu_seconds() - cpu[1]
        read = host.agent.ask("status")["direct_read_bytes"]
    gigabytes = size / 1e9
    note = f"{size / MIB / (ended - begun):,.0f} MiB/s from first write to durable point; {read / MIB:,.0f} MiB read"
    figures = (
        Figure("agent", used[0] / gigabytes, (), None, note, ours=True),
        Figure("target", used[1] / gigabytes, (), None, "", ours=True),
    )
    return Table(
        "live_cost",
        "CPU for each GB of incompressible changes shipped from a live disk",
        "s/GB",
        figures,
        remark="The disk is written once from beginning to end while the agent ships.",
    )
