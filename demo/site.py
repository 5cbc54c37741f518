"""The processes of the story, each a real command in a process of its own: target, agent, writer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.01


class StoryFailed(Exception):
    """Something that should have happened did not, in time."""


class Site:
    """A folder with everything in it, and the processes started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        self._loose: list[subprocess.Popen[bytes]] = []
        os.environ.update(self._environment())

    def start_loose(self, name: str, *arguments: str) -> None:
        """Start something that may end at any time without spoiling the story."""
        self._loose.append(self.start(name, *arguments))
        self._running.remove(self._loose[-1])

    def start(self, name: str, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start `python -m ...` with its output in NAME.log; `prefix` is a command that runs it, such as `env`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment(),
            )
        self._running.append(process)
        return process

    def run(self, *arguments: str) -> Any:
        """Run `python -m ... --json` to its end and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments, "--json"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=self._environment(),
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-400:]
            raise StoryFailed(f"{' '.join(arguments)} ended with {done.returncode}: {said}")
        return json.loads(done.stdout)

    def wait(self, what: str, ready: Callable[[], Any], *, seconds: float = 30.0) -> Any:
        """Ask `ready` until it answers something true, and return it."""
        deadline = time.monotonic() + seconds
        while not (answer := ready()):
            for process in self._running:
                if process.poll() is not None:
                    raise StoryFailed(f"{what}: {self._tail()}")
            if time.monotonic() > deadline:
                raise StoryFailed(f"{what} did not happen within {seconds:.0f} s: {self._tail()}")
            time.sleep(POLL_SECONDS)
        return answer

    def kill(self, *processes: subprocess.Popen[bytes]) -> float:
        """SIGKILL, all at once, as a lost room would; returns the wall clock of that moment."""
        moment = time.time()
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait()
            self._running.remove(process)
        return moment

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """It has ended, and that is as it should be."""
        self._running.remove(process)

    def stop(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
        """Ask a process to end and wait for it; its exit status."""
        process.send_signal(number)
        self._running.remove(process)
        try:
            return process.wait(60)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise StoryFailed(f"{process.args!r} did not end when it was asked to") from error

    def close(self) -> None:
        """End what still runs."""
        for process in (*self._running, *self._loose):
            process.terminate()
        for process in (*self._running, *self._loose):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tail(self) -> str:
        logs = sorted(self.folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-400:]}" for log in logs)

    @staticmethod
    def _environment() -> dict[str, str]:
        root = Path(__file__).parent.parent
        path = os.pathsep.join([str(root), str(root / "agents")])
        return {**os.environ, "PYTHONPATH": path, "DRENGINE_PASS_ENVIRONMENT": "PYTHONPATH"}


def accepts(port: int) -> bool:
    """Whether somebody listens on this loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
