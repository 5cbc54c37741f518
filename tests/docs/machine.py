"""A machine that is thrown away: this one's files under an overlay, with mounts and a network of its own.

What is typed there writes to /etc, /var, /srv and /run as on a real host, listens on the documented ports, and leaves
nothing behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.docs.pages import ROOT

MEMORY = Path("/dev/shm")
HOME = "/root/typed"
SECONDS_MAX = 60.0
POLL_SECONDS = 0.05
LISTEN = "0A"
"""A socket's state, in /proc/net/tcp."""

BOOT = """
set -e
mount -t overlay overlay -o lowerdir=/,upperdir={top}/upper,workdir={top}/work {top}/root
cd {top}/root
for each in proc sys dev tmp; do mount --rbind /$each $each; done
mount -t tmpfs tmpfs run
rm -rf {top}/root/etc/drengine* {top}/root/var/lib/drengine*
mkdir -p {top}/root{home}
ip link set lo up
exec chroot {top}/root sh -c 'echo ready; exec sleep infinity'
"""
PROGRAM = """#!/bin/sh
exec {python} -m {module} "$@"
"""


def why_not() -> str:
    """Why such a machine can't be made here; empty when it can."""
    if os.geteuid():
        return "only root can make a machine with files and a network of its own"
    missing = [
        name for name in ("unshare", "nsenter", "ip", "nbdinfo", "nbdcopy", "qemu-img") if not shutil.which(name)
    ]
    return f"not installed: {', '.join(missing)}" if missing else ""


class Machine:
    """A running machine; use it as a context."""

    def __init__(self) -> None:
        self._top = Path(tempfile.mkdtemp(prefix="dr-typed-", dir=MEMORY))
        self._running: list[subprocess.Popen[bytes]] = []
        self._texts: list[str] = []
        self.root = self._top / "root"

    def __enter__(self) -> Machine:
        for name in ("upper", "work", "root"):
            (self._top / name).mkdir()
        script = BOOT.format(top=self._top, home=HOME)
        boot = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script]
        self._boot = subprocess.Popen(boot, stdout=subprocess.PIPE)
        assert self._boot.stdout
        assert self._boot.stdout.readline() == b"ready\n", "the machine did not start"
        for name, module in (("drengine", "drengine.cli.main"), ("drengine-agent", "drengine_agent")):
            self.write(f"/usr/local/bin/{name}", PROGRAM.format(python=sys.executable, module=module), mode=0o755)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._running):
            self.end(process)
        self._boot.kill()
        self._boot.wait()
        shutil.rmtree(self._top, ignore_errors=True)

    def run(
        self, text: str, *, seconds: float = SECONDS_MAX, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Type it and wait for its end."""
        return subprocess.run(
            self._inside(text),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env=self._environment(),
            cwd="/",
            input="",
        )

    def start(self, text: str) -> subprocess.Popen[bytes]:
        """Type it and leave it running; its output goes to a file."""
        with (self._top / f"log-{len(self._running)}").open("wb") as log:
            process = subprocess.Popen(
                self._inside(f"exec {text}"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                cwd="/",
                start_new_session=True,
            )
        self._running.append(process)
        self._texts.append(text)
        return process

    def stop(self, program: str) -> None:
        """End what was started with a command that begins so."""
        for text, process in zip(self._texts, self._running, strict=True):
            if text.startswith(program):
                self.end(process)

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """What it has printed so far."""
        return (self._top / f"log-{self._running.index(process)}").read_text(errors="replace")

    def end(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it as Ctrl-C would, and wait."""
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode

    def until(self, what: str, ready: Callable[[], object], *, seconds: float = SECONDS_MAX) -> None:
        """Wait for it."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            time.sleep(POLL_SECONDS)

    def listens(self, address: str) -> bool:
        """Whether something accepts connections at a Unix socket's path or a loopback port of this machine."""
        if address.startswith("/"):
            with socket.socket(socket.AF_UNIX) as client:
                return client.connect_ex(f"/proc/{self._boot.pid}/root{address}") == 0
        sockets = Path(f"/proc/{self._boot.pid}/net/tcp").read_text().splitlines()[1:]
        return any(
            local.endswith(f":{int(address):04X}") and state == LISTEN
            for _, local, _, state, *_ in map(str.split, sockets)
        )

    def write(self, path: str, content: str, *, mode: int = 0o644) -> None:
        """A file on it."""
        file = Path(f"/proc/{self._boot.pid}/root{path if path.startswith('/') else f'{HOME}/{path}'}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)

    def read(self, path: str) -> str:
        """A file's content."""
        return Path(f"/proc/{self._boot.pid}/root{path if path.startswith('/') else f'{HOME}/{path}'}").read_text()

    def _inside(self, text: str) -> list[str]:
        script = f"cd {HOME}; [ ! -e .environment ] || . ./.environment; {text}"
        return ["nsenter", "-t", str(self._boot.pid), "--mount", "--net", "--root", "sh", "-ec", script]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"/usr/local/bin:{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}",
            "DRENGINE_PASS_ENVIRONMENT": "PYTHONPATH",
            "HOME": "/root",
            "USER": "root",
            "LANG": "C.UTF-8",
        }
