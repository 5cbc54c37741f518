"""Stores that somebody copied or put back while nobody asked him to stop the target."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from drengine.store.store import Store
from tests.field.ground import Ground, Pair, Said
from tests.field.load import StampedWrites, scatter
from tests.field.trial import trial

MIB = 1 << 20
SEGMENTS = 4
SEGMENT_BYTES = 64 * MIB
HASTY = {"maintenance": {"retention_interval": "1s", "compaction_interval": "1s"}}
WATCHED_SECONDS = 12.0


@trial(seconds_max=180)
def copies_made_while_ingesting_are_stores(ground: Ground) -> None:
    """A store is copied while it takes in writes, three times; each copy shows a prefix, after a rebuild at worst."""
    pair = Pair(ground, {name: ground.image(name, 8 * MIB) for name in ("data", "log")}).start()
    writes = StampedWrites(ground, pair)
    rebuilt = 0
    for number in range(ground.times(3)):
        seen = writes.count()
        ground.until("writes arrive", lambda seen=seen: writes.count() > seen + 300)
        pair.until_continuous()
        copy = ground.folder / f"copy{number}"
        ground.run("cp", "-a", pair.store, copy)
        rebuilt += _usable(ground, copy)
        ground.drengine("verify", "latest", "--store", copy)
        with Store.open(copy, read_only=True) as store:
            newest = store.points(pair.source)[-1]
        assert writes.prefix(newest, copy).writes > 0
    writes.stop()
    ground.measured |= {"copies": ground.times(3), "rebuilt": rebuilt, "writes": writes.count()}


@trial(seconds_max=180)
def a_newer_store_is_put_back(ground: Ground) -> None:
    """An older copy of the store takes its place, and then the newer one again: each time the replica becomes equal."""
    pair = Pair(ground, {"data": ground.image("data", 32 * MIB, filled=4 * MIB)}).start()
    copies = []
    for name in ("older", "newer"):
        scatter(ground, pair, "data", 200)
        pair.until_equal()
        pair.stop_target()
        copies.append(ground.folder / name)
        shutil.copytree(pair.store, copies[-1])
        pair.start_target()
    for copy in copies:
        scatter(ground, pair, "data", 200)
        pair.stop_target()
        shutil.rmtree(pair.store)
        shutil.copytree(copy, pair.store)
        pair.start_target()
        pair.until_continuous()
        scatter(ground, pair, "data", 20)
        pair.until_equal(f"the replica equals the disk after the {copy.name} store was put back")
    ground.measured["rescans"] = json.dumps(pair.status()["rescans"])


@trial(seconds_max=240)
def a_catalogue_older_than_its_segments_deletes_nothing(ground: Ground) -> None:
    """An older catalogue is put back: it is called damaged, nothing is deleted, all comes back."""
    size = SEGMENTS * SEGMENT_BYTES
    pair = Pair(ground, {"data": ground.image("data", size)}, target=HASTY).start()
    pair.stop_target()
    shutil.copy2(pair.store / "catalogue.sqlite", ground.folder / "old")
    pair.start_target()
    for _ in range(SEGMENTS):
        scatter(ground, pair, "data", 16, length=4 * MIB)
        pair.until_equal()
    pair.stop_agent()
    pair.stop_target()
    for each in pair.store.glob("catalogue.sqlite*"):
        shutil.copy2(each, ground.folder / f"good-{each.name}")
    points = {each.id: pair.content("data", each)[:MIB] for each in pair.points()[-3:]}
    for each in pair.store.glob("catalogue.sqlite*"):
        each.unlink()
    shutil.copy2(ground.folder / "old", pair.store / "catalogue.sqlite")
    _nothing_is_lost(ground, pair, points)


@trial(seconds_max=180)
def a_lost_write_ahead_log_deletes_nothing(ground: Ground) -> None:
    """The target is killed under load and its catalogue's log is lost: every committed segment and point survives."""
    pair = Pair(ground, {"data": ground.image("data", 128 * MIB)}, target=HASTY).start()
    scatter(ground, pair, "data", 40, length=4 * MIB)
    pair.until_equal()
    scatter(ground, pair, "data", 10, length=4 * MIB)
    pair.kill_target()
    pair.stop_agent()
    points = {each.id: pair.content("data", each)[:MIB] for each in pair.points()[-3:]}
    for suffix in ("-wal", "-shm"):
        (pair.store / f"catalogue.sqlite{suffix}").unlink(missing_ok=True)
    _nothing_is_lost(ground, pair, points)


def _nothing_is_lost(ground: Ground, pair: Pair, points: dict[str, bytes]) -> None:
    """A target over the store as it is, then what `status` says, then a rebuild."""
    segments = _segments(pair.store)
    target = ground.site.start("again", "drengine.cli.main", "target", "run", "--config", str(pair.target_file))
    ended = _ended_within(ground, target, WATCHED_SECONDS)
    status = ground.drengine("status", "--store", pair.store, "--json", ok=False)
    if not ended:
        ground.site.stop(target)
    if not _knows(status, points):
        lost = sorted(segments[each] for each in segments.keys() - _segments(pair.store).keys())
        assert not lost, f"{len(lost)} of {len(segments)} segments were deleted: {lost}"
        assert status.refusal()["error"] == "catalogue-damaged", status
        assert "rebuild" in status.refusal()["hint"], status
        ground.drengine("rebuild", "--store", pair.store)
    pair.start_target()
    pair.start_agent()
    found = {each.id: each for each in pair.points()}
    assert points.keys() <= found.keys(), f"{sorted(points.keys() - found.keys())} are gone"
    for name, content in points.items():
        assert pair.content("data", found[name])[:MIB] == content, name
    pair.until_equal("the replica equals the disk again")
    ground.measured |= {"segments": len(segments), "points compared": len(points)}


def _ended_within(ground: Ground, process: object, seconds: float) -> bool:
    """Whether it ends by itself; it is no failure here."""
    import subprocess

    assert isinstance(process, subprocess.Popen)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    ground.site.forget(process)
    return True


def _knows(status: Said, points: dict[str, bytes]) -> bool:
    """Whether the status is a good one that shows the newest of these points."""
    if status.status:
        return False
    newest = max(points, key=lambda each: int(each.partition("-")[2]))
    return any(each["newest_point"] == newest for each in status.json()["sources"])


def _segments(store: Path) -> dict[str, str]:
    """All segments under a store, wherever they lie, by their content."""
    found = {}
    for path in store.rglob("*.seg*"):
        if path.is_file():
            found[hashlib.sha256(path.read_bytes()).hexdigest()] = str(path.relative_to(store))
    return found


def _usable(ground: Ground, store: Path) -> bool:
    """Rebuild a store that says that it needs it; whether it did."""
    status = ground.drengine("status", "--store", store, "--json", ok=False)
    if status.status == 0:
        return False
    assert status.refusal()["error"] == "catalogue-damaged", status
    ground.drengine("rebuild", "--store", store)
    return True
