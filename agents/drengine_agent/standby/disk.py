"""One promoted disk as a block device of this host, in one of the ways of ways.py.

All are found again after a restart of the agent: by the mark of a process, by what a loop device lies on, by a note of
which LUN it is.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.client import NbdClient
from drengine_agent.standby.errors import STANDBY_FAILED


@dataclass(frozen=True, slots=True)
class AttachedDisk(ABC):
    """A disk of an instance, attached or to be.

    Attributes:
        instance, volume: what it is.
        uri: where it is served.
        directory: the instance's own, without links.
        discarded: nobody wants what was written: the branch is a drill's.
    """

    instance: str
    volume: str
    uri: str
    directory: Path
    discarded: bool = False

    @abstractmethod
    def attach(self, deadline: float) -> Path:
        """The block device; if it is attached already, that one. Only a copy may take until the deadline.

        Raises:
            DrengineError: STANDBY_FAILED, HYDRATION_FAILED.
        """

    @abstractmethod
    def detach(self) -> None:
        """Let go of it, flushed; no error if it is not attached.

        Raises:
            DrengineError: STANDBY_FAILED, it is in use.
        """

    @abstractmethod
    def device(self) -> Path | None:
        """The block device, if it is attached."""

    def sector_bytes(self) -> int:
        """Of the disk's content, as whoever serves it tells.

        Raises:
            DrengineError: STANDBY_FAILED, nobody does.
        """
        try:
            with NbdClient.of(self.uri) as client:
                return max(SECTOR_BYTES, client.block_bytes_min)
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"{self.uri}: {error.strerror}") from error


def flush_unused(device: Path) -> None:
    """Have a device of which the kernel would let go while it is used written out, before it does.

    Raises:
        DrengineError: STANDBY_FAILED, it is in use, or can't be written.
    """
    try:
        opened = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        raise DrengineError(STANDBY_FAILED, f"{device}: {error.strerror}") from error
