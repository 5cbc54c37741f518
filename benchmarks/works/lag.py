"""How long a small write needs to become a durable recovery point while 5,000 others a second go the same way."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import threading
import time

from benchmarks.bench import GIB, MIB, Bench
from benchmarks.peers import require, uri
from benchmarks.results import Figure, Table
from benchmarks.site import Agent, Objects, Site, SiteFailedError, Target
from drengine.nbd.client import NbdClient

RATE = 5000
PROBE_SECONDS = 0.02
ALONE_SECONDS = (0.12, 0.25)
"""Pauses between probes when nothing else happens: longer than the interval of points, and in no step with it."""
MEDIAN, P99, WORST, ALONE = "median", "99th percentile", "worst", "nothing else happening"


def measure(bench: Bench) -> list[Table]:
    """Lag of probes, each from the moment its write was completed to the moment a point that holds it was visible."""
    seconds = 4.0 if bench.quick else 20.0
    require("fio")
    with bench.site(bench.fresh("lag")) as here:
        target, agent = _start(bench, here)
        load = _start_load(agent, seconds)
        try:
            time.sleep(1.0)
            cpu = agent.cpu_seconds(), target.cpu_seconds()
            lags = _probe(target, agent, seconds - 1.5, (PROBE_SECONDS, PROBE_SECONDS))
            busy = agent.cpu_seconds() - cpu[0], target.cpu_seconds() - cpu[1]
        finally:
            output, _ = load.communicate()
        if load.returncode:
            raise SiteFailedError(f"fio failed: {output[-300:]!r}")
        reached = _load_rate(output)
        quiet = _probe(target, agent, seconds, ALONE_SECONDS)
    shares = [used / (seconds - 1.5) for used in busy]
    note = f"{len(lags)} probes; load {reached:,.0f} writes/s; CPU: agent {shares[0]:.0%}, target {shares[1]:.0%}"
    failed = "" if reached > 0.95 * RATE else f"the load reached only {reached:,.0f} of {RATE} writes/s"
    figures = [
        *_figures(lags, f"under {RATE:,} writes/s", note, failed),
        *_figures(quiet, ALONE, f"{len(quiet)} probes", ""),
    ]
    return [
        Table(
            "lag",
            "A 4 KiB write becomes a durable recovery point",
            "ms",
            tuple(figures),
            aims={
                f"{MEDIAN}, under {RATE:,} writes/s": 50,
                f"{P99}, under {RATE:,} writes/s": 250,
                f"{MEDIAN}, {ALONE}": 15,
            },
            baseline=f"{MEDIAN}, under {RATE:,} writes/s",
            remark="From the write's completion to the moment at which another process finds in the catalogue a "
            "point that shows the source at that moment or later; point interval 50 ms (the default).",
        )
    ]


def probe_lag(bench: Bench, seconds: float, *, encrypted: bool = False, objects: Objects | None = None) -> list[float]:
    """Lags under load, in milliseconds, with a store in clear or an encrypted one."""
    require("fio")
    with bench.site(bench.fresh("lag")) as here:
        target, agent = _start(bench, here, encrypted=encrypted, objects=objects)
        load = _start_load(agent, seconds)
        try:
            time.sleep(1.0)
            return _probe(target, agent, seconds - 1.5, (PROBE_SECONDS, PROBE_SECONDS))
        finally:
            load.communicate()


def _start(
    bench: Bench, here: Site, *, encrypted: bool = False, objects: Objects | None = None
) -> tuple[Target, Agent]:
    disk = bench.folder / "lag" / "disk.img"
    with disk.open("wb") as file:
        file.truncate(256 * MIB if bench.quick else GIB)
    target = here.start_target(encrypted=encrypted, objects=objects)
    since_ns = time.time_ns()
    agent = here.start_agent(target, "source", {"disk": disk}, tracker="nbd")
    target.wait_point("source", since_ns)
    return target, agent


def _start_load(agent: Agent, seconds: float) -> subprocess.Popen[bytes]:
    command = [
        "fio", "--name=load", "--ioengine=nbd", f"--uri={uri(agent.tap, 'disk')}", "--rw=randwrite", "--bs=4k",
        "--iodepth=4", f"--rate_iops={RATE}", "--rate_process=linear", "--time_based", f"--runtime={seconds}",
        "--size=192M", "--offset=1M", "--randrepeat=0", "--refill_buffers",
        "--buffer_compress_percentage=50", "--output-format=json",
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _load_rate(output: bytes) -> float:
    text = output.decode()
    return float(json.loads(text[text.index("{") : text.rindex("}") + 1])["jobs"][0]["write"]["iops"])


def _probe(target: Target, agent: Agent, seconds: float, pauses: tuple[float, float]) -> list[float]:
    """Lags in milliseconds of small writes, between which there are pauses of so many seconds."""
    rng = random.Random(1)
    seen: list[tuple[int, int]] = []
    """(moment that a point shows, moment at which it was visible), both by the wall clock of this machine."""
    ending = threading.Event()

    def watch() -> None:
        newest = max((point.sequence for point in target.points(agent.source)), default=0)
        while not ending.is_set():
            for point in target.points(agent.source, after=newest):
                seen.append((point.time_ns, time.time_ns()))
                newest = point.sequence
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    completed: list[int] = []
    try:
        with NbdClient(str(agent.tap), "disk") as disk:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                disk.write(0, time.time_ns().to_bytes(8, "little") * 512)
                completed.append(time.time_ns())
                time.sleep(rng.uniform(*pauses))
        limit = time.monotonic() + 30
        while not seen or seen[-1][0] < completed[-1]:
            if time.monotonic() > limit:
                raise SiteFailedError("the last probe did not become a point within 30 s")
            time.sleep(0.01)
    finally:
        ending.set()
        watcher.join()
    return [(next(visible for shown, visible in seen if shown >= moment) - moment) / 1e6 for moment in completed]


def _figures(lags: list[float], where: str, note: str, failed: str) -> list[Figure]:
    values = {MEDIAN: statistics.median(lags), P99: statistics.quantiles(lags, n=100)[98], WORST: max(lags)}
    return [
        Figure(
            f"{name}, {where}",
            None if failed else value,
            () if failed else (value,),
            None,
            note,
            ours=True,
            failed=failed,
        )
        for name, value in values.items()
    ]
