"""The real thing, in processes of its own: a target daemon and agents, and how to see from outside what became durable.

What is durable is read from the target's catalogue, not asked of the daemons: looking costs them nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from xxhash import xxh3_128_digest

from drengine.crypt.kek import KeyEncryptionKeys
from drengine.crypt.options import EncryptionOptions, load_keks, write_key_file
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.blobs.available import S3, StorageName
from drengine.store.store import Store
from drengine_agent.daemon.client import ask
from drengine_agent.daemon.state import StateDirectory

POLL_SECONDS = 0.002
KEY_FILE = "kek"
COMPARED_BYTES = 4 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
_T = TypeVar("_T")


class Objects(NamedTuple):
    """A store in an object store: where, what an acknowledgement stands for, and the bytes of its cache."""

    place: str
    ack: str
    cache: str = "10GiB"


class SiteFailedError(RuntimeError):
    """A process ended or something did not happen in time."""


@dataclass(frozen=True, slots=True)
class Point:
    """A durable point: position, the source's wall clock that it shows."""

    sequence: int
    time_ns: int


@dataclass(frozen=True)
class Process:
    """A running daemon."""

    popen: subprocess.Popen[bytes]
    log: Path

    def cpu_seconds(self) -> float:
        """CPU time it has used, in all its threads."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_bytes(self) -> int:
        """Memory it holds now."""
        return int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """The most memory that it ever held, files that it maps among it; 0 when it has ended."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.popen.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10
        return 0

    def check(self) -> None:
        """Raise if it has ended."""
        if (code := self.popen.poll()) is not None:
            raise SiteFailedError(f"{self.log.stem} ended with {code}: {self.log.read_text(errors='replace')[-300:]}")


@dataclass(frozen=True)
class Target(Process):
    """A target daemon and its store."""

    port: int
    store: Path
    nbd: Path

    def points(self, source: str, *, after: int = 0) -> list[Point]:
        """Durable points behind a position, oldest first."""
        catalogue = self.store / "catalogue.sqlite"
        with contextlib.closing(sqlite3.connect(f"{catalogue.as_uri()}?mode=ro", uri=True)) as db:
            rows = db.execute(
                "SELECT sequence, time_ns FROM point WHERE source = ? AND branch = 1 AND sequence > ? ORDER BY 1",
                (source, after),
            ).fetchall()
        return [Point(*row) for row in rows]

    def wait_point(self, source: str, since_ns: int, *, seconds: float = 120.0) -> float:
        """Wait for a durable point that shows the source at `since_ns` or later; returns perf_counter then."""
        reached = 0

        def seen() -> bool:
            nonlocal reached
            for point in self.points(source, after=reached):
                reached = point.sequence
                if point.time_ns >= since_ns:
                    return True
            return False

        wait_for(f"a point of {source}", seen, self, seconds=seconds)
        return time.perf_counter()

    def stored_bytes(self) -> int:
        """Bytes of segments on disk."""
        return sum(path.stat().st_size for path in (self.store / "segments").rglob("*.seg"))


