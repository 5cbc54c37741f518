"""What the eBPF tracker costs those who write: fio on a loop device, in pairs with and without it. Root only.

Over the measured disk with direct I/O: what a server pays. Over memory, small writes: the shortest way an operation
can have, so that the programs weigh most.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import MIB, Bench
from benchmarks.peers import require, run
from benchmarks.results import Figure, Table
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.layout import WatchedVolume
from drengine_agent.capture.ebpf.watch import Watch

AIM, AIM_IN_MEMORY = 0.98, 0.97
MEMORY = Path("/dev/shm")
SIZE = 512 * MIB
Load = tuple[str, ...]
SMALL_WRITES = {
    "random 4 KiB writes, depth 1": ("--rw=randwrite", "--bs=4k", "--iodepth=1"),
    "random 4 KiB writes, depth 16": ("--rw=randwrite", "--bs=4k", "--iodepth=16"),
}
LOADS = {
    "random 4 KiB writes, depth 1": ("--rw=randwrite", "--bs=4k", "--iodepth=1"),
    "random 4 KiB writes, depth 32": ("--rw=randwrite", "--bs=4k", "--iodepth=32"),
    "random 4 KiB reads, depth 32": ("--rw=randread", "--bs=4k", "--iodepth=32"),
    "sequential 1 MiB writes, depth 8": ("--rw=write", "--bs=1m", "--iodepth=8"),
}


@dataclass(frozen=True)
class _Run:
    rate: float
    latency_us: float


def measure(bench: Bench) -> list[Table]:
    """One row for each load: operations a second with the tracker over those without it."""
    if os.geteuid() != 0:
        raise RuntimeError("needs root")
    require("fio", "losetup")
    return [
        _table(bench, "tracker_overhead", "the measured disk, direct I/O", bench.folder, SMALL_WRITES, AIM),
        _table(bench, "tracker_overhead_memory", "memory", MEMORY, LOADS, AIM_IN_MEMORY),
    ]


def _table(bench: Bench, name: str, where: str, folder: Path, loads: Mapping[str, Load], aim: float) -> Table:
    pairs = 2 if bench.quick else 15
    with _loop_device(folder) as device:
        figures = tuple(_compared(load, options, device, pairs) for load, options in loads.items())
    return Table(
        name,
        f"fio with the eBPF tracker on, against off: a loop device over {where}",
        "of the rate without",
        figures,
        higher_is_better=True,
        aims=dict.fromkeys(loads, aim),
        remark=f"{pairs} pairs of one second each, either first; the median of their ratios.",
    )


def _compared(name: str, load: Load, device: Path, pairs: int) -> Figure:
    order = random.Random(7)
    ratios, latencies = [], []
    plain: list[float] = []
    _fio(device, load)
    for _ in range(pairs):
        runs: dict[bool, _Run] = {}
        for tracked in order.sample([True, False], 2):
            with _tracked(device) if tracked else contextlib.nullcontext():
                runs[tracked] = _fio(device, load)
        ratios.append(runs[True].rate / runs[False].rate)
        latencies.append(runs[True].latency_us / runs[False].latency_us)
        plain.append(runs[False].rate)
    note = (
        f"{statistics.median(plain):,.0f} operations/s without; "
        f"mean latency {statistics.median(latencies):.3f} of that without"
    )
    return Figure(name, statistics.median(ratios), tuple(ratios), None, note, ours=True)


@contextlib.contextmanager
def _loop_device(folder: Path) -> Iterator[Path]:
    image = folder / f"drengine-bench-{secrets.token_hex(4)}.img"
    try:
        with image.open("wb") as file:
            for _ in range(SIZE // MIB):
                file.write(bytes(MIB))
        direct = () if folder == MEMORY else ("--direct-io=on",)
        device = run("losetup", "--show", "--find", *direct, image).strip()
        try:
            yield Path(device)
        finally:
            run("losetup", "--detach", device)
    finally:
        image.unlink(missing_ok=True)


@contextlib.contextmanager
def _tracked(device: Path) -> Iterator[None]:
    found = BlockDevice.of_path(device)
    source = f"bench-{secrets.token_hex(4)}"
    watch = Watch.attach(source, [WatchedVolume(1, found, found.size_bytes)])
    try:
        yield
        if not watch.counter() and not watch.is_quiet():
            raise RuntimeError("the tracker saw nothing")
    finally:
        watch.close()
        Watch.detach(source)


def _fio(device: Path, load: Load) -> _Run:
    report = run(
        "fio", "--name=load", f"--filename={device}", "--ioengine=libaio", "--direct=1", f"--size={SIZE}",
        "--time_based", "--runtime=1", "--ramp_time=0.1", "--randrepeat=0", "--output-format=json", *load,
    )  # fmt: skip
    job = json.loads(report[report.index("{") : report.rindex("}") + 1])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio: error {job['error']}")
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    return _Run(float(side["iops"]), float(side["clat_ns"]["mean"]) / 1000)
