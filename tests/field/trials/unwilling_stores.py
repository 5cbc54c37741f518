"""Stores that go away, can't be written, or are not mounted, and a target that runs out of descriptors."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from demo.story import free_port
from tests.field.ground import Ground, Pair
from tests.field.load import scatter
from tests.field.trial import trial

MIB = 1 << 20
AGENTS = 12
DESCRIPTORS = 64
AWAY_SECONDS = (1.0, 5.0)
BACK_SECONDS = 90.0
QUIET_SECONDS = 5.0
LINES_MAX = 200


@trial(seconds_max=240)
def a_store_that_was_away_for_a_moment_is_used_again(ground: Ground) -> None:
    """The store's directory is moved away and back under a running target: replication goes on without an operator."""
    metrics = free_port()
    options = {"metrics": f"127.0.0.1:{metrics}"}
    pair = Pair(ground, {"data": ground.image("data", 32 * MIB)}, target=options).start()
    away = ground.folder / "away"
    waited = []
    for seconds in AWAY_SECONDS:
        pair.until_equal()
        pair.store.rename(away)
        scatter(ground, pair, "data", 50)
        time.sleep(seconds)
        ready = _ready(metrics)
        away.rename(pair.store)
        begun = time.monotonic()
        pair.until_continuous(seconds=BACK_SECONDS)
        scatter(ground, pair, "data", 5)
        pair.until_equal("the replica equals the disk again", seconds=BACK_SECONDS)
        waited.append(round(time.monotonic() - begun, 1))
        if seconds > QUIET_SECONDS / 2:
            assert not ready, "/readyz said ready while the store was away"
        ground.until("/readyz says so", lambda: _ready(metrics))
    ground.measured["seconds until it was back"] = waited


@trial(seconds_max=240)
def few_descriptors_stop_nobody_for_good(ground: Ground) -> None:
    """12 agents, 64 descriptors at the target: who is refused tries again, and all replicate when there are more."""
    ground.needs("prlimit")
    volumes = {f"d{number}": ground.image(f"d{number}", MIB) for number in range(AGENTS)}
    first = Pair(ground, {"data": volumes["d0"]}, name="0")
    pairs = [first]
    for number in range(1, AGENTS):
        pair = Pair(ground, {"data": volumes[f"d{number}"]}, name=str(number))
        pair.port, pair.store = first.port, first.store
        pair.write_agent_file("nbd", {})
        pairs.append(pair)
    hard = Path("/proc/self/limits").read_text().split("Max open files")[1].split()[1]
    first.start_target(prefix=["prlimit", f"--nofile={DESCRIPTORS}:{hard}"])
    for pair in pairs:
        pair.start_agent()
    time.sleep(QUIET_SECONDS)
    before = _lines(ground.folder / "target0.log")
    time.sleep(QUIET_SECONDS)
    lines = _lines(ground.folder / "target0.log") - before
    states = [pair.status()["state"] for pair in pairs]
    assert "STOPPED" not in states, states
    ground.run("prlimit", "--pid", str(first.target.pid), f"--nofile={hard}:{hard}")
    for pair in pairs:
        pair.until_continuous(seconds=BACK_SECONDS)
        pair.until_equal()
    assert lines < LINES_MAX, f"{lines} log lines in {QUIET_SECONDS:.0f} s"
    ground.measured |= {"served with 64": states.count("CONTINUOUS"), "log lines in 5 s": lines}


@trial(seconds_max=120)
def a_store_that_is_read_only_can_be_restored_from(ground: Ground) -> None:
    """A living store seen through a read-only mount: status, points, verify, export and restore work."""
    ground.needs_root()
    pair = Pair(ground, {"data": ground.image("data", 8 * MIB, filled=MIB)}).start()
    scatter(ground, pair, "data", 50)
    pair.until_equal()
    place = ground.folder / "snapshot"
    place.mkdir()
    ground.run("mount", "--bind", pair.store, place)
    ground.at_end(lambda: ground.run("umount", place))
    ground.run("mount", "-o", "remount,bind,ro", place)
    for command in ("status", "points"):
        ground.drengine(command, "--store", place, "--json")
    ground.drengine("verify", "latest", "--store", place, "--json")
    (ground.folder / "restored").mkdir()
    ground.drengine("restore", "latest", "--store", place, "--to", ground.folder / "restored")
    assert (ground.folder / "restored/data.img").read_bytes() == pair.content("data")
    pair.store = place
    process, told = pair.export("latest")
    assert told["uris"]
    ground.site.stop(process)
    assert pair.until_continuous()["state"] == "CONTINUOUS", "the living store suffered"


@trial(seconds_max=120)
def a_store_that_is_not_mounted_is_not_made_anew(ground: Ground) -> None:
    """The store's file system is not mounted when the target starts: it refuses, and goes on once it is mounted."""
    ground.needs_kernel()
    ground.needs("mkfs.ext4")
    disk = ground.disk("storage", 256 * MIB)
    ground.run("mkfs.ext4", "-q", "-F", disk)
    pair = Pair(ground, {"data": ground.image("data", 8 * MIB, filled=MIB)})
    with ground.mounted(disk, "mnt") as place:
        pair.move_store(place / "store")
        pair.start()
        pair.until_equal()
        pair.stop_agent()
        pair.stop_target()
    target = ground.site.start("early", "drengine.cli.main", "target", "run", "--config", str(pair.target_file))
    with contextlib.suppress(AssertionError):
        ground.until("it ends", lambda: target.poll() is not None, seconds=QUIET_SECONDS)
    said = (ground.folder / "early.log").read_text()
    found = sorted(str(each.relative_to(place)) for each in place.rglob("*"))
    assert target.poll(), f"a target without its store runs on, with {found}: {said[-600:]}"
    ground.site.forget(target)
    assert not [each for each in found if each.endswith("STORE")], f"a new store was made: {found}"
    assert "Traceback" not in said, said
    with ground.mounted(disk, "mnt"):
        pair.start_target()
        pair.start_agent()
        pair.until_continuous()
        pair.until_equal()
        pair.stop_agent()
        pair.stop_target()


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _lines(log: Path) -> int:
    return log.read_bytes().count(os.linesep.encode())
