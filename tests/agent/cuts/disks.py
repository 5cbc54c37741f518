"""A small file system on a loop device, for freezing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drengine_agent.cuts.watchdog import FITHAW

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("losetup") or not shutil.which("mkfs.ext4"),
    reason="only root can make and freeze file systems (losetup, mkfs.ext4)",
)
MAKE = {"ext4": ["mkfs.ext4", "-q"], "xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"]}
BYTES = {"ext4": 16 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(each) for each in argv], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout.strip()


@contextlib.contextmanager
def file_system(folder: Path, kind: str = "ext4", *, size: int = 0) -> Iterator[tuple[Path, Path]]:
    """(device, place where it is mounted); thawed, unmounted and detached whatever happened."""
    if not shutil.which(MAKE[kind][0]):
        pytest.skip(f"{MAKE[kind][0]} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    image, place = folder / "image", folder / "mount"
    with image.open("wb") as file:
        file.truncate(size or BYTES[kind])
    run(*MAKE[kind], image)
    place.mkdir()
    device = run("losetup", "--find", "--show", image)
    try:
        run("mount", device, place)
        try:
            yield Path(device), place
        finally:
            thaw(place)
            _unmount(place)
    finally:
        run("losetup", "--detach", device)


def _unmount(place: Path) -> None:
    """As soon as nobody is there any more: writers that were held up need a moment."""
    deadline = time.monotonic() + 10.0
    while subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, f"{place} stays in use"
        time.sleep(0.02)


def until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20.0
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def thaw(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, FITHAW, 0)
    os.close(descriptor)


def writes_within(place: Path, seconds: float) -> bool:
    """Whether a new file can be made there in time; who is held up is left behind, and ends when it is thawed."""
    process = subprocess.Popen(["touch", str(place / f"t{time.monotonic_ns()}")])
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
