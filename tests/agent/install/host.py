"""A host of its own for a test: this machine's file system under an overlay, in namespaces, without the project.

What is written lies in the overlay's upper directory, so that what an installation left behind can be seen at a glance.
Block devices are the machine's own: a test makes its loop devices outside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HIDDEN = ("work", "root", "home", "tmp", "run", "opt")
"""Empty on that host: projects, other Pythons, caches."""
SET_UP = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
mount --rbind /dev "$1/root/dev"
mount --rbind /sys "$1/root/sys"
mount -t proc proc "$1/root/proc"
for name in {hidden}; do mount -t tmpfs -o mode=755 tmpfs "$1/root/$name"; done
touch "$1/ready"
exec sleep infinity
"""


class Host:
    """A running one; made by `host`."""

    def __init__(self, keeper: subprocess.Popen[bytes], inside: int, place: Path) -> None:
        self._keeper = keeper
        self._inside = inside
        self._place = place
        self._started: list[subprocess.Popen[str]] = []

    @property
    def root(self) -> Path:
        """The host's file system, seen from outside."""
        return Path(f"/proc/{self._inside}/root{self._place}/root")

    def command(self, *words: str | Path) -> list[str]:
        enter = ["nsenter", f"--target={self._inside}", "--mount", "--pid", f"--root={self.root}"]
        return [*enter, f"--wd={self.root}/root", "env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", *map(str, words)]

    def run(self, *words: str | Path, seconds: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=seconds, check=False, cwd="/"
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start something that ends with the host."""
        process = subprocess.Popen(
            self.command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd="/",
        )
        self._started.append(process)
        return process

    def written(self) -> dict[str, str]:
        """Everything that differs from the machine below: a line of facts by path."""
        upper = Path(f"/proc/{self._inside}/root{self._place}/upper")
        places = [upper, *(self.root / name for name in HIDDEN)]
        found: dict[str, str] = {}
        for place in places:
            for path in sorted(place.rglob("*")):
                below = Path("/") / path.relative_to(place)
                if place == upper and path.is_dir() and not path.is_symlink() and below.is_dir():
                    continue  # only copied up, because something inside it was written
                status = path.lstat()
                size = status.st_size if path.is_file() else 0
                found[f"{place.name}:{path.relative_to(place)}"] = f"{status.st_mode:o} {size}"
        return found

    def close(self) -> None:
        """End it and everything in it: the namespace's first process takes the others along."""
        self._keeper.send_signal(signal.SIGKILL)
        self._keeper.wait(20)
        for process in self._started:
            if process.stdout is not None:
                process.stdout.close()
            process.wait(20)


@contextlib.contextmanager
def host(place: Path) -> Iterator[Host]:
    """Make a host in an empty directory."""
    place.mkdir()
    script = SET_UP.replace("{hidden}", " ".join(HIDDEN))
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", str(place)],
        stderr=subprocess.PIPE,
    )
    try:
        made = Host(keeper, _inside(keeper, place), place)
        try:
            yield made
        finally:
            made.close()
    finally:
        keeper.kill()
        keeper.wait(20)
        assert keeper.stderr is not None
        keeper.stderr.close()
        shutil.rmtree(place, ignore_errors=True)


def _inside(keeper: subprocess.Popen[bytes], place: Path) -> int:
    """The first process inside, once the host is ready."""
    children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
    while keeper.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            inside = int(children.read_text().split()[0])
            if Path(f"/proc/{inside}/root{place}/ready").exists():
                return inside
        os.sched_yield()
    assert keeper.stderr is not None
    raise AssertionError(f"no host could be made: {keeper.stderr.read().decode()}")