@dataclass(frozen=True)
class Agent(Process):
    """An agent process."""

    source: str
    folder: Path

    @property
    def tap(self) -> Path:
        """Unix socket of its tap."""
        return self.folder / "tap.sock"

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One command over its control socket."""
        answer: dict[str, Any] = ask(self.folder / "state" / "control.sock", command, **arguments)
        return answer

    def wire_bytes(self) -> int:
        """Payload and table bytes that it has sent."""
        return int(self.ask("status")["bytes_sent"])


class Site:
    """Starts processes in a folder and ends those, and only those."""

    def __init__(self, folder: Path, packages: Path | None = None, peaks: list[int] | None = None) -> None:
        """`packages`: a folder of further packages that the processes shall find installed; `peaks`: where the peak
        memory of each target is noted when it ends.
        """
        self.folder = folder
        self._packages = packages
        self._peaks = peaks
        self._running: list[Process] = []

    def start_target(
        self,
        *,
        tls: Mapping[str, str] | None = None,
        encrypted: bool = False,
        objects: Objects | None = None,
        **options: str,
    ) -> Target:
        """A target daemon with a new store, once it listens. `tls` is that section of its configuration."""
        port = free_port()
        nbd = self.folder / "points.sock"
        lines = {
            "store": str(self.folder / "store"),
            "listen": f"127.0.0.1:{port}",
            "nbd_socket": str(nbd),
            **options,
        }
        config = self.folder / "target.toml"
        text = "".join(f'{name} = "{value}"\n' for name, value in lines.items())
        if encrypted:
            write_key_file(self.folder / KEY_FILE)
            text += f'[encryption]\nkey_file = "{self.folder / KEY_FILE}"\n'
        text += "[tls]\n" + "".join(f'{name} = "{value}"\n' for name, value in tls.items()) if tls else ""
        text += f'[s3]\nack = "{objects.ack}"\ncache = "{objects.cache}"\n' if objects else ""
        config.write_text(text)
        stored_in = StorageName(S3, objects.place) if objects else None
        Store.create(self.folder / "store", stored_in=stored_in, keks=_keks(self.folder / "store")).close()
        return self._run_target(config, port, nbd)

    def kill_target(self, target: Target) -> Target:
        """SIGKILL a target and start it again; returns it once it listens."""
        self._note_peak(target)
        target.popen.kill()
        target.popen.wait()
        self._running.remove(target)
        return self._run_target(self.folder / "target.toml", target.port, target.nbd)

    def _run_target(self, config: Path, port: int, nbd: Path) -> Target:
        popen, log = self._start("target", "drengine.cli.main", "target", "run", "--config", str(config))
        target = Target(popen, log, port, self.folder / "store", nbd)
        self._running.append(target)
        wait_for("the target", lambda: _accepts(port), target)
        return target

    def start_agent(
        self,
        target: Target,
        source: str,
        volumes: dict[str, Path],
        *,
        tracker: str = "scan",
        paused: bool = False,
        nbd: dict[str, str] | None = None,
        control: str = "",
        **options: str,
    ) -> Agent:
        """An agent, once it answers. Paused, it captures but ships nothing before `resume`.

        `control` is that section of its configuration.
        """
        folder = self.folder / source
        folder.mkdir()
        lines = {
            "source": source,
            "target": f"127.0.0.1:{target.port}",
            "state_directory": str(folder / "state"),
            "tracker": tracker,
            **options,
        }
        text = "".join(f'{name} = "{value}"\n' for name, value in lines.items())
        text += f'[nbd]\nlisten = "unix:{folder}/tap.sock"\n'
        text += "".join(f'{name} = "{value}"\n' for name, value in (nbd or {}).items())
        text += f"[control]\n{control}\n" if control else ""
        text += "".join(f'[[volume]]\nname = "{name}"\npath = "{path}"\n' for name, path in volumes.items())
        (folder / "agent.toml").write_text(text)
        if paused:
            state = StateDirectory(folder / "state")
            contents = state.load()
            contents.paused = True
            state.save(contents)
            state.close()
        popen, log = self._start(source, "drengine_agent", "run", "--config", str(folder / "agent.toml"))
        agent = Agent(popen, log, source, folder)
        self._running.append(agent)
        wait_for(f"agent {source}", lambda: _answers(agent), agent)
        return agent

    def promote(self, target: Target, source: str) -> str:
        """Fail a source over, as `drengine failover` does, to a workload that asks for nothing but the address of its
        disk; returns that address, of a writable branch which is protected from its first write. The agent must have
        been stopped.
        """
        uri = self.folder / f"{source}.uri"
        launch = {"start": ["sh", "-c", 'echo "$DRENGINE_DISK_DISK" > "$0"', str(uri)], "stop": ["true"]}
        runbook = {
            "version": 1,
            "name": "promotion",
            "sources": {source: {"launch": {"driver": "command", "settings": launch}, "fence": {"command": ["true"]}}},
            "waves": [{"name": "all", "sources": [source]}],
        }
        (self.folder / "promotion.yaml").write_text(json.dumps(runbook))  # JSON is YAML
        places = ("--store", target.store, "--state", self.folder / "orchestrator", "--export", f"unix:{target.nbd}")
        command("failover", self.folder / "promotion.yaml", *places, "--json")
        return uri.read_text().strip()

    def stop(self, process: Process) -> None:
        """End one process in order."""
        self._running.remove(process)
        self._note_peak(process)
        process.popen.send_signal(signal.SIGTERM)
        try:
            process.popen.wait(30)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()

    def close(self) -> None:
        """End everything, agents first."""
        for process in reversed(list(self._running)):
            self.stop(process)

    def _note_peak(self, process: Process) -> None:
        if self._peaks is not None and isinstance(process, Target):
            self._peaks.append(process.peak_bytes())

    def _start(self, name: str, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(self._packages),
            )
        return popen, log


@contextlib.contextmanager
def site(folder: Path, packages: Path | None = None, peaks: list[int] | None = None) -> Iterator[Site]:
    """A site that ends with the block."""
    made = Site(folder, packages, peaks)
    try:
        yield made
    finally:
        made.close()


def command(*words: str | Path) -> str:
    """Run `drengine ...` to its end and return what it printed.

    Raises:
        SiteFailedError: it failed.
    """
    line = [sys.executable, "-m", "drengine.cli.main", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise SiteFailedError(f"drengine {words[0]} ended with {done.returncode}: {done.stderr[-400:]}")
    return done.stdout


def environment(packages: Path | None = None) -> dict[str, str]:
    """What our processes need to find our packages, and those in one more folder."""
    root = Path(__file__).parent.parent
    places = [root, root / "agents", *([packages] if packages else [])]
    path = os.pathsep.join(map(str, places))
    return {**os.environ, "PYTHONPATH": path, "DRENGINE_PASS_ENVIRONMENT": "PYTHONPATH"}


def wait_for(what: str, ready: Callable[[], _T], *processes: Process, seconds: float = 60.0) -> _T:
    """Ask until the answer is true; a process that ends meanwhile is a failure."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise SiteFailedError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(POLL_SECONDS)
    return answer


def check_replica(target: Target, source: str, image: Path) -> None:
    """Compare the newest point with the image, byte for byte by hash.

    Raises:
        SiteFailedError: they differ; a copy that is wrong has no speed.
    """
    with Store.open(target.store, read_only=True, keks=_keks(target.store)) as store:
        point = store.find_point(source, PointSelector())
        volume = point.geometry[0]
        with store.view(point) as view, image.open("rb") as file:
            for offset in range(0, volume.size_bytes, COMPARED_BYTES):
                expected = file.read(COMPARED_BYTES)
                if xxh3_128_digest(view.read(volume.volume, offset, len(expected))) != xxh3_128_digest(expected):
                    raise SiteFailedError(f"point {point.id} differs from {image.name} at {offset}")


def _keks(store: Path) -> KeyEncryptionKeys | None:
    """What opens the store of a target that was started encrypted."""
    file = store.parent / KEY_FILE
    return load_keks(EncryptionOptions(key_file=file), store) if file.exists() else None


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def _answers(agent: Agent) -> bool:
    try:
        agent.ask("status")
    except (DrengineError, OSError):
        return False
    return True
