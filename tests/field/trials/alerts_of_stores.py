"""Alerts about a store that fills, is damaged or is not cared for: each rings for real, and ends."""

from __future__ import annotations

import time
from pathlib import Path

from tests.field.ground import Ground
from tests.field.load import scatter
from tests.field.trial import trial
from tests.monitoring.rig import Watched

MIB = 1 << 20
DISK, LARGER = "size=400m", "size=16g"
WRITE_BYTES = 256 << 10
PAUSE_SECONDS = 0.25
FILL_SECONDS = 120.0
HASTY = {"retention_interval": "1s", "compaction_interval": "1s"}
RINGS = frozenset(
    {
        "DrengineMaintenanceFailing",
        "DrengineMirrorBehind",
        "DrengineScrubOverdue",
        "DrengineStoreDamaged",
        "DrengineStoreFillsSoon",
    }
)
"""What rings and ends here."""


@trial(seconds_max=420)
def alerts_of_a_store_ring_and_end(ground: Ground) -> None:
    """A store fills, is never scrubbed, rots, it or its copy goes away: alerts ring, and end by what mends it."""
    ground.needs_root()
    ground.needs("prometheus", "mount")
    disk = ground.enter(ground.mounted(Path("tmpfs"), "disk", "-t", "tmpfs", "-o", DISK))
    site = Watched(ground, store=disk / "store", size=16 * MIB)
    site.start()
    site.start_prometheus()
    site.until_value('up{job="drengine-target"}', 1)
    rung = [*_filling(site, disk), *_unscrubbed(site), *_rotten(site), *_uncared(site, disk), *_behind(site, disk)]
    assert set(rung) == RINGS
    ground.measured["alerts that rang and ended"] = len(rung)


def _filling(site: Watched, disk: Path) -> list[str]:
    """A megabyte a second fills 400 MiB within the 72 minutes that three days are here."""
    ground = site.ground

    def write() -> bool:
        scatter(ground, site.pair, "data", 1, length=WRITE_BYTES)
        time.sleep(PAUSE_SECONDS)  # the rate
        return bool(site.firing("DrengineStoreFillsSoon"))

    assert not site.firing("DrengineStoreFillsSoon")
    ground.until("DrengineStoreFillsSoon rings", write, seconds=FILL_SECONDS)
    ground.run("mount", "-o", f"remount,{LARGER}", disk)
    return site.ended("DrengineStoreFillsSoon")


def _unscrubbed(site: Watched) -> list[str]:
    """A target that runs for longer than a scrub may be old, and whose first scrub is still to come."""
    site.until_firing("DrengineScrubOverdue", rings=True)
    site.restart_target(maintenance={"scrub_interval": "1s"})
    return site.ended("DrengineScrubOverdue")


def _rotten(site: Watched) -> list[str]:
    """A bit flips in the middle of the largest segment; the source is asked for it again, and sends it."""
    pair = site.pair
    pair.until_continuous()
    largest = max(pair.store.rglob("*.seg"), key=lambda path: path.stat().st_size)
    with site.rings("DrengineStoreDamaged"), largest.open("r+b") as segment:
        segment.seek(largest.stat().st_size // 2)
        byte = segment.read(1)[0]
        segment.seek(-1, 1)
        segment.write(bytes([byte ^ 1]))
    verify = ("verify", "latest", "--store", pair.store)
    site.ground.until("it is sent again", lambda: site.ground.drengine(*verify, ok=False).status == 0)
    site.until_value("sum(drengine_target_damaged_ranges)", 0)
    # Points of before keep what rotted, so each scrub finds it; the next one is in a week.
    site.restart_target()
    return site.ended("DrengineStoreDamaged")


def _uncared(site: Watched, disk: Path) -> list[str]:
    """The store is moved away under the target, so that no task of its care succeeds, and back."""
    site.restart_target(maintenance=HASTY)
    with site.rings("DrengineMaintenanceFailing"):
        site.pair.store.rename(disk / "away")
    (disk / "away").rename(site.pair.store)
    return site.ended("DrengineMaintenanceFailing")


def _behind(site: Watched, disk: Path) -> list[str]:
    """The place of the second copy is not mounted, and is again."""
    copy, away = disk / "copy", disk / "copy-away"
    site.ground.drengine("mirror", site.pair.store, copy)
    site.restart_target(mirror={"destination": str(copy), "interval": "100ms"})
    site.until_value("min(drengine_target_mirror_working)", 1)
    with site.rings("DrengineMirrorBehind"):
        copy.rename(away)
    away.rename(copy)
    return site.ended("DrengineMirrorBehind")
