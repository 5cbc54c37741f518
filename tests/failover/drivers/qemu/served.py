"""Disks in files, served over NBD from a thread of the test's process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drengine.failover.drivers.driver import Disk
from drengine.nbd.file_export import FileProvider
from tests.nbd.files import served as exports_served


@contextmanager
def served(socket: Path, files: dict[str, Path]) -> Iterator[tuple[Disk, ...]]:
    """The disks, as a launch is given them."""
    with exports_served(FileProvider(files), socket):
        yield tuple(
            Disk(name, file.stat().st_size, f"nbd+unix:///{name}?socket={socket}") for name, file in files.items()
        )
