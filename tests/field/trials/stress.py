"""stress-ng on live file systems, and agents that are killed under it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.field.ground import Ground, Pair
from tests.field.trial import trial

MIB = 1 << 20
SIZES = {"ext4": 192 * MIB, "xfs": 320 * MIB, "btrfs": 192 * MIB}
MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}
STRESSORS = ("--hdd", "1", "--hdd-bytes", "8M", "--iomix", "1", "--iomix-bytes", "8M", "--fallocate", "1",
             "--fallocate-bytes", "8M", "--dentry", "1", "--rename", "1")  # fmt: skip
KILLS = 3
BETWEEN_KILLS_SECONDS = 6.0


@trial(seconds_max=300)
def stress_on_three_file_systems_and_three_kills_end_equal(ground: Ground) -> None:
    """stress-ng on ext4, xfs and btrfs, the agent killed three times: no rescan, the newest point is the disks."""
    ground.needs_kernel()
    ground.needs("stress-ng", *(each[0] for each in MAKE.values()))
    disks = {kind: ground.disk(kind, size) for kind, size in SIZES.items()}
    for kind, disk in disks.items():
        ground.run(*MAKE[kind], disk)
    places = [ground.enter(ground.mounted(disk, f"mnt-{kind}")) for kind, disk in disks.items()]
    cuts = {"kinds": "quiet, frozen", "frozen_after": "1s"}
    pair = Pair(ground, disks, tracker="ebpf", agent={"cuts": cuts}).start()
    stress = [_stress(place) for place in places]
    try:
        moments: list[float] = []
        for _ in range(ground.times(KILLS)):
            end = time.monotonic() + BETWEEN_KILLS_SECONDS
            seen = None
            while time.monotonic() < end:
                newest = pair.newest()
                if newest != seen:
                    seen = newest
                    moments.append(time.monotonic())
                time.sleep(0.1)
            assert all(each.poll() is None for each in stress), "stress-ng ended by itself"
            pair.kill_agent()
            pair.start_agent()
    finally:
        for each in stress:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()
    os.sync()
    pair.until_equal(seconds=120.0)
    assert pair.status()["rescans"] == {}, pair.status()["rescans"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    ground.measured |= {"kills": ground.times(KILLS), "points seen under load": len(moments)}
    ground.measured["longest gap in seconds"] = round(max(gaps, default=0.0), 1)


def _stress(place: Path) -> subprocess.Popen[bytes]:
    command = ["stress-ng", *STRESSORS, "--temp-path", str(place), "--timeout", "600"]
    return subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
