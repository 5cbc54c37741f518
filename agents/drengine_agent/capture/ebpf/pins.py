"""Where kernel state is pinned: a folder of bpffs for each source, locked by its watcher."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import time
from pathlib import Path
from typing import Final

from drengine.model.errors import DrengineError
from drengine_agent.capture.ebpf.errors import EBPF_REFUSED, EBPF_UNAVAILABLE

BPFFS: Final = Path("/sys/fs/bpf")
PIN_ROOT: Final = BPFFS / "drengine"
_BPFFS_MAGIC: Final = 0xCAFE4A11
_LOCK_TRIES, _LOCK_PAUSE_SECONDS = 20, 0.025

_libc = ctypes.CDLL(None, use_errno=True)


def mount_bpffs(root: Path = PIN_ROOT) -> None:
    """Mount the BPF file system at its usual place if it isn't.

    Raises:
        DrengineError: EBPF_UNAVAILABLE, it can't be mounted.
    """
    if BPFFS not in (root, *root.parents) or _is_bpffs(BPFFS):
        return
    if _libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, b"mode=0700") != 0:
        code = ctypes.get_errno()
        raise DrengineError(EBPF_UNAVAILABLE, f"{BPFFS} can't be mounted: {os.strerror(code)}")


def _is_bpffs(path: Path) -> bool:
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _BPFFS_MAGIC


def folder_of(root: Path, source: str) -> Path:
    """bpffs allows no dots in names; source names have no tilde."""
    return root / source.replace(".", "~")


def lock(folder: Path, source: str) -> int:
    """An open folder with an exclusive flock; it ends with the process.

    Raises:
        DrengineError: EBPF_REFUSED, another process has it.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for turn in range(_LOCK_TRIES):  # `inspect` holds a shared one for a moment
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if turn < _LOCK_TRIES - 1:
                time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return fd
    os.close(fd)
    raise DrengineError(EBPF_REFUSED, f"another process watches the volumes of {source!r}")


def is_owned(folder: Path) -> bool:
    """A process holds its lock."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def remove_pins(folder: Path) -> None:
    """Links first: nothing runs without its maps' names."""
    for path in sorted(folder.iterdir(), key=lambda each: not each.name.startswith("link-")):
        path.unlink()


def map_shared(fd: int, length: int, *, writable: bool) -> mmap.mmap:
    """A map's values in this process's memory."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return mmap.mmap(fd, length, mmap.MAP_SHARED, protection)
