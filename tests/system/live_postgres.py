"""The proof on a live database: PostgreSQL on two tracked disks under load, recovered from points of every kind.

    python -m tests.system.live_postgres --points 50

Data lies on ext4, the write-ahead log on xfs, each on a loop device that the eBPF tracker watches. While pgbench and a
ledger of our own go on writing, the newest point of the wanted kind is restored, both file systems are mounted,
PostgreSQL starts from them, and everything is accounted for: pg_amcheck, the sums of pgbench, and the ledger, in which
no transaction that was committed before the point is missing, none is half there, and none is from after it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.devices import until
from demo.site import StoryFailed
from demo.story import free_port
from drengine.model.points import PointKind
from drengine_agent.capture.ebpf.watch import Watch
from tests.configurations import TARGET
from tests.system.disks import run
from tests.system.postgres import USER, Ledger, Server, as_postgres, initialise, rows, skip_unless_installed
from tests.system.site import Site

FILE_SYSTEMS = {"data": ("ext4", 512 << 20), "log": ("xfs", 320 << 20)}
MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
MOUNT = {"ext4": (), "xfs": ("-o", "nouuid")}  # the live one, mounted beside it, has the same UUID
CHECK = {"ext4": ("e2fsck", "-fn"), "xfs": ("xfs_repair", "-n")}
TOOLS = ("losetup", "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair", "pgbench", "psql")
AGENT = """source = "{source}"
target = "127.0.0.1:{port}"
state_directory = "agent"
tracker = "ebpf"
{options}
[cuts]
{cuts}
[[volume]]
name = "data"
path = "{data}"
[[volume]]
name = "log"
path = "{log}"
"""
CUTS = {
    PointKind.QUIET: 'kinds = "quiet"',
    PointKind.FROZEN: 'kinds = "frozen"\nfrozen_after = "300ms"',
    PointKind.APPLICATION: 'kinds = "application"\napplication_interval = "500ms"\n'
    'postgres = ["psql", "-h", "{sockets}", "-p", "{port}", "-U", "postgres", "-d", "postgres"]',
}
PACE: dict[PointKind, tuple[tuple[str, ...], float]] = {
    # A host that falls quiet now and then, against one that never does: (arguments of pgbench, ledger's pause).
    PointKind.QUIET: (("--rate=4",), 0.1),
    PointKind.FROZEN: (("--rate=200",), 0.002),
    PointKind.APPLICATION: (("--rate=200",), 0.002),
}
POINT_SECONDS = 60.0
LIVE_PORT = 5450
SUMS = (
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
    " AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
    " AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
)


@dataclass
class Proof:
    """What was recovered, by kind.

    Attributes:
        points: how many were recovered whole.
        older: transactions that had to be there, over all points.
        transactions: those that were found.
        freeze_seconds: of the freezes that were seen.
        recovery_seconds: PostgreSQL's, from its start to its first answer.
    """

    points: int = 0
    older: int = 0
    transactions: int = 0
    freeze_seconds: list[float] = field(default_factory=list)
    recovery_seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.points} points recovered whole; {self.transactions} transactions found, {self.older} demanded"
        text += f"; PostgreSQL answered after {statistics.median(self.recovery_seconds) * 1000:.0f} ms (median)"
        if self.freeze_seconds:
            text += (
                f"; {len(self.freeze_seconds)} freezes seen: median {statistics.median(self.freeze_seconds) * 1000:.0f}"
                f" ms, longest {max(self.freeze_seconds) * 1000:.0f} ms"
            )
        return text


def missing() -> str:
    """Why this can't be run here; empty if it can."""
    if os.geteuid() != 0:
        return "only root can track disks and freeze file systems"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


