"""A raw file as an NBD export, by QEMU's own server: for what needs a disk, and no store."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(file: Path, socket: Path) -> Iterator[str]:
    """The file's NBD URI, writable, for as long as the context lasts."""
    argv = ["qemu-nbd", "-k", str(socket), "-f", "raw", "--persistent", "--discard=unmap", str(file)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert process.poll() is None, "qemu-nbd has ended"
            time.sleep(0.01)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        process.wait()
