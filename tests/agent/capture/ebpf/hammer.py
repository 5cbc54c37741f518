"""A process that writes one block after another to a device, as fast as it can, and says how many are complete.

`python -m tests.agent.capture.ebpf.hammer DEVICE PROGRESS FIRST COUNT`: write number n goes to block
FIRST + place(n, COUNT).
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 4096
STEP = 40_503
"""Odd and prime to every power of two: all blocks have their turn, neighbours in time are far apart."""


def place(number: int, count: int) -> int:
    """The block of a write."""
    return number * STEP % count


class Hammer:
    """A running hammer, seen from outside."""

    def __init__(self, progress: Path, first: int, count: int, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        with progress.open("r+b") as file:
            self._view = mmap.mmap(file.fileno(), 8)
        self.first = first
        self.count = count

    def stop(self) -> None:
        """Kill it; what it had under way is done when this returns."""
        assert self._child.poll() is None, "a hammer broke"
        self._child.kill()
        self._child.wait()

    def end(self) -> None:
        """Kill it if it still runs."""
        self._child.kill()
        self._child.wait()

    def completed(self) -> int:
        """Writes whose completion the writer has seen."""
        return int(struct.unpack("<Q", self._view[:8])[0])

    def blocks(self, start: int, end: int) -> set[int]:
        """Where writes number `start` to `end` - 1 went."""
        return {self.first + place(number, self.count) for number in range(start, end)}


@contextmanager
def hammering(device: Path, folder: Path, count: int, *, writers: int = 2) -> Iterator[list[Hammer]]:
    """Several hammers, each on its own stretch of the device; killed at the end."""
    share = count // writers
    assert share & share - 1 == 0, "a power of two"
    hammers: list[Hammer] = []
    try:
        for index in range(writers):
            progress = folder / f"progress-{index}"
            progress.write_bytes(bytes(8))
            command = [sys.executable, "-m", __name__, str(device), str(progress), str(index * share), str(share)]
            hammers.append(Hammer(progress, index * share, share, subprocess.Popen(command)))
        yield hammers
    finally:
        for hammer in hammers:
            hammer.end()


def main(device: str, progress: str, first: int, count: int) -> None:
    """Write until killed."""
    data = mmap.mmap(-1, BLOCK)
    data.write(b"\xa5" * BLOCK)
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    with Path(progress).open("r+b") as file:
        done = mmap.mmap(file.fileno(), 8)
    number = 0
    while True:
        os.pwrite(fd, data, (first + place(number, count)) * BLOCK)
        number += 1
        done[:8] = struct.pack("<Q", number)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
