"""Daemons started twice, killed, in odd places, under names that change and clocks that are wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from drengine.model.points import PointSelector
from drengine.nbd.client import NbdClient
from drengine.store.store import Store
from tests.agent.install.onefile import build_here
from tests.field.ground import AGENT, DRENGINE, Ground, Pair
from tests.field.load import scatter
from tests.field.trial import Skipped, trial

MIB = 1 << 20
INTERNAL = 125
REFUSED_SECONDS = 30.0
RESOLVED = Path("/etc/hosts")
FAKETIME = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")
CLOCKS = {"in ten years": "+3652d", "2099": "@2099-06-01 12:00:00", "1970": "@1970-01-02 00:00:00"}
LAG_SECONDS_MAX = 60.0
MAINTENANCE_SECONDS = 2.5
NOBODY = 65534


@trial(seconds_max=150)
def stale_sockets_are_replaced_and_second_daemons_refused(ground: Ground) -> None:
    """Killed daemons leave sockets and start again; a second one is refused, the first lives."""
    pair = Pair(ground, {"data": ground.image("data", 8 * MIB)}).start()
    for _ in range(ground.times(3)):
        scatter(ground, pair, "data", 20)
        pair.kill_agent()
        pair.kill_target()
        assert pair.tap.exists()
        assert pair.recovery.exists()
        pair.start_target()
        pair.start_agent()
        pair.until_continuous()
    other = Pair(ground, pair.volumes, name="other", target={"nbd_socket": str(pair.recovery)})
    attempts = {
        "a second agent": (AGENT, "run", "--config", str(pair.agent_file)),
        "a second target": (DRENGINE, "target", "run", "--config", str(pair.target_file)),
        "another target with the same socket": (DRENGINE, "target", "run", "--config", str(other.target_file)),
    }
    for what, words in attempts.items():
        process = ground.site.start("second", *words)
        try:
            status = process.wait(REFUSED_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{what} was not refused") from None
        ground.site.forget(process)
        said = (ground.folder / "second.log").read_text()
        assert status not in (0, INTERNAL), f"{what} ended with {status}: {said}"
        assert "Traceback" not in said, said
    scatter(ground, pair, "data", 20)
    pair.until_equal("the first ones go on")
    with NbdClient(str(pair.recovery), f"{pair.source}/data@{_newest(pair)}") as disk:
        assert bytes(disk.read(0, MIB)) == pair.content("data")[:MIB]


@trial(seconds_max=150)
def names_that_change_are_resolved_anew(ground: Ground) -> None:
    """The target's name means ::1 first, then nothing, then another address: the agent finds it."""
    ground.needs_root()
    ground.needs("unshare")
    hosts = ground.folder / "hosts"
    hosts.write_text("::1 outpost\n127.0.0.1 outpost\n")
    pair = Pair(ground, {"data": ground.image("data", 8 * MIB)})
    pair.write_agent_file("nbd", {"target": f"outpost:{pair.port}"})
    pair.start_target()
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    pair.start_agent(prefix=["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(hosts)])
    ground.until("a first point by 127.0.0.1, after ::1 was tried", pair.newest)
    for number, text in enumerate(("127.0.0.2 outpost\n", "::1 outpost\n127.0.0.3 outpost\n"), start=2):
        pair.stop_target()
        hosts.write_text("")
        scatter(ground, pair, "data", 20)
        ground.until("the agent misses its target", lambda: pair.status()["state"] != "CONTINUOUS")
        pair.listen = f"127.0.0.{number}"
        pair.move_store(pair.store)
        pair.start_target()
        hosts.write_text(text)
        pair.until_continuous()
        pair.until_equal()
    assert RESOLVED.read_text().find("outpost") < 0, "the machine's own hosts file was changed"


@trial(seconds_max=240)
def clocks_that_are_wrong_change_neither_latest_nor_lag(ground: Ground) -> None:
    """Agent and target with clocks in ten years, in 2099 and in 1970: latest is the newest, lag and ages stay right."""
    pair = Pair(ground, {"data": ground.image("data", 4 * MIB)}, target={"maintenance": {"retention_interval": "1s"}})
    pair.start()
    for name, moment in CLOCKS.items():
        fake = faked_clock(moment)
        for whose in ("agent", "target"):
            (pair.stop_agent if whose == "agent" else pair.stop_target)()
            if whose == "agent":
                pair.start_agent(prefix=fake)
            else:
                pair.start_target(prefix=fake)
            _is_sane(ground, pair, f"the {whose}'s clock {name}")
            (pair.stop_agent if whose == "agent" else pair.stop_target)()
            (pair.start_agent if whose == "agent" else pair.start_target)()
            scatter(ground, pair, "data", 5)
            pair.until_equal(f"the replica equals the disk with the {whose}'s clock right again after {name}")
    ground.measured["clocks"] = 2 * len(CLOCKS)


def faked_clock(moment: str) -> list[str]:
    """A command that runs another whose wall clock says so; without faketime the trial is skipped."""
    library = next((str(p) for pattern in FAKETIME for p in Path("/").glob(pattern[1:])), None)
    if library is None:
        raise Skipped("not installed: faketime")
    return ["env", f"LD_PRELOAD={library}", f"FAKETIME={moment}", "FAKETIME_DONT_FAKE_MONOTONIC=1"]


def _is_sane(ground: Ground, pair: Pair, when: str) -> None:
    scatter(ground, pair, "data", 5)
    pair.until_continuous()
    pair.until_equal(f"the replica equals the disk, {when}")
    listed = ground.drengine("points", "--store", pair.store, "--json").json()
    with Store.open(pair.store, read_only=True) as store:
        latest = store.find_point(pair.source, PointSelector())
    assert latest.id == listed[-1]["id"] == _newest(pair), f"latest is {latest}, {when}"
    lag = pair.status()["lag_seconds"]
    assert 0 <= lag < LAG_SECONDS_MAX, f"lag {lag} s, {when}"
    assert all(each["lag_seconds"] >= 0 for each in listed), listed
    shown = ground.drengine("points", "--store", pair.store).output
    assert "-" not in {cell.strip()[:1] for line in shown.splitlines() for cell in line.split("│")[2:4]}, shown


@trial(seconds_max=120)
def spaces_and_links_in_paths_are_paths(ground: Ground) -> None:
    """Store, state, disk, sockets and configuration under names with spaces, quotes and letters, by way of links."""
    real, link = ground.folder / "a place of 'ours' & \u00fcber #1", ground.folder / "link"
    real.mkdir()
    link.symlink_to(real)
    inside = Ground(link, ground.seed)
    try:
        pair = Pair(inside, {"data": inside.image("my disk", 8 * MIB, filled=MIB)}, name=" one").start()
        scatter(inside, pair, "data", 20)
        pair.until_equal()
        for command in ("status", "points", "verify latest"):
            inside.drengine(*command.split(), "--store", pair.store, "--json").json()
        inside.drengine("restore", "latest", "--store", pair.store, "--to", f"data={link / 'the copy.img'}")
        assert (real / "the copy.img").read_bytes() == pair.content("data")
        _, told = pair.export("latest", "--socket", str(link / "an export.sock"))
        with NbdClient.of(told["uris"][0]) as disk:
            assert bytes(disk.read(0, MIB)) == pair.content("data")[:MIB]
        inside.agent("status", "--config", pair.agent_file, "--json").json()
    finally:
        inside.close()


@trial(seconds_max=120)
def an_agent_where_nothing_may_be_executed_works_or_says_why(ground: Ground) -> None:
    """The one-file agent on a noexec file system, by a link, with its cache there: it works or says why."""
    ground.needs_root()
    place = ground.folder / "no exec"
    place.mkdir()
    ground.run("mount", "-t", "tmpfs", "-o", "noexec,mode=755", "tmpfs", place)
    ground.at_end(lambda: ground.run("umount", place))
    file = build_here(place / "drengine-agent")
    (ground.folder / "agent").symlink_to(file)
    python = os.path.realpath("/proc/self/exe")
    caches = {"elsewhere": ground.folder / "my cache", "noexec": place / "cache"}
    ends = {}
    for name, cache in caches.items():
        environment = {"DRENGINE_CACHE": str(cache), "PYTHONPATH": "", "TMPDIR": str(ground.folder)}
        said = ground.run(python, ground.folder / "agent", "example-config", env=environment, ok=False)
        ends[name] = said.status
        if said.status:
            assert name != "elsewhere", said
            assert _says_why(said.error), f"{name}: it fails without saying why: {said}"
        else:
            assert "state_directory" in said.output, said
    ground.measured["exit by cache"] = ends


def _says_why(text: str) -> bool:
    """An error as all ours are: a sentence, an id, a hint."""
    return "error:" in text and "hint:" in text


def _newest(pair: Pair) -> str:
    point = pair.newest()
    assert point
    return point.id


@trial(seconds_max=120)
def root_beside_the_service_user_leaves_the_store_usable(ground: Ground) -> None:
    """The target runs as a service user; root exports, is killed, pins, scrubs, rebuilds: all goes on."""
    ground.needs_root()
    ground.needs("setpriv")
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    if ground.run(*user, sys.executable, "-c", "import drengine.cli.main", ok=False).status:
        raise Skipped("a service user can't read this checkout or its Python")
    home = ground.folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    options = {"maintenance": {"retention_interval": "1s", "compaction_interval": "1s"}}
    pair = Pair(ground, {"data": ground.image("data", 8 * MIB)}, target=options)
    pair.recovery = home / "recovery.sock"
    pair.move_store(home / "store")
    pair.start_target(prefix=user)
    pair.start_agent()
    ground.until("a first point", pair.newest)
    refused = []
    for turn in range(2):
        process, _ = pair.export("latest", "--writable")
        process.send_signal(signal.SIGKILL)
        process.wait()
        ground.site.forget(process)
        for command in ("pin latest", "verify latest", "scrub", "unpin latest", "status", "points"):
            said = ground.drengine(*command.split(), "--store", pair.store, "--json", ok=False)
            if said.status:
                assert said.refusal()["hint"], said
                refused.append(command)
        _goes_on(ground, pair)
        if turn == 0:
            pair.stop_target()
            said = ground.drengine("rebuild", "--store", pair.store, "--json", ok=False)
            if said.status:
                assert said.refusal()["hint"], said
                refused.append("rebuild")
            pair.start_target(prefix=user)
            _goes_on(ground, pair)
    ground.measured["commands that were refused to root"] = ", ".join(refused) or "none"


def _goes_on(ground: Ground, pair: Pair) -> None:
    """Replication goes on, maintenance finds nothing that it may not touch."""
    log = ground.folder / "target.log"
    seen = log.stat().st_size
    scatter(ground, pair, "data", 20)
    pair.until_continuous()
    pair.until_equal()
    time.sleep(MAINTENANCE_SECONDS)
    said = log.read_text()[seen:]
    assert "ermission" not in said, said[-1500:]
    foreign = [str(path.relative_to(pair.store)) for path in pair.store.rglob("*") if path.lstat().st_uid != NOBODY]
    assert not foreign, f"not the service user's: {foreign}"
