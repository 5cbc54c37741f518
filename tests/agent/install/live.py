"""A live disk on a host of its own, the target that protects it, and questions to both."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.model.points import RecoveryPoint
from drengine.store.store import Store
from tests.agent.install.host import Host

ROOT = Path(__file__).parents[3]
PROGRAM = (sys.executable, "-m", "drengine.cli.main")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
DISK_BYTES = 24 << 20
WORDS = b"what must come back\n" * 1000


def wait_for(what: str, look: Callable[[], Any], *, seconds: float = 60.0, show: Callable[[], str] = str) -> Any:
    """Until it is so; a deadline only ends a test that has failed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come: {show()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A loop device with an empty ext4."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


class Target:
    """A target on loopback."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self._looked_at = ""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._log = (folder / "target.log").open("wb")
        Store.create(self.store).close()
        self._process = subprocess.Popen(
            [*PROGRAM, "target", "run", "--store", str(self.store), "--listen", self.address],
            env=ENVIRONMENT,
            stdout=self._log,
            stderr=self._log,
        )

    def points(self) -> list[RecoveryPoint]:
        with Store.open(self.store, read_only=True) as store:
            return store.points("shop") if store.sources() else []

    def recovered(self, name: str, image: Path) -> bytes:
        """A file out of the newest point; the disk is put together in `image`."""
        with Store.open(self.store, read_only=True) as store:
            points = store.points("shop") if store.sources() else []
            if not points or points[-1].id == self._looked_at:
                return b""
            self._looked_at = points[-1].id
            with store.view(points[-1]) as view:
                (volume,) = view.geometry
                image.write_bytes(view.read(volume, 0, DISK_BYTES))
        subprocess.run(
            ["e2fsck", "-fy", image], capture_output=True, check=False
        )  # takes up the journal, as a mount would
        return subprocess.run(["debugfs", "-R", f"cat /{name}", image], capture_output=True, check=True).stdout

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    made = Target(tmp_path)
    wait_for("the target", (made.store / "STORE").exists)
    yield made
    made.close()


@contextlib.contextmanager
def mounted(there: Host, disk: Path) -> Iterator[Path]:
    """The disk's file system, mounted on that host; yields its directory as seen from outside."""
    there.run("mkdir", "/tmp/data")
    there.run("mount", disk, "/tmp/data")
    try:
        yield there.root / "tmp/data"
    finally:
        there.run("umount", "/tmp/data", check=False)
        there.run("rmdir", "/tmp/data", check=False)


def write(place: Path, name: str) -> None:
    with (place / name).open("wb") as file:
        file.write(WORDS)
        file.flush()
        os.fsync(file.fileno())


def standing(there: Host) -> dict[str, Any]:
    done = there.run("drengine-agent", "status", "--json", check=False)
    return json.loads(done.stdout) if done.stdout else {}


def newest_has(target: Target, name: str, image: Path) -> Callable[[], bool]:
    return lambda: target.recovered(name, image) == WORDS


def pins(there: Host) -> str:
    return there.run("ls", "/sys/fs/bpf").stdout


def ours(there: Host) -> dict[str, str]:
    """What is written, without what systemd and its journal write for themselves."""
    own = ("upper:var/log/", "upper:var/lib/systemd", "upper:etc/machine-id", "tmp:", "upper:var/tmp")
    found = {name: fact for name, fact in there.written().items() if not name.startswith(own)}
    return {name: fact for name, fact in found.items() if not name.startswith("run:") or "drengine" in name}


def facts(there: Host) -> dict[str, Any]:
    """The kernel's side, asked past the agent."""
    program = "from drengine_agent.capture.ebpf.watch import Watch; print(Watch.inspect('shop').epoch.hex())"
    cache = there.run("sh", "-c", "ls -d /var/cache/drengine-agent/*-cpython-*").stdout.split()[0]
    done = there.run("env", f"PYTHONPATH={cache}", "python3", "-c", program)
    return {"epoch": done.stdout.strip()}


def log(there: Host) -> str:
    return (there.root / "tmp/started.log").read_text()[-3000:]


def journal(there: Host) -> str:
    return there.run("journalctl", "--no-pager", "-u", "drengine-agent", "-n", "40", check=False).stdout
