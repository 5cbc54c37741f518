"""The last resort: a disk as a local file. The workload writes it alone, so its writes come home when it has ended.

A note says that a copy is whole. From then on it, and not the branch, has what the workload wrote: it is never filled
again, and goes only when the branch has all of it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from drengine.durable import replace_durably, sync_directory
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient
from drengine.nbd.hydrator import read_progress
from drengine.nbd.hydrators import end_hydrators, hydrator_files, start_hydrators
from drengine_agent.standby.errors import STANDBY_FAILED

LOOK_SECONDS = 0.1
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CopiedDisk:
    """One disk's copy, in the instance's directory.

    Attributes:
        instance, volume: what it is.
        uri: of the branch.
        directory: the instance's own.
    """

    instance: str
    volume: str
    uri: str
    directory: Path

    @property
    def path(self) -> Path:
        """The file."""
        return hydrator_files(self._place, self.volume).copy

    def fill(self, deadline: float) -> None:
        """Bring all of the disk here, unless that was done before.

        Raises:
            DrengineError: STANDBY_FAILED, it did not come by the deadline or has no room; HYDRATION_FAILED.
        """
        if self._whole.exists():
            return
        start_hydrators(self._name, self._place, {self.volume: self.uri})
        report = hydrator_files(self._place, self.volume).report
        while (now := read_progress(report)) is None or not now.size_bytes or now.hydrated_bytes < now.size_bytes:
            if now is not None and now.given_up:
                raise DrengineError(STANDBY_FAILED, f"disk {self.volume} can't be copied: {now.given_up}")
            if time.monotonic() > deadline:
                raise DrengineError(STANDBY_FAILED, f"disk {self.volume} was not copied in time")
            time.sleep(LOOK_SECONDS)
        end_hydrators(self._name, self._place)
        _sync(self.path)
        sync_directory(self._place)
        replace_durably(self._whole, b"")

    def bring_home(self) -> None:
        """Write to the branch what differs there, durably, and remove the copy; nobody may use it any more.

        Raises:
            DrengineError: STANDBY_FAILED, NBD_CLIENT; the copy stays, and this can be repeated.
        """
        if self._whole.exists():
            try:
                with self.path.open("rb") as copy, NbdClient.of(self.uri) as branch:
                    for at in range(0, branch.size_bytes, _PIECE_BYTES):
                        ours = os.pread(copy.fileno(), min(_PIECE_BYTES, branch.size_bytes - at), at)
                        if ours != branch.read(at, len(ours)):
                            branch.write(at, ours)
                    branch.flush()
            except OSError as error:
                raise DrengineError(
                    STANDBY_FAILED, f"disk {self.volume}: what was written is only in {self.path} yet: {error}"
                ) from error
        self.forget()

    def forget(self) -> None:
        """Remove the copy with all that was written to it."""
        end_hydrators(self._name, self._place)
        self._whole.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    @property
    def _place(self) -> Path:
        return self.directory / "copies"

    @property
    def _name(self) -> str:
        return f"{self.instance}/copy/{self.volume}"

    @property
    def _whole(self) -> Path:
        return self._place / f"{self.volume}.whole"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
