"""Where a trial takes place: a folder, its processes and devices, all of which are gone when it ends.

`python -m tests.field.ground NAME FOLDER SEED SCALE` runs one trial and writes FOLDER/outcome.json;
tests/field/__main__.py starts it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from demo.site import Site, StoryFailed
from demo.story import free_port
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint
from drengine.store.store import Store
from drengine_agent.capture.ebpf.btf import VMLINUX
from drengine_agent.capture.ebpf.watch import Watch
from drengine_agent.daemon.client import ask
from tests.agent.capture.ebpf import rig
from tests.agent.capture.ebpf.rig import fresh_source, loop_device
from tests.field.trial import Skipped, all_trials

WAIT_SECONDS = 60.0
READ_BYTES = 4 << 20
LIMIT_SECONDS = 120.0
SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
DRENGINE, AGENT = "drengine.cli.main", "drengine_agent"
TRACEBACK = re.compile(r"^Traceback \(most recent call last\)", re.MULTILINE)
Made = TypeVar("Made")


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    argv: tuple[str, ...]
    status: int
    output: str
    error: str

    def json(self) -> Any:
        """Its standard output, which must be one JSON value and nothing else."""
        try:
            return json.loads(self.output)
        except ValueError as error:
            raise AssertionError(f"{self} is not JSON") from error

    def refusal(self) -> dict[str, Any]:
        """The error that it ended with, asked for with --json.

        Raises:
            AssertionError: it ended well, or in another way.
        """
        assert self.status, f"{self} should have been refused"
        for line in reversed(self.error.splitlines()):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and "error" in found:
                    return found
        raise AssertionError(f"{self} ended without an error for machines")

    def ok(self) -> Said:
        """It ended with 0."""
        assert self.status == 0, str(self)
        return self

    def __str__(self) -> str:
        words = " ".join(self.argv)
        return f"`{words}` ended with {self.status}: {self.output[-1500:]}{self.error[-1500:]}"


@dataclass
class Ground:
    """What a trial is given.

    Attributes:
        folder: empty, its own.
        rng: seeded.
        scale: how much of everything.
        measured: figures to show, by what they are of.
        series: what was measured over time, by what it is of: pairs of seconds and a value.
    """

    folder: Path
    seed: int
    scale: float = 1.0
    measured: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.site = Site(self.folder)
        self._stack = contextlib.ExitStack()

    # ---- what it needs ---------------------------------------------------------------------------------------

    def needs_root(self) -> None:
        """Skip without it."""
        if os.geteuid() != 0:
            raise Skipped("only root can do this")

    def needs(self, *programs: str) -> None:
        """Skip unless these are installed."""
        if missing := [each for each in programs if shutil.which(each, path=SYSTEM_PATH) is None]:
            raise Skipped(f"not installed: {', '.join(missing)}")

    def needs_kernel(self) -> None:
        """Skip unless disks can be tracked here."""
        self.needs_root()
        self.needs("losetup", "mount")
        if not VMLINUX.exists() or not Path("/dev/loop-control").exists():
            raise Skipped("needs loop devices and a kernel with BTF")

    # ---- what it does ----------------------------------------------------------------------------------------

    def times(self, count: int) -> int:
        """So many, scaled."""
        return max(1, round(count * self.scale))

    def enter(self, context: contextlib.AbstractContextManager[Made]) -> Made:
        """Until the trial ends."""
        return self._stack.enter_context(context)

    def at_end(self, work: Callable[..., object], *arguments: object) -> None:
        """Done whatever happens, the last one first."""
        self._stack.callback(work, *arguments)

    def until(self, what: str, ready: Callable[[], Made | None], *, seconds: float = WAIT_SECONDS) -> Made:
        """Wait for it; an error meanwhile, such as of a file that is not there yet, means not yet."""
        last: list[BaseException] = []

        def look() -> Made | None:
            try:
                return ready()
            except (OSError, ValueError, DrengineError, StoryFailed, AssertionError) as error:
                last[:] = [error]
                return None

        try:
            found: Made = self.site.wait(what, look, seconds=seconds)
        except StoryFailed as error:
            raise AssertionError(f"{error}\nlast: {last[0]!r}" if last else str(error)) from error
        return found

    def run(self, *command: str | Path, ok: bool = True, **more: Any) -> Said:
        """Run a program to its end."""
        argv = tuple(map(str, command))
        environment = {**os.environ, "PATH": SYSTEM_PATH, **more.pop("env", {})}
        done = subprocess.run(
            argv, cwd=self.folder, env=environment, check=False, capture_output=True, timeout=LIMIT_SECONDS, **more
        )
        said = Said(argv, done.returncode, _text(done.stdout), _text(done.stderr))
        assert not TRACEBACK.search(said.output + said.error), f"a traceback: {said}"
        return said.ok() if ok else said

    def drengine(self, *arguments: str | Path, ok: bool = True, prefix: Sequence[str] = (), **more: Any) -> Said:
        """A command of drengine; no command of ours ends in a traceback."""
        return self.run(*prefix, sys.executable, "-m", DRENGINE, *arguments, ok=ok, **more)

    def agent(self, *arguments: str | Path, ok: bool = True, prefix: Sequence[str] = (), **more: Any) -> Said:
        """A command of drengine-agent."""
        return self.run(*prefix, sys.executable, "-m", AGENT, *arguments, ok=ok, **more)

    def image(self, name: str, size: int, *, filled: int = 0) -> Path:
        """A sparse file; the first `filled` bytes are random."""
        path = self.folder / f"{name}.img"
        with path.open("wb") as file:
            for at in range(0, filled, READ_BYTES):
                file.write(self.rng.randbytes(min(READ_BYTES, filled - at)))
            file.truncate(size)
        return path

    def disk(self, name: str, size: int, **more: Any) -> Path:
        """A loop device over such a file."""
        filled = more.pop("filled", 0)
        return self.enter(loop_device(self.image(name, size, filled=filled), size, **more))

    @contextlib.contextmanager
    def mounted(self, device: Path, name: str, *options: str) -> Iterator[Path]:
        """A file system, mounted in the folder."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        self.run("mount", *options, device, place)
        try:
            yield place
        finally:
            for _ in range(100):
                if self.run("umount", place, ok=False).status == 0:
                    break
                time.sleep(0.05)  # somebody is looking at it

    def close(self) -> None:
        """End everything."""
        try:
            self.site.close()
        finally:
            self._stack.close()


