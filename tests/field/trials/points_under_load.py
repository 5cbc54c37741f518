"""Hosts that never fall quiet, with the defaults of an agent: how old the newest recovery point gets."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from tests.field.ground import Ground, Pair
from tests.field.trial import trial

MIB = 1 << 20
DISK_BYTES = 1536 * MIB
MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}
LOADS = {
    "2,000 writes a second": ("--rw=randwrite", "--bs=4k", "--rate_iops=2000", "--size=512m", "--fdatasync=64"),
    "100 MB a second": ("--rw=write", "--bs=1m", "--rate=100m", "--size=768m", "--fsync_on_close=1"),
}
LOAD_SECONDS = 45
AGE_MAX_SECONDS = 15.0
LOOK_SECONDS = 0.1


def _try(ground: Ground, kind: str) -> None:
    ground.needs_kernel()
    ground.needs("fio", MAKE[kind][0])
    disk = ground.disk(kind, DISK_BYTES)
    ground.run(*MAKE[kind], disk)
    place = ground.enter(ground.mounted(disk, f"mnt-{kind}"))
    pair = Pair(ground, {"data": disk}, tracker="ebpf").start()
    for name, load in LOADS.items():
        before = pair.status()
        ages, cpu_seconds = _ages(pair, place, load)
        after = pair.status()
        ground.measured[f"{name}: oldest newest point, seconds"] = round(max(ages), 1)
        ground.measured[f"{name}: longest freeze, seconds"] = after["freeze_seconds_longest"]
        ground.measured[f"{name}: freezes"] = after["freezes"] - before["freezes"]
        ground.measured[f"{name}: agent, share of a CPU"] = round(cpu_seconds / LOAD_SECONDS, 2)
        ground.measured[f"{name}: cuts that failed"] = after["cuts_failed"]
        assert max(ages) <= AGE_MAX_SECONDS, f"{name}: {ground.measured}"
        assert after["freeze_seconds_longest"] <= 1.0, ground.measured
    pair.until_equal(seconds=120.0)


@trial(seconds_max=400)
def points_of_a_busy_ext4_stay_young(ground: Ground) -> None:
    """2,000 writes a second, then 100 MB/s, on ext4 with defaults: the newest point is never older than 15 s."""
    _try(ground, "ext4")


@trial(seconds_max=400)
def points_of_a_busy_xfs_stay_young(ground: Ground) -> None:
    """2,000 writes a second, then 100 MB/s, on xfs with defaults: the newest point is never older than 15 s."""
    _try(ground, "xfs")


@trial(seconds_max=400)
def points_of_a_busy_btrfs_stay_young(ground: Ground) -> None:
    """2,000 writes a second, then 100 MB/s, on btrfs with defaults: the newest point is never older than 15 s."""
    _try(ground, "btrfs")


def _ages(pair: Pair, place: Path, load: tuple[str, ...]) -> tuple[list[float], float]:
    """How old the newest point was at each look under load, in seconds, and the agent's CPU seconds."""
    words = ["fio", "--name=load", f"--directory={place}", "--time_based", f"--runtime={LOAD_SECONDS}", *load]
    # Half can be compressed, as on most disks.
    more = ["--buffer_compress_percentage=50", "--refill_buffers", "--end_fsync=0"]
    used = _cpu_seconds(pair.process.pid)
    fio = subprocess.Popen([*words, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = time.time()
    ages: list[float] = []
    try:
        while fio.poll() is None and time.time() < begun + LOAD_SECONDS:
            newest: Any = pair.newest()
            ages.append(time.time() - max(newest.time_ns / 1e9, begun))
            time.sleep(LOOK_SECONDS)
    finally:
        fio.terminate()
        fio.wait()
    return ages, _cpu_seconds(pair.process.pid) - used


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
