"""A host of its own for a test: this machine's file system under an overlay, in namespaces, without the project.

What is written lies in the overlay's upper directory, so that what an installation left behind can be seen at a glance.
Disks are the machine's loop devices, which a test makes outside. With `systemd` it boots the machine's own systemd.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HIDDEN = ("work", "root", "home", "tmp", "run", "opt")
"""Empty on that host: projects, other Pythons, caches."""
REMOVED = (
    "etc/drengine",
    "var/lib/drengine-agent",
    "var/cache/drengine-agent",
    "usr/local/lib/drengine",
    "usr/local/bin/drengine-agent",
)
"""Not there on that host, though this machine may have an agent of its own: by whiteouts in a layer between."""
DEVICES = "null zero full random urandom tty loop-control fuse"
MASKED = (
    "systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket "
    "systemd-sysctl.service systemd-modules-load.service systemd-remount-fs.service systemd-logind.service "
    "getty.target proc-sys-fs-binfmt_misc.automount"
)
"""Of systemd's own: what belongs to the machine, not to a namespace on it."""
SET_UP = f"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/bare"
for path in {" ".join(REMOVED)}; do
  if [ -e "/$path" ]; then mkdir -p "$1/bare/$(dirname "$path")"; mknod "$1/bare/$path" c 0 0; fi
done
mount -t overlay -o "lowerdir=$1/bare:/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mount -t tmpfs -o mode=755 tmpfs dev
for name in {DEVICES}; do [ ! -e "/dev/$name" ] || cp -a "/dev/$name" dev/; done
for number in $(seq 0 63); do mknod "dev/loop$number" b 7 "$number"; done  # also those that come while it runs
mount -t sysfs sysfs sys
mount -t bpf bpf sys/fs/bpf
mount -t proc proc proc
for name in {" ".join(HIDDEN)}; do mount -t tmpfs -o mode=755 tmpfs $name; done
"""
SLEEP = """
touch "$1/ready"
exec sleep infinity
"""
BOOT = f"""
mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup2 sys/fs/cgroup
else
  mkdir sys/fs/cgroup/unified sys/fs/cgroup/systemd sys/fs/cgroup/devices
  mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
  mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
  mount -t cgroup -o devices cgroup sys/fs/cgroup/devices
fi
rm -rf etc/systemd/system/*.wants
ln -sf /lib/systemd/system/multi-user.target etc/systemd/system/default.target
for name in {MASKED}; do ln -sf /dev/null "etc/systemd/system/$name"; done
: > etc/fstab
touch "$1/ready"
exec chroot . env -i container=test "PATH={PATH}" /lib/systemd/systemd --system --show-status=0
"""
CGROUPS = ("", "systemd", "unified", "devices")


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
        return Path(f"/proc/{self._keeper.pid}/root{self._place}/root")

    def command(self, *words: str | Path) -> list[str]:
        enter = ["nsenter", f"--target={self._inside}", "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--net"]
        enter += [f"--root={self.root}", f"--wd={self.root}/root"]
        return [*enter, "env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", *map(str, words)]

    def run(self, *words: str | Path, seconds: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = self.command(*words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, cwd="/")
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start something that ends with the host."""
        with (self.root / "tmp/started.log").open("a") as log:
            process = subprocess.Popen(self.command(*words), stdout=log, stderr=log, text=True, cwd="/")
        self._started.append(process)
        return process

    def written(self) -> dict[str, str]:
        """Everything that differs from the machine below: a line of facts by path."""
        upper = Path(f"/proc/{self._keeper.pid}/root{self._place}/upper")
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
        os.kill(self._inside, signal.SIGKILL)
        self._keeper.wait(20)
        for process in self._started:
            process.wait(20)


@contextlib.contextmanager
def host(place: Path, *, systemd: bool = False, network: str = "") -> Iterator[Host]:
    """Make a host in an empty directory; with the machine's network, or one of `ip netns`."""
    place.mkdir()
    namespaces = ["--mount", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        join = stack.enter_context(_cgroups()) if systemd else ""
        script = SET_UP + (BOOT if systemd else SLEEP)
        there = ["nsenter", f"--net=/run/netns/{network}"] if network else []
        entering = [f'{join} exec "$@"', "sh", *there, "unshare", *namespaces, "sh", "-c", script, "sh", str(place)]
        keeper = subprocess.Popen(["sh", "-c", *entering], stderr=subprocess.PIPE)
        assert keeper.stderr is not None
        stack.callback(keeper.stderr.close)
        stack.callback(keeper.wait, 20)
        stack.callback(keeper.kill)
        made = Host(keeper, _inside(keeper, place), place)
        stack.callback(made.close)
        if systemd:
            _wait_for_boot(made)
        yield made


@contextlib.contextmanager
def _cgroups() -> Iterator[str]:
    """A control group of its own in each hierarchy; yields a shell command that joins them."""
    name = f"drengine-test-{secrets.token_hex(4)}"
    bases = [Path("/sys/fs/cgroup") / each for each in CGROUPS]
    made = [base / name for base in bases if (base / "cgroup.procs").exists()]
    try:
        for each in made:
            each.mkdir()
        yield "; ".join(f"echo $$ > {each}/cgroup.procs" for each in made) + ";"
    finally:
        for each in made:
            for below in sorted(each.rglob("*/"), reverse=True):
                _remove_cgroup(below)
            _remove_cgroup(each)


def _remove_cgroup(path: Path) -> None:
    for _ in range(100):  # the kernel takes a moment to let go of a group whose processes have ended
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return


def _inside(keeper: subprocess.Popen[bytes], place: Path) -> int:
    """The first process inside, once the host is ready."""
    children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
    until = time.monotonic() + 20
    while keeper.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError, IndexError):
            inside = int(children.read_text().split()[0])
            if Path(f"/proc/{keeper.pid}/root{place}/ready").exists():
                return inside
        time.sleep(0.01)
    keeper.kill()
    assert keeper.stderr is not None
    pytest.skip(f"no host of its own can be made here: {keeper.stderr.read().decode()[-300:]}")


def _wait_for_boot(made: Host) -> None:
    until = time.monotonic() + 30
    said = ""
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            said = made.run("systemctl", "is-system-running", check=False).stdout.strip()
        if said in ("running", "degraded"):
            return
        time.sleep(0.1)
    pytest.skip(f"systemd does not boot in a namespace here: {said}")
