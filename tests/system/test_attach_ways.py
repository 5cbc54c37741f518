"""The ways of attaching that need drivers of the kernel: run by the one-file agent on a host that has them.

One server's disks are attached by the kernel's NBD driver, another's by its iSCSI initiator: mounted, written,
and the agent killed meanwhile. What was written is in recovery points, and nothing is left on the host.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.iscsi.serving import MARK as TGTD
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.process import end_marked, find_marked, start_marked
from drengine.store.store import Store
from tests.agent.install.onefile import build_here
from tests.iscsi.rig import skip_unless_iscsi_can_be_served
from tests.system.recovery_guest import (
    INITIATOR,
    NETWORK,
    OURS,
    SECRET,
    USER,
    RecoveryGuest,
    missing_for_recovery_guest,
    recovery_guest,
)
from tests.target.agent import data_batch

pytestmark = [pytest.mark.timeout(900), pytest.mark.campaign]

MARK = "DR_TEST_ATTACH"
WAIT_SECONDS = 120.0
PIECE, DISK_BYTES, START = 65536, 24 << 20, 1 << 20
SOURCES = ("kernel", "iscsi")
"""Each is called as its disks are attached."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
TARGET = """store = "{folder}/store"
listen = "127.0.0.1:7440"
nbd_listen = "{ours}:10809"
nbd_socket = "{folder}/nbd.sock"
data_networks = ["{network}"]
[tls]
certificate = "{folder}/outpost/certificate.pem"
key = "{folder}/outpost/key.pem"
ca = "{folder}/outpost/ca.pem"
"""
STANDBY = """name = "recovery-1"
data_networks = ["{network}"]
[tls]
certificate = "/identity/certificate.pem"
key = "/identity/key.pem"
ca = "/identity/ca.pem"
[control]
address = "{ours}:8883"
certificate = "/identity/certificate.pem"
key = "/identity/key.pem"
ca = "/identity/ca.pem"
"""
ORCHESTRATOR = """store = "{folder}/store"
state = "{folder}/orchestrator"
export = "{ours}:10809"
data_networks = ["{network}"]
[broker]
address = "{ours}:8883"
certificate = "{folder}/orchestrator-1/certificate.pem"
key = "{folder}/orchestrator-1/key.pem"
ca = "{folder}/orchestrator-1/ca.pem"
"""
PARTIES = (("target/outpost", OURS), ("broker/broker", OURS), ("host/recovery-1",), ("orchestrator/orchestrator-1",))


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-attach-"))
    yield made
    end_marked(MARK, made.name, made, grace_seconds=5.0)
    shutil.rmtree(made)


def make_disks(folder: Path) -> dict[str, Path]:
    """`data` is a file system, `log` has one in its partition."""
    content = folder / "content"
    content.mkdir()
    (content / "hello").write_text("from the source")
    disks = {name: folder / f"{name}.img" for name in ("data", "log")}
    for disk in disks.values():
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-d", content, disks["data"]], check=True)
    table = f"label: dos\nstart={START // 512}, type=83\n"
    subprocess.run(["sfdisk", "-q", disks["log"]], input=table, text=True, check=True)
    partition = ["-E", f"offset={START}", disks["log"], str((DISK_BYTES - START) >> 10)]
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", "-d", content, *partition], check=True)
    return disks


def replicate(folder: Path, disks: dict[str, Path]) -> None:
    """A store with both servers, each with these disks."""
    with Store.create(folder / "store") as store:
        for source in SOURCES:
            store.ensure_source(source)
            writer = store.writer(source, generation=1)
            geometry = tuple(VolumeGeometry(n, name, f"file:{n}", DISK_BYTES) for n, name in enumerate(disks, 1))
            writer.append_geometry(1, Mark(), geometry, generation=1)
            sequence = 1
            for number, disk in enumerate(disks.values(), 1):
                image = disk.read_bytes()
                pieces = ((at, image[at : at + PIECE]) for at in range(0, DISK_BYTES, PIECE))
                for at, data in pieces:
                    if data.strip(b"\0"):
                        sequence += 1
                        writer.append_batch(sequence, Mark(), data_batch([(at, data)], volume=number), generation=1)
            cut = Cut(time.time_ns(), PointKind.QUIET, "whole")
            writer.append_cut(sequence + 1, Mark(), cut, generation=1)
            writer.commit(generation=1)
            writer.close()


