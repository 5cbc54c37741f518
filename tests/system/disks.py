"""Disks as an operating system sees them: NBD attached through nbdfuse, a loop device and an ext4 mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WAIT_SECONDS = 30.0
TOOLS = ("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "e2fsck", "mount", "umount")


def skip_unless_disks_can_be_attached() -> None:
    """Say aloud what is missing."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be used here")
    if subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode:
        pytest.skip("there is no loop device here")


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def until(ready: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (answer := ready()):
        assert time.monotonic() < deadline, f"{what} did not happen in {WAIT_SECONDS:.0f} s"
        time.sleep(0.01)
    return answer


@contextlib.contextmanager
def attached(uri: str, place: Path) -> Iterator[Path]:
    """The export as a file at `place`."""
    place.touch()
    process = subprocess.Popen(["nbdfuse", place, uri], stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: process.poll() is not None or _size(place), f"{uri} is attached")
        assert process.poll() is None, process.communicate()
        yield place
    finally:
        if _is_mounted(place):  # also when nbdfuse has ended by itself, because its server was killed
            _repeatedly("fusermount3", "-u", str(place))
        process.communicate(timeout=WAIT_SECONDS)
        assert not _is_mounted(place)


@contextlib.contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """The ext4 file system in `image` at `place`. A disk that died meanwhile is let go of all the same."""
    place.mkdir(parents=True)
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
