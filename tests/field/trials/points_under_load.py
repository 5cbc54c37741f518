"""Hosts that never fall quiet, with the defaults of an agent: how old the newest recovery point gets."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.field.ground import Ground, Pair
from tests.field.trial import trial
from tests.field.trials.stress import STRESSORS

MIB = 1 << 20
DISK_BYTES = 3072 * MIB  # btrfs writes nothing in place
MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}
# Half can be compressed, as on most disks.
FIO = ("fio", "--name=load", "--buffer_compress_percentage=50", "--refill_buffers", "--end_fsync=0", "--time_based",
       "--runtime=600", "--directory")  # fmt: skip
STRESS = ("stress-ng", *STRESSORS, "--timeout", "600", "--temp-path")
WRITES = ("--rw=randwrite", "--bs=4k", "--rate_iops=2000", "--size=512m", "--fdatasync=64")
STREAM = ("--rw=write", "--bs=1m", "--rate=100m", "--size=768m", "--fsync_on_close=1")
LOAD_SECONDS = 45.0
AGE_MAX_SECONDS = 15.0
FREEZE_MAX_SECONDS = 1.0
LOOK_SECONDS = 0.1


@trial(seconds_max=500)
def points_of_a_busy_ext4_stay_young(ground: Ground) -> None:
    """2,000 writes a second, then 100 MB/s, on ext4 with defaults: the newest point is never older than 15 s."""
    _one_after_another(ground, "ext4")


@trial(seconds_max=500)
def points_of_a_busy_xfs_stay_young(ground: Ground) -> None:
    """2,000 writes a second, then 100 MB/s, on xfs with defaults: the newest point is never older than 15 s."""
    _one_after_another(ground, "xfs")


@trial(seconds_max=500)
def points_of_a_busy_btrfs_stay_young(ground: Ground) -> None:
    """2,000 writes a second, then 100 MB/s, on btrfs with defaults: the newest point is never older than 15 s."""
    _one_after_another(ground, "btrfs")


@trial(seconds_max=300)
def three_stressed_file_systems_have_points_or_say_why_not(ground: Ground) -> None:
    """stress-ng on ext4, xfs and btrfs of one host, with defaults: points stay young, or the state says `busy`."""
    pair, places = _host(ground, *MAKE)
    oldest = _load(ground, pair, "stress-ng on three", [(*STRESS, place) for place in places])
    assert oldest <= AGE_MAX_SECONDS or "busy" in ground.measured["stress-ng on three: reasons"], ground.measured
    pair.until_equal(seconds=120.0)


def _one_after_another(ground: Ground, kind: str) -> None:
    """Each load by itself; stress-ng writes more than a machine of two cores can ship, and is only measured."""
    pair, (place,) = _host(ground, kind)
    for name, words in (("2,000 writes a second", WRITES), ("100 MB a second", STREAM)):
        oldest = _load(ground, pair, name, [(*FIO, place, *words)])
        assert oldest <= AGE_MAX_SECONDS, f"{name}: {ground.measured}"
    _load(ground, pair, "stress-ng", [(*STRESS, place)])
    pair.until_equal(seconds=120.0)


def _host(ground: Ground, *kinds: str) -> tuple[Pair, list[Path]]:
    """A source with a tracked, mounted file system of each kind, and where they are mounted."""
    ground.needs_kernel()
    ground.needs("fio", "stress-ng", *(MAKE[kind][0] for kind in kinds))
    disks = {kind: ground.disk(kind, DISK_BYTES) for kind in kinds}
    for kind, disk in disks.items():
        ground.run(*MAKE[kind], disk)
    places = [ground.enter(ground.mounted(disk, f"mnt-{kind}")) for kind, disk in disks.items()]
    return Pair(ground, disks, tracker="ebpf").start(), places


def _load(ground: Ground, pair: Pair, name: str, commands: Sequence[Sequence[str | Path]]) -> float:
    """All of them at once for LOAD_SECONDS: how old the newest point got, in seconds. Figures go into what was
    measured, ages into a series.

    Raises:
        AssertionError: a freeze took too long, or the load ended by itself.
    """
    failed, freezes = pair.status()["cuts_failed"], pair.status()["freezes"]
    used = _cpu_seconds(pair.process.pid)
    load = [_start(command) for command in commands]
    try:
        ages, reasons = _ages(pair, LOAD_SECONDS)
        assert all(each.poll() is None for each in load), f"{name} ended by itself"
    finally:
        for each in load:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself, which is told above
                os.killpg(each.pid, signal.SIGKILL)
            each.wait()
    status, oldest = pair.status(), max(age for _, age in ages)
    ground.series[name] = ages
    ground.measured |= {
        f"{name}: oldest newest point, seconds": round(oldest, 1),
        f"{name}: longest freeze, seconds": round(status["freeze_seconds_longest"], 3),
        f"{name}: reasons": sorted(reasons - {"none"}),
        f"{name}: freezes": status["freezes"] - freezes,
        f"{name}: agent, share of a CPU": round((_cpu_seconds(pair.process.pid) - used) / LOAD_SECONDS, 2),
        f"{name}: cuts that failed": {
            why: count - failed.get(why, 0)
            for why, count in status["cuts_failed"].items()
            if count > failed.get(why, 0)
        },
    }
    assert status["freeze_seconds_longest"] <= FREEZE_MAX_SECONDS, f"{name}: {ground.measured}"
    return oldest


def _ages(pair: Pair, seconds: float) -> tuple[list[tuple[float, float]], set[str]]:
    """How old the newest point was at each look, counted from the beginning at most: (seconds, seconds); and the
    reasons that the agent's state gave meanwhile."""
    begun, ages, reasons = time.time(), [], set()
    while (now := time.time()) < begun + seconds:
        newest = pair.newest()
        assert newest, "the points are gone"
        ages.append((round(now - begun, 2), round(now - max(newest.time_ns / 1e9, begun), 2)))
        reasons.add(pair.status()["reason"])
        time.sleep(LOOK_SECONDS)
    return ages, reasons


def _start(command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
