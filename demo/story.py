"""What happens, act by act, and what was measured."""

from __future__ import annotations

import bisect
import json
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.disks import DATA_BYTES, LOG_BYTES, Slots, filesystem_clean, make_disks
from demo.site import Site, StoryFailed
from demo.writer import Prefix, acknowledged_writes, check_prefix
from drengine.nbd.client import NbdClient

SOURCE = "shop"
VOLUMES = {"data": DATA_BYTES, "log": LOG_BYTES}
WRITING_SECONDS = 6.0
READ_BYTES = 8 << 20
TARGET = """store = "store"
listen = "127.0.0.1:{port}"
nbd_socket = "recovery.sock"
"""
AGENT = """source = "shop"
target = "127.0.0.1:{port}"
state_directory = "agent"

[nbd]
listen = "unix:tap.sock"
journal = "64MiB"

[[volume]]
name = "data"
path = "data.img"

[[volume]]
name = "log"
path = "log.img"
"""


@dataclass
class Outcome:
    """What is printed at the end; the field names are the keys of ``--json``."""

    prefix_intact: bool = False
    older_prefix_intact: bool = False
    filesystem_clean: bool = False
    acknowledged_writes: int = 0
    recovered_writes: int = 0
    older_recovered_writes: int = 0
    points: int = 0
    rpo_seconds: float = 0.0
    rto_seconds: float = 0.0
    initial_sync_seconds: float = 0.0
    bytes_read: int = 0
    bytes_on_wire: int = 0
    seed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return (
            self.prefix_intact
            and self.older_prefix_intact
            and self.filesystem_clean
            and self.recovered_writes > self.older_recovered_writes > 0
            and not self.problems
        )


Tell = Callable[[str, str], None]
"""Called with (act, what happened) as the story goes on."""


