"""An NBD disk as a file of this host, by nbdfuse (libnbd): for programs that can open files and nothing else.

A flush of the file is one of the disk; a hole that is punched is a TRIM. nbdfuse carries a mark, and the mount stands
in the kernel's list, so both are found again by whoever comes later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drengine.linux.mounts import mount_at, read_mounts
from drengine.process import end_marked, find_marked, run_command, start_marked

READY_SECONDS = 15.0
GRACE_SECONDS = 15.0
TOOL_SECONDS = 30.0
LOOK_SECONDS = 0.02


def fuse_fault() -> str:
    """Why this process can't show disks as files, whatever programs are there; empty: it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse can't be used"
    if os.geteuid() != 0 and "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        return "only root may mount by FUSE where the service has NoNewPrivileges"
    return ""


@dataclass(frozen=True, slots=True)
class FuseFile:
    """One disk.

    Attributes:
        mark, value: what its process carries.
        volume: the file's name, without `.disk`.
        directory: where it lies, without links.
    """

    mark: str
    value: str
    volume: str
    directory: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / f"{self.volume}.disk"

    @property
    def is_there(self) -> bool:
        """By the kernel's list: a mount whose server is gone can't be asked."""
        found = mount_at(self.path, read_mounts())
        return found is not None and found.kind.startswith("fuse")

    @property
    def is_served(self) -> bool:
        """It is there and its process lives."""
        return self.is_there and bool(find_marked(self.mark, self.value, self.directory))

    def show(self, uri: str, *, read_only: bool = False, before: Sequence[str] = ()) -> None:
        """Make the file of the disk at an NBD URI; one that is served already is left alone.

        Args:
            before: put before the command.

        Raises:
            OSError: it can't be made; with nbdfuse's words.
        """
        if self.is_served:
            return
        self.remove()
        self.path.touch()
        output = self.directory / f"{self.volume}.nbdfuse"
        argv = [*before, "nbdfuse", *(["-r"] if read_only else []), str(self.path), uri]
        start_marked(argv, self.mark, self.value, output=output, directory=self.directory)
        deadline = time.monotonic() + READY_SECONDS
        while not (self.is_there and self.path.stat().st_size):
            if time.monotonic() > deadline or not find_marked(self.mark, self.value, self.directory):
                raise OSError(f"{uri}: {output.read_text(errors='replace').strip()}")
            time.sleep(LOOK_SECONDS)

    def flush(self) -> None:
        """Return when everything that was written is durable where the disk is served.

        Raises:
            OSError: it is not.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Let go of it; no error if it is not there.

        Raises:
            OSError: it is in use.
        """
        while self.is_there:
            done = run_command(["fusermount3", "-u", str(self.path)], timeout_seconds=TOOL_SECONDS)
            if not done.ok:
                raise OSError(f"fusermount3 {self.path}: {done.output or f'status {done.code}'}")
        end_marked(self.mark, self.value, self.directory, grace_seconds=GRACE_SECONDS)
        self.path.unlink(missing_ok=True)
