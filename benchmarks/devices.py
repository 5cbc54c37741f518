"""NBD exports as an operating system's disks without the kernel's NBD driver: nbdfuse, a loop device, an ext4 mount."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import require, run

WAIT_SECONDS = 30.0


def until(ready: Callable[[], Any], what: str) -> Any:
    """Ask until the answer is true.

    Raises:
        RuntimeError: it never was.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while not (answer := ready()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not happen in {WAIT_SECONDS:.0f} s")
        time.sleep(0.01)
    return answer


@contextlib.contextmanager
def attached(uri: str, place: Path) -> Iterator[Path]:
    """The export as a file at `place`."""
    require("nbdfuse")
    place.touch()
    process = subprocess.Popen(["nbdfuse", place, uri], stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: process.poll() is not None or _size(place), f"{uri} is attached")
        if process.poll() is not None:
            raise RuntimeError(f"nbdfuse ended: {process.communicate()}")
        yield place
    finally:
        if _is_mounted(place):  # also when nbdfuse has ended by itself, because its server was killed
            _repeatedly("fusermount3", "-u", str(place))
        process.communicate(timeout=WAIT_SECONDS)
        if _is_mounted(place):
            raise RuntimeError(f"{place} is still mounted")


@contextlib.contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """The ext4 file system in `image` at `place`. A disk that died meanwhile is let go of all the same."""
    place.mkdir(parents=True, exist_ok=True)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        run("mount", "-t", "ext4", device, place)
        try:
            yield place
        finally:
            _repeatedly("umount", str(place))
    finally:
        _repeatedly("losetup", "--detach", device)
        until(lambda: device not in run("losetup", "--list", "--noheadings", "--output", "NAME"), f"{device} is free")


def _is_mounted(place: Path) -> bool:
    """By the kernel's list: a mount whose server is gone can't be asked."""
    return any(line.split()[4] == str(place) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _size(place: Path) -> int:
    try:
        return place.stat().st_size
    except OSError:  # the mount is just being made
        return 0


def _repeatedly(*command: str) -> None:
    """Until it works: the kernel may be busy with the last of its writes."""
    until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, " ".join(command))