class Pair:
    """A source and its target, both on this host, talking over loopback.

    `prefix` are commands that run the daemons, such as `prlimit`; options are those of the configuration files.
    """

    def __init__(
        self,
        ground: Ground,
        volumes: Mapping[str, Path],
        *,
        tracker: str = "nbd",
        name: str = "",
        agent: Mapping[str, Any] | None = None,
        target: Mapping[str, Any] | None = None,
    ) -> None:
        self.ground, self.volumes, self._name = ground, dict(volumes), name
        self.source = fresh_source() if tracker == "ebpf" else f"shop{name.strip()}"
        self.port = free_port()
        self.listen = "127.0.0.1"
        self._exports = 0
        self._has_store = False
        self._unequal = ""
        self.store = ground.folder / f"store{name}"
        self.state = ground.folder / f"state{name}"
        self.tap = ground.folder / f"tap{name}.sock"
        self.recovery = ground.folder / f"recovery{name}.sock"
        self.target_file, self.agent_file = ground.folder / f"target{name}.toml", ground.folder / f"agent{name}.toml"
        if tracker == "ebpf":
            ground.at_end(Watch.detach, self.source)
        self._target_options = dict(target or {})
        self.move_store(self.store)
        self.write_agent_file(tracker, agent or {})

    def move_store(self, store: Path) -> None:
        """The target's configuration, with its store at another place."""
        self.store = store
        write_toml(
            self.target_file,
            {
                "store": str(store),
                "listen": f"{self.listen}:{self.port}",
                "nbd_socket": str(self.recovery),
                "free_space_min": "0B",
                **self._target_options,
            },
        )

    def restart_with(self, options: Mapping[str, Any]) -> None:
        """The target with other options; it was stopped before."""
        self._target_options = dict(options)
        self.move_store(self.store)
        self.start_target()

    def write_agent_file(self, tracker: str, options: Mapping[str, Any]) -> None:
        """The agent's configuration, anew."""
        write_toml(
            self.agent_file,
            {
                "source": self.source,
                "target": f"127.0.0.1:{self.port}",
                "state_directory": str(self.state),
                "tracker": tracker,
                **({"nbd": {"listen": f"unix:{self.tap}"}} if tracker == "nbd" else {}),
                **options,
                "volume": [{"name": name, "path": str(path)} for name, path in self.volumes.items()],
            },
        )

    def start(self) -> Pair:
        """Both, until there is a recovery point."""
        self.start_target()
        self.start_agent()
        self.ground.until("a first point", self.newest)
        return self

    def start_target(self, *, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """The target, until it listens; its store is made before it is started for the first time."""
        if not self._has_store:
            self.ground.run(*prefix, sys.executable, "-m", DRENGINE, "target", "init", "--config", self.target_file)
            self._has_store = True
        arguments = (DRENGINE, "target", "run", "--config", str(self.target_file))
        self.target = self.ground.site.start(f"target{self._name}", *arguments, prefix=prefix)
        self.ground.until("the target serves", lambda: accepts(self.port, self.listen))
        return self.target

    def start_agent(self, *, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """The agent, until it answers."""
        arguments = (AGENT, "run", "--config", str(self.agent_file))
        self.process = self.ground.site.start(f"agent{self._name}", *arguments, prefix=prefix)
        self.ground.until("the agent answers", self.status)
        return self.process

    def kill_target(self) -> None:
        """SIGKILL."""
        self.ground.site.kill(self.target)

    def kill_agent(self) -> None:
        """SIGKILL."""
        self.ground.site.kill(self.process)

    def stop_target(self) -> None:
        """As a service manager would."""
        self.ground.site.stop(self.target)

    def stop_agent(self) -> None:
        """As a service manager would."""
        self.ground.site.stop(self.process)

    def status(self) -> dict[str, Any]:
        """What the agent says of itself; raises while it does not answer."""
        found: dict[str, Any] = ask(self.state / "control.sock", "status")
        return found

    def export(self, *arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        """`drengine export`, until it serves: its process, and what it told."""
        self._exports += 1
        name = f"export{self._name}{self._exports}"
        words = ("export", *arguments, "--store", str(self.store), "--source", self.source, "--json")
        process = self.ground.site.start(name, DRENGINE, *words)
        log = self.ground.folder / f"{name}.log"

        def told() -> dict[str, Any] | None:
            text = log.read_text()
            found: dict[str, Any] | None = json.loads(text[text.index("{") :]) if "{" in text else None
            return found

        return process, self.ground.until("the export serves", told)

    def points(self) -> list[RecoveryPoint]:
        """All points of the source in the store."""
        with Store.open(self.store, read_only=True) as store:
            return store.points(self.source) if any(each.name == self.source for each in store.sources()) else []

    def newest(self) -> RecoveryPoint | None:
        """The newest point, if there is one."""
        return max(self.points(), key=lambda each: (each.branch, each.sequence), default=None)

    def content(self, volume: str, point: RecoveryPoint | None = None) -> bytes:
        """What a volume held at a point; at the newest one by default."""
        chosen = point or self.newest()
        assert chosen, "there is no point"
        return read_point(self.store, chosen, volume)

    def is_equal(self) -> bool:
        """Whether the newest point is what the disks hold now, read past the page cache where they are devices."""
        if (point := self.newest()) is None or point.id == self._unequal:
            return False
        equal = all(first_difference(self.store, point, name, path) is None for name, path in self.volumes.items())
        self._unequal = "" if equal or self.status()["backlog_bytes"] else point.id
        return equal

    def until_equal(self, what: str = "the newest point equals the disks", *, seconds: float = WAIT_SECONDS) -> None:
        """Nobody may be writing."""
        self.ground.until(what, self.is_equal, seconds=seconds)

    def until_continuous(self, *, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """Replication goes on; the status that says so."""

        def look() -> dict[str, Any] | None:
            status = self.status()
            return status if status["state"] == "CONTINUOUS" else None

        return self.ground.until("replication goes on", look, seconds=seconds)


def read_point(store: Path, point: RecoveryPoint, volume: str) -> bytes:
    """What a volume held at a point."""
    number, size = next((each.volume, each.size_bytes) for each in point.geometry if each.name == volume)
    with Store.open(store, read_only=True) as opened, opened.view(point) as view:
        return b"".join(view.read(number, at, min(READ_BYTES, size - at)) for at in range(0, size, READ_BYTES))


def first_difference(store: Path, point: RecoveryPoint, volume: str, path: Path) -> int | None:
    """Where a point's volume and a file or device begin to differ, to a few MiB; None if they do not."""
    number, size = next((each.volume, each.size_bytes) for each in point.geometry if each.name == volume)
    direct = os.O_DIRECT if path.is_block_device() else 0  # past the page cache, as the agent reads
    with (
        Store.open(store, read_only=True) as opened,
        opened.view(point) as view,
        rig.opened(path, os.O_RDONLY | direct) as disk,
        contextlib.closing(mmap.mmap(-1, READ_BYTES)) as buffer,
    ):
        if os.lseek(disk, 0, os.SEEK_END) != size:
            return size
        for at in range(0, size, READ_BYTES):
            length = os.preadv(disk, [buffer], at)
            if buffer[:length] != view.read(number, at, length):
                return at
    return None


def read_live(path: Path) -> bytes:
    """All of a device, past its page cache."""
    done = subprocess.run(["dd", f"if={path}", "bs=4M", "iflag=direct", "status=none"], check=True, capture_output=True)
    return done.stdout


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens there."""
    with socket.create_connection((host, port), 2.0):
        return True


def write_toml(path: Path, values: Mapping[str, Any]) -> None:
    """A configuration file; sections are mappings, tables lists of mappings."""
    plain = {name: value for name, value in values.items() if not _is_section(value)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    for name, value in values.items():
        for each in (value if isinstance(value, list) else [value]) if _is_section(value) else ():
            lines.append(f"[[{name}]]" if isinstance(value, list) else f"[{name}]")
            lines += [f"{key} = {json.dumps(inner)}" for key, inner in each.items()]
    path.write_text("\n".join(lines) + "\n")


def _is_section(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _text(said: bytes | str) -> str:
    return said if isinstance(said, str) else said.decode(errors="replace")


def main() -> None:
    """Run one trial; an asked-for end is a failure that cleans up."""
    name, folder, seed, scale = sys.argv[1:]
    chosen = next(each for each in all_trials() if each.name == name)

    def end(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("its time was up")

    signal.signal(signal.SIGTERM, end)
    ground = Ground(Path(folder), int(seed), float(scale))
    verdict, said = "held", ""
    try:
        chosen.run(ground)
    except Skipped as why:
        verdict, said = "skipped", str(why)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the trial did not hold
        place = traceback.extract_tb(error.__traceback__)
        ours = next((each for each in reversed(place) if "tests/field/trials" in each.filename), place[-1])
        where = f"{Path(ours.filename).name}:{ours.lineno}"
        verdict, said = "FAILED", f"{type(error).__name__} at {where} (`{ours.line}`): {error}"
    finally:
        (ground.folder / "outcome.json").write_text(
            json.dumps(
                {"verdict": verdict, "said": said, "measured": ground.measured, "series": ground.series}, default=str
            )
        )
        ground.close()


if __name__ == "__main__":
    main()