def runbook(folder: Path) -> dict[str, Any]:
    sources = {}
    for source in SOURCES:
        at = f"/srv/{source}"
        iscsi = {"portal": OURS, "socket": f"{folder}/nbd.sock", "initiators": [INITIATOR]}
        iscsi |= {"user": USER, "secret": f"${{file:{folder}/chap}}"}
        settings = {
            "attach": source,
            "mounts": [
                {"volume": "data", "at": f"{at}/data"},
                {"volume": "log", "at": f"{at}/log", "partition": 1},
            ],
            "start": ["sh", "-c", f"grep source {at}/data/hello {at}/log/hello && echo $$ >> {at}/data/starts && sync"],
            "stop": ["sync"],
            "health": ["test", "-e", f"/go-{source}"],
            **({"iscsi": iscsi} if source == "iscsi" else {}),
        }
        launch = {"driver": "standby", "host": "recovery-1", "timeout": "45s", "settings": settings}
        sources[source] = {"fence": {"command": ["true"]}, "launch": launch}
    return {
        "version": 1,
        "name": "attach",
        "sources": sources,
        "waves": [{"name": "all", "sources": list(SOURCES)}],
    }


class Outpost:
    """This machine's part, in the guest's network."""

    def __init__(self, folder: Path, guest: RecoveryGuest) -> None:
        self._folder = folder
        self._inside = guest.inside

    def start(self, name: str, *argv: str) -> None:
        """A process that stays."""
        start_marked(
            [*self._inside, sys.executable, "-m", "drengine.cli.main", *argv],
            MARK,
            self._folder.name,
            output=self._folder / f"{name}.log",
            directory=self._folder,
            environment={"PYTHONPATH": ENVIRONMENT["PYTHONPATH"]},
        )

    def run(self, *argv: str, fails: bool = False) -> Any:
        """A command's JSON."""
        done = subprocess.run(
            [*self._inside, sys.executable, "-m", "drengine.cli.main", *argv, "--json"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
            env=ENVIRONMENT,
        )
        assert bool(done.returncode) == fails, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout else done.stderr

    def file_in_newest_point(self, source: str, volume: str, name: str) -> str:
        """As whoever restores the disk finds it."""
        newest = self.run("points", "--store", "store", "--source", source)[-1]["id"]
        disk = self._folder / "restored.img"
        disk.unlink(missing_ok=True)
        self.run("restore", newest, "--store", "store", "--source", source, "--to", f"{volume}={disk}", "--no-verify")
        at = f"?offset={START}" if volume == "log" else ""
        shown = subprocess.run(
            ["debugfs", "-R", f"cat {name}", f"{disk}{at}"], capture_output=True, text=True, check=True
        )
        return shown.stdout


def until(ready: Callable[[], Any], what: str) -> None:
    """Wait for something to become true; an emulated host takes its time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not ready():
        assert time.monotonic() < deadline, f"{what} never happened"
        time.sleep(0.2)


def attached(guest: RecoveryGuest) -> tuple[str, str, str]:
    """What would differ if anything were attached twice: NBD devices, sessions, and who mounts what."""
    nbd = guest.run("cd /sys/block; for each in nbd*/pid; do echo $each $(cat $each); done")[1]
    sessions = guest.run("ls /sys/class/iscsi_session")[1]
    return nbd, sessions, guest.does("grep /srv/ /proc/mounts | sort")


def test_disks_come_by_the_kernels_drivers_outlast_the_agent_and_nothing_is_left(folder: Path) -> None:
    skip_unless_iscsi_can_be_served()
    if missing := missing_for_recovery_guest():
        pytest.skip(f"not installed: {missing}")
    replicate(folder, make_disks(folder))
    (folder / "chap").write_text(SECRET)
    subprocess.run(
        [sys.executable, "-m", "drengine.cli.main", "ca", "init", "--ca", "ca", "--site", "main"],
        cwd=folder,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    for party, *reached in PARTIES:
        argv = [sys.executable, "-m", "drengine.cli.main", "ca", "issue", party, "--ca", "ca"]
        argv += [word for host in reached for word in ("--host", host)] + ["--to", party.partition("/")[2]]
        subprocess.run(argv, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    for name, text in (("target", TARGET), ("orchestrator", ORCHESTRATOR)):
        (folder / f"{name}.toml").write_text(text.format(folder=folder, ours=OURS, network=NETWORK))
    (folder / "runbook.yaml").write_text(json.dumps(runbook(folder)))
    agent = build_here(folder / "drengine-agent")
    standby = STANDBY.format(ours=OURS, network=NETWORK)
    with recovery_guest(folder, agent, folder / "recovery-1", standby) as guest:
        outpost = Outpost(folder, guest)
        tls = [word for name in ("certificate", "key", "ca") for word in (f"--{name}", f"broker/{name}.pem")]
        outpost.start("broker", "broker", "run", "--listen", f"{OURS}:8883", *tls)
        outpost.start("target", "target", "run", "--config", "target.toml")
        guest.start_agent()
        try:
            recover(folder, guest, outpost)
        except BaseException:
            print(guest.run("cat /agent.log; dmesg | tail -30")[1][-6000:])
            raise
        finally:
            for instance in (folder / "orchestrator/instances").glob("*/"):
                print((instance / "keeper.log").read_text() if (instance / "keeper.log").exists() else "")


def recover(folder: Path, guest: RecoveryGuest, outpost: Outpost) -> None:
    config = ("--config", "orchestrator.toml")
    plan = outpost.run("plan", "runbook.yaml", "--mode", "failover", *config)
    ways = [check["message"] for check in plan["checks"] if check["check"] == "host-attaches"]
    assert sorted(ways) == ["by iscsi", "by kernel"], plan["checks"]

    goes_on = ("failover", "runbook.yaml")
    for source in SOURCES:  # one after the other: the next is launched when this one is healthy
        tried = outpost.run(*goes_on, *config, fails=True)
        before = attached(guest)
        assert all(f" /srv/{source}/{volume} " in before[2] for volume in ("data", "log")), (before, tried["steps"])
        guest.kill_agent()
        assert attached(guest) == before, "disks depend on the agent's life"
        guest.start_agent()
        guest.does(f"touch /go-{source}")
        goes_on = ("run", "resume", "last")
    over = outpost.run(*goes_on, *config)
    assert over["outcome"] == "completed", over
    assert attached(guest) == before, "something is attached twice"
    assert len(before[0].splitlines()) == 2, before
    assert len(before[1].splitlines()) == 1, before
    for source in SOURCES:
        assert guest.does(f"cat /srv/{source}/data/starts").count("\n") == 1
        for volume in ("data", "log"):
            guest.does(f"echo written by {source} >/srv/{source}/{volume}/written; sync")
    for source in SOURCES:
        for volume in ("data", "log"):
            wanted = f"written by {source}\n"
            until(
                lambda s=source, v=volume, w=wanted: outpost.file_in_newest_point(s, v, "written") == w,
                "a point has it",
            )

    instance = next(path.parent.name for path in (folder / "orchestrator/instances").glob("*/luns.json"))
    for process in find_marked(TGTD, instance):
        os.kill(process, 9)
    guest.does("echo after the target daemon died >/srv/iscsi/data/again; sync", seconds=120)
    until(lambda: outpost.file_in_newest_point("iscsi", "data", "again").startswith("after"), "it is protected")
    assert attached(guest) == before

    guest.kill_agent()
    guest.start_agent()
    undone = outpost.run("rollback", "last", "--yes", *config, fails=True)
    left = {step["id"] for step in undone["steps"] if step["status"] == "failed"}
    assert left == {f"undo.release:{source}" for source in SOURCES}, "only the sources' agents are not there to be told"
    assert guest.run("ls /sys/block/nbd*/pid")[0] != 0
    assert not guest.does("ls /sys/class/iscsi_session").strip()
    assert guest.run("grep /srv/ /proc/mounts")[0] != 0
    assert not guest.does("find /etc/iscsi/nodes /var/lib/iscsi/nodes -type f 2>/dev/null; true").strip()
    assert not guest.does("ls /var/lib/drengine-standby/instances").strip()
    assert "No active sessions" in guest.run("iscsiadm -m session")[1]
    assert not find_marked(TGTD, instance)
    assert not re.search("nbd-client", guest.does("ps"))