class Story:
    """One run in one folder."""

    def __init__(self, folder: Path, *, seed: int | None, tell: Tell) -> None:
        self._folder = folder
        self._site = Site(folder)
        self._tell = tell
        self.outcome = Outcome(seed=secrets.randbelow(2**31) if seed is None else seed)

    def play(self) -> Outcome:
        """Run every act; the outcome says whether it went as it should.

        Raises:
            StoryFailed: a process ended or something did not happen in time.
        """
        try:
            slots = self._make_source()
            target = self._start_target()
            agent = self._start_agent()
            writer = self._start_writer(slots)
            self._let_it_run()
            killed_at = self._lose_the_source(agent, writer)
            self._recover(slots, killed_at)
            self._stop_target(target)
        finally:
            self._site.close()
        return self.outcome

    def _make_source(self) -> Slots:
        data, log, slots = make_disks(self._folder, self.outcome.seed)
        self._disks = {"data": data, "log": log}
        self._tell("source", f"an ext4 disk of {DATA_BYTES >> 20} MiB and a raw log disk of {LOG_BYTES >> 20} MiB")
        return slots

    def _start_target(self) -> subprocess.Popen[bytes]:
        self._port = free_port()
        (self._folder / "target.toml").write_text(TARGET.format(port=self._port))
        (self._folder / "agent.toml").write_text(AGENT.format(port=self._port))
        target = self._site.start("target", "drengine.cli.main", "target", "run", "--config", "target.toml")
        self._site.wait("the target listens", lambda: _accepts(self._port))
        self._tell("target", f"listens on loopback port {self._port}, store in {self._folder / 'store'}")
        return target

    def _start_agent(self) -> subprocess.Popen[bytes]:
        begun = time.monotonic()
        agent = self._site.start("agent", "drengine_agent", "run", "--config", "agent.toml")
        self._site.wait("the initial sync ends in a point", self._points)
        self.outcome.initial_sync_seconds = round(time.monotonic() - begun, 3)
        status = self._site.run("drengine_agent", "status", "--config", "agent.toml")
        self._tell(
            "initial sync",
            f"{(DATA_BYTES + LOG_BYTES) >> 20} MiB compared and shipped in {self.outcome.initial_sync_seconds:.2f} s, "
            f"{status['bytes_sent'] / 2**20:.1f} MiB on the wire, first recovery point is there",
        )
        return agent

    def _start_writer(self, slots: Slots) -> subprocess.Popen[bytes]:
        plan = {
            "sockets": dict.fromkeys(VOLUMES, str(self._folder / "tap.sock")),
            "places": slots.places,
            "seed": self.outcome.seed,
            "acknowledged": str(self._folder / "acknowledged"),
            "pause_seconds": 0.01,
        }
        (self._folder / "plan.json").write_text(json.dumps(plan))
        return self._site.start("writer", "demo.writer", "plan.json")

    def _let_it_run(self) -> None:
        begun = time.monotonic()
        self._site.wait("time passes", lambda: time.monotonic() - begun > WRITING_SECONDS)
        status = self._site.run("drengine_agent", "status", "--config", "agent.toml")
        self.outcome.bytes_read = status["bytes_read"]
        self.outcome.bytes_on_wire = status["bytes_sent"]
        written = len(acknowledged_writes(self._folder / "acknowledged"))
        self._tell("writing", f"{written} writes acknowledged, state {status['state']}, lag {status['lag_seconds']} s")

    def _lose_the_source(self, agent: subprocess.Popen[bytes], writer: subprocess.Popen[bytes]) -> float:
        killed_at = self._site.kill(writer, agent)
        for image in self._disks.values():
            image.unlink()
        acknowledged = acknowledged_writes(self._folder / "acknowledged")
        self.outcome.acknowledged_writes = len(acknowledged)
        self._tell("disaster", f"agent and writer got SIGKILL after {len(acknowledged)} writes; the disks are gone")
        return killed_at

    def _recover(self, slots: Slots, killed_at: float) -> None:
        acknowledged = acknowledged_writes(self._folder / "acknowledged")
        begun = time.monotonic()
        with self._export("data", "latest") as data:
            data.read(0, 4096)
            self.outcome.rto_seconds = round(time.monotonic() - begun, 3)
        points = self._points()
        self.outcome.points = len(points)
        latest, older = points[-1]["id"], _older(points, acknowledged)
        newest = self._check(slots, latest)
        self.outcome.prefix_intact, self.outcome.recovered_writes = newest.intact, newest.writes
        lost_from = acknowledged[newest.writes] if newest.writes < len(acknowledged) else killed_at
        self.outcome.rpo_seconds = round(max(0.0, killed_at - lost_from), 3)
        self._tell(
            "recovery",
            f"point {latest} served over NBD in {self.outcome.rto_seconds:.3f} s: {newest.writes} of "
            f"{len(acknowledged)} writes, {self.outcome.rpo_seconds:.3f} s of writing lost",
        )
        before = self._check(slots, older)
        self.outcome.older_prefix_intact, self.outcome.older_recovered_writes = before.intact, before.writes
        self._tell("older point", f"point {older} served as well: {before.writes} writes")
        self.outcome.problems += [each.problem for each in (newest, before) if each.problem]
        self.outcome.filesystem_clean = all(self._clean(point) for point in (latest, older))
        self._tell("file system", "e2fsck finds both clean" if self.outcome.filesystem_clean else "DAMAGED")

    def _check(self, slots: Slots, point: str) -> Prefix:
        """Compare both volumes of a point with the only state they may show."""
        volumes = {name: self._export(name, point) for name in VOLUMES}
        try:
            return check_prefix(
                lambda name, offset, length: bytes(volumes[name].read(offset, length)),
                list(slots.places),
                self.outcome.seed,
                self.outcome.acknowledged_writes,
            )
        finally:
            for client in volumes.values():
                client.close()

    def _clean(self, point: str) -> bool:
        image = self._folder / "recovered.img"
        with self._export("data", point) as data, image.open("wb") as copy:
            for offset in range(0, data.size_bytes, READ_BYTES):
                copy.write(data.read(offset, min(READ_BYTES, data.size_bytes - offset)))
        return filesystem_clean(image)

    def _export(self, volume: str, point: str) -> NbdClient:
        return NbdClient(str(self._folder / "recovery.sock"), f"{SOURCE}/{volume}@{point}")

    def _points(self) -> list[dict[str, Any]]:
        try:
            points: list[dict[str, Any]] = self._site.run("drengine.cli.main", "points", "--store", "store")
        except StoryFailed:
            return []  # the source is not known yet
        return points

    def _stop_target(self, target: subprocess.Popen[bytes]) -> None:
        target.send_signal(signal.SIGTERM)
        if code := target.wait(timeout=20):
            self.outcome.problems.append(f"the target ended with {code} after SIGTERM")


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _older(points: list[dict[str, Any]], acknowledged: list[float]) -> str:
    """Id of the point from about the middle of the writing."""
    middle = acknowledged[len(acknowledged) // 2] * 1e9
    return str(points[min(bisect.bisect([point["time_ns"] for point in points], middle), len(points) - 2)]["id"])