class LiveHost:
    """Two tracked disks with a database under load, an agent that ships them, and a target."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.site = Site(folder)
        self.source = f"pg{secrets.token_hex(3)}"
        self._programs = programs
        self._stack = contextlib.ExitStack()
        self._devices: dict[str, Path] = {}
        self._places = 0
        self._port = free_port()
        self.sockets = folder / "sockets"
        self.sockets.mkdir()
        shutil.chown(self.sockets, USER, USER)

    def __enter__(self) -> LiveHost:
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Undo everything that was made."""
        self._stack.close()

    def _begin(self) -> None:
        for name, (kind, size) in FILE_SYSTEMS.items():
            image = self.folder / f"{name}.disk"
            with image.open("wb") as file:
                file.truncate(size)
            self._devices[name] = self._stack.enter_context(_loop(image))
            run(*MAKE[kind], self._devices[name])
            self._stack.enter_context(_mounted(self._devices[name], kind, self.folder / "live" / name))
        initialise(self._programs, self.folder / "live/data/pg", self.folder / "live/log/pg")
        with (self.folder / "live/data/pg/postgresql.auto.conf").open("a") as settings:
            settings.write("max_wal_size = '48MB'\ncheckpoint_timeout = '30s'\n")
        run(
            "sync", "--file-system", self.folder / "live/data"
        )  # neither initdb nor we did; a point is what a crash leaves
        self.server = self._stack.enter_context(self._postgres(self.folder / "live", LIVE_PORT))
        self.server.ask(Ledger.TABLES)
        self.server.ask("CREATE EXTENSION amcheck")
        _done(self._pgbench("-i", "-q", "-s", "1"))
        self._stack.callback(Watch.detach, self.source)
        self._stack.callback(self.site.close)
        (self.folder / "target.toml").write_text(TARGET.format(port=self._port))
        self.site.run("drengine.cli.main", "target", "init", "--config", "target.toml")
        self.site.start("target", "drengine.cli.main", "target", "run", "--config", "target.toml")

    def _postgres(self, top: Path, port: int) -> Server:
        return Server(self._programs, top / "data" / "pg", self.sockets, port)

    def _pgbench(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = ["pgbench", "-h", str(self.sockets), "-p", str(LIVE_PORT), "-U", USER, *arguments, "postgres"]
        with (self.folder / "pgbench.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_postgres())

    @contextlib.contextmanager
    def load(self, kind: PointKind) -> Iterator[None]:
        """pgbench, until the end."""
        process = self._pgbench("-n", "-c", "2", "-T", "86400", *PACE[kind][0])
        try:
            yield
            assert process.poll() is None, (self.folder / "pgbench.log").read_text()[-2000:]
        finally:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def agent(self, kind: PointKind) -> Iterator[None]:
        """The agent, cutting points of this kind only."""
        cuts = CUTS[kind].format(sockets=self.sockets, port=LIVE_PORT)
        (self.folder / "agent.toml").write_text(
            AGENT.format(source=self.source, port=self._port, options="", cuts=cuts, **self._devices)
        )
        process = self.site.start("agent", "drengine_agent", "run", "--config", "agent.toml")
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)
            self.site._running.remove(process)

    def status(self) -> Any:
        """What the agent says; None while it does not answer."""
        try:
            return self.site.run("drengine_agent", "status", "--config", "agent.toml")
        except StoryFailed:
            return None

    def newest(self, kind: PointKind) -> dict[str, Any] | None:
        """The newest point of a kind."""
        try:
            points = self.site.run("drengine.cli.main", "points", "--store", "store")
        except StoryFailed:  # there is nothing yet
            return None
        return next((each for each in reversed(points) if each["kind"] == kind), None)

    @contextlib.contextmanager
    def restored(self, point: str) -> Iterator[Path]:
        """The point's file systems, mounted; afterwards their own checkers look at them."""
        self._places += 1
        top = self.folder / f"recovered-{self._places}"
        files = top / "files"
        files.mkdir(parents=True)
        self.site.run("drengine.cli.main", "restore", point, "--store", "store", "--to", str(files), "--no-verify")
        with contextlib.ExitStack() as stack:
            for name, (kind, _) in FILE_SYSTEMS.items():
                device = stack.enter_context(_loop(files / f"{name}.img"))
                stack.callback(_check, kind, device)
                stack.enter_context(_mounted(device, kind, top / name))
            (top / "data/pg/postmaster.pid").unlink()  # of the live one, whose process runs on this very host
            yield top
        shutil.rmtree(top)

    def recover(self, point: dict[str, Any], committed_ns: Sequence[int], sent: int, proof: Proof) -> None:
        """Start PostgreSQL from the point and account for everything; `sent`: transactions begun until it was seen."""
        with self.restored(point["id"]) as top:
            port = LIVE_PORT + 1 + self._places % 40
            begun = time.monotonic()
            with self._postgres(top, port) as server:
                proof.recovery_seconds.append(time.monotonic() - begun)
                count = rows(server)
                assert server.ask(SUMS) in ("t", ""), f"{point['id']}: a transaction of pgbench is half there"
                run(
                    *(self._programs / "pg_amcheck", "-h", self.sockets, "-p", str(port), "-U", USER),
                    *("--heapallindexed", "--parent-check", "--no-strict-names", "-d", "postgres"),
                )
                server.ask(f"INSERT INTO debit VALUES ({count + 1}, 'life goes on')")
        older = sum(each <= point["time_ns"] for each in committed_ns)
        assert older <= count <= sent, f"{point['id']}: {older} were committed before it, {sent} sent, {count} found"
        proof.points += 1
        proof.older += older
        proof.transactions += count


def _check(kind: str, device: Path) -> None:
    """Nothing is wrong with the file system once it is unmounted. Somebody else's mount namespace, made by a copy of
    ours, may go on holding it: then there is nothing to be seen yet."""
    if not _is_free(device):
        print(f"{kind} is still mounted in another namespace, so it is not checked")
        return
    run(*CHECK[kind], device)


def _is_free(device: Path) -> bool:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError:
        return False
    return True


def _done(process: subprocess.Popen[bytes]) -> None:
    assert process.wait(120) == 0


@contextlib.contextmanager
def _loop(image: Path) -> Iterator[Path]:
    device = run("losetup", "--find", "--show", "--direct-io=on", image).strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def _mounted(device: Path, kind: str, place: Path) -> Iterator[None]:
    place.mkdir(parents=True)
    run("mount", "-t", kind, *MOUNT[kind], device, place)
    try:
        yield
    finally:
        until(
            lambda: subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode == 0,
            f"{place} is let go",
        )


def prove(
    host: LiveHost,
    ledger: Ledger,
    kind: PointKind,
    points: int,
    rng: random.Random,
    *,
    said: Callable[[str], None] = print,
) -> Proof:
    """Recover so many points of a kind, at random moments, while everything goes on; `said` hears of each."""
    proof = Proof()
    seen: set[str] = set()
    freezes = 0

    def fresh() -> tuple[dict[str, Any], int] | None:
        """A point that was not yet looked at, and how many transactions had been begun when it was there."""
        point = host.newest(kind)
        return None if point is None or point["id"] in seen else (point, len(ledger.sent_ns))

    with host.agent(kind), host.load(kind):
        while proof.points < points:
            ledger.wait_for(rng.randrange(1, 6))
            point, sent = host.site.wait(f"a {kind} point is cut", fresh, seconds=POINT_SECONDS)
            seen.add(point["id"])
            host.recover(point, list(ledger.committed_ns), sent, proof)
            status = host.status()
            if status["freezes"] > freezes:
                freezes = status["freezes"]
                proof.freeze_seconds.append(status["freeze_seconds_last"])
            said(f"{kind}: {proof}")
    return proof


@contextlib.contextmanager
def live_host() -> Iterator[LiveHost]:
    """A host with its database, in a folder of its own."""
    programs = skip_unless_installed()
    folder = Path(tempfile.mkdtemp(prefix="drengine-livepg-"))  # short, for sockets; open, for PostgreSQL's user
    folder.chmod(0o755)
    try:
        with LiveHost(folder, programs) as host:
            yield host
    finally:
        if not any(str(folder) in line for line in Path("/proc/self/mountinfo").read_text().splitlines()):
            shutil.rmtree(folder)


@contextlib.contextmanager
def ledger_on(host: LiveHost, kind: PointKind) -> Iterator[Ledger]:
    """The ledger, written at the pace that goes with a kind. One for each host."""
    ledger = Ledger(host.server, pause_seconds=PACE[kind][1])
    try:
        yield ledger
    finally:
        ledger.close()


def main() -> int:
    """The long campaign: a host for each kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--kinds", default=",".join(CUTS))
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    if why := missing():
        print(why)
        return 1
    for kind in map(PointKind, options.kinds.split(",")):
        with live_host() as host, ledger_on(host, kind) as ledger:
            prove(host, ledger, kind, options.points, random.Random(options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
