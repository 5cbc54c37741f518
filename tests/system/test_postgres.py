"""A database lives on protected disks, its server dies, and it comes back at several moments, each of them whole."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.devices import attached, mounted, until
from demo.story import free_port
from tests.configurations import AGENT, TARGET
from tests.system.disks import run, skip_unless_disks_can_be_attached
from tests.system.postgres import Ledger, Server, initialise, rows, skip_unless_installed
from tests.system.site import Site

pytestmark = pytest.mark.timeout(180)

DISKS = {"data": 160 << 20, "log": 48 << 20}


@dataclass(frozen=True)
class Moment:
    """A labelled point, and how many transactions may at most be in it: those sent before its cut was answered."""

    label: str
    sent: int


class Outpost:
    """Target and agent as real processes, PostgreSQL's two disks, and what is recovered from them."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.site = Site(folder)
        self._programs = programs
        self._ports = iter(range(5501, 5600))
        self._sockets = folder / "sockets"
        self._sockets.mkdir()
        shutil.chown(self._sockets, "postgres", "postgres")
        for name, size in DISKS.items():
            with (folder / f"{name}.img").open("wb") as image:
                image.truncate(size)
            run("mkfs.ext4", "-q", "-F", folder / f"{name}.img")

    def install(self) -> None:
        """Make the cluster, as it was before anybody thought of protecting it."""
        with self.disks({name: self.folder / f"{name}.img" for name in DISKS}, "before") as top:
            initialise(self._programs, top / "data" / "pg", top / "log" / "pg")

    def protect(self) -> subprocess.Popen[bytes]:
        """Start the target, then the agent, and wait for the first point."""
        port = free_port()
        (self.folder / "target.toml").write_text(TARGET.format(port=port))
        (self.folder / "agent.toml").write_text(AGENT.format(port=port))
        self.site.run("drengine.cli.main", "target", "init", "--config", "target.toml")
        self.site.start("target", "drengine.cli.main", "target", "run", "--config", "target.toml")
        agent = self.start_agent()
        self.site.wait("the initial sync ends in a point", self._replicates)
        return agent

    def start_agent(self) -> subprocess.Popen[bytes]:
        agent = self.site.start("agent", "drengine_agent", "run", "--config", "agent.toml")
        self.site.wait("the agent answers", self.status)
        return agent

    def status(self) -> Any:
        try:
            return self.site.run("drengine_agent", "status", "--config", "agent.toml")
        except Exception:  # noqa: BLE001 - it is not up yet
            return None

    def _replicates(self) -> bool:
        status = self.status()
        return bool(status) and status["state"] == "CONTINUOUS"

    def cut(self, label: str) -> None:
        self.site.run("drengine_agent", "cut", "--config", "agent.toml", "--label", label)

    def points(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.site.run("drengine.cli.main", "points", "--store", "store")
        return listed

    def tap_disks(self, place: str) -> contextlib.AbstractContextManager[Path]:
        uris = {name: f"nbd+unix:///{name}?socket={self.folder / 'tap.sock'}" for name in DISKS}
        return self.nbd_disks(uris, place)

    @contextlib.contextmanager
    def nbd_disks(self, uris: dict[str, str], place: str) -> Iterator[Path]:
        with contextlib.ExitStack() as stack:
            yield stack.enter_context(
                self.disks(
                    {
                        name: stack.enter_context(attached(uri, self.folder / f"{place}-{name}"))
                        for name, uri in uris.items()
                    },
                    place,
                )
            )

    @contextlib.contextmanager
    def disks(self, images: dict[str, Path], place: str) -> Iterator[Path]:
        with contextlib.ExitStack() as stack:
            for name, image in images.items():
                stack.enter_context(mounted(image, self.folder / place / name))
            yield self.folder / place

    def postgres(self, top: Path) -> Server:
        return Server(self._programs, top / "data" / "pg", self._sockets, next(self._ports))

    @contextlib.contextmanager
    def exported(self, point: str, place: str) -> Iterator[Path]:
        """A drill's branch of the point, served and mounted at once."""
        command = ["drengine.cli.main", "export", point, "--store", "store", "--writable", "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=subprocess.PIPE, cwd=self.folder, env=self.site._environment()
        )
        try:
            assert process.stdout
            told = json.loads(process.stdout.readline())
            uris = dict(zip([each["name"] for each in told["volumes"]], told["uris"], strict=True))
            with self.nbd_disks(uris, place) as top:
                yield top
        finally:
            process.terminate()
            process.communicate(timeout=30)
        assert process.returncode == 0

    @contextlib.contextmanager
    def restored(self, point: str, place: str) -> Iterator[Path]:
        """Raw files, whose file systems are clean once they were mounted and let go."""
        folder = self.folder / f"{place}-files"
        folder.mkdir()
        report = self.site.run("drengine.cli.main", "restore", point, "--store", "store", "--to", str(folder))
        assert report["completed"] is True
        images = {name: folder / f"{name}.img" for name in DISKS}
        with self.disks(images, place) as top:
            yield top
        for image in images.values():
            run("e2fsck", "-fn", image)


@pytest.fixture
def outpost() -> Iterator[Outpost]:
    skip_unless_disks_can_be_attached()
    programs = skip_unless_installed()
    folder = Path(tempfile.mkdtemp(prefix="drengine-pg-"))  # short, for sockets; open, for PostgreSQL's user
    folder.chmod(0o755)
    site = Outpost(folder, programs)
    try:
        yield site
    finally:
        site.site.close()
        if not any(str(folder) in line for line in Path("/proc/self/mountinfo").read_text().splitlines()):
            shutil.rmtree(folder)


@pytest.mark.fault(63)
def test_a_database_on_two_disks_comes_back_at_several_moments(outpost: Outpost) -> None:
    outpost.install()
    agent = outpost.protect()
    moments: list[Moment] = []
    with outpost.tap_disks("live") as top, outpost.postgres(top) as server:
        server.ask(Ledger.TABLES)
        ledger = Ledger(server)
        try:
            for label in ("first", "second"):
                ledger.wait_for(70)
                outpost.cut(label)
                moments.append(Moment(label, len(ledger.sent_ns)))
            ledger.wait_for(30)
            outpost.site.kill(agent)
        finally:
            server.kill()
            ledger.close()
    print(f"{len(ledger.committed_ns)} transactions were committed before the source was lost")

    points = outpost.points()
    found = {}
    for moment in (*moments, Moment("", len(ledger.sent_ns))):
        point = next(each for each in reversed(points) if each["label"] == moment.label)
        recovered = outpost.restored if moment.label == "first" else outpost.exported
        place = moment.label or "latest"
        with recovered(point["id"], place) as top, outpost.postgres(top) as server:
            count = found[place] = rows(server)
            server.ask(f"INSERT INTO debit VALUES ({count + 1}, 'life goes on')")
        older = sum(each <= point["time_ns"] for each in ledger.committed_ns)
        assert older <= count <= moment.sent, f"{place}: {older} were committed before the point, {count} are there"
    print(f"recovered: {found}")
    assert 70 <= found["first"] <= found["second"] <= found["latest"]

    outpost.start_agent()  # the source comes back: its disks hold everything that they ever acknowledged
    with outpost.tap_disks("again") as top, outpost.postgres(top) as server:
        assert len(ledger.committed_ns) <= rows(server) <= len(ledger.sent_ns)
    until(lambda: outpost.status()["state"] == "CONTINUOUS", "replication goes on")
    assert not outpost.status()["rescans"]
