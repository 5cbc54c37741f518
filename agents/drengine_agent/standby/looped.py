"""Disks that are files of this host, with a loop device on each: nbdfuse's, or a copy."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.nbd.fuse import FuseFile
from drengine_agent.standby.copied import CopiedDisk
from drengine_agent.standby.disk import AttachedDisk
from drengine_agent.standby.errors import STANDBY_FAILED
from drengine_agent.standby.tools import MARK, run_tool

DETACH_SECONDS = 5.0
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class LoopDisk(AttachedDisk):
    """What both have in common."""

    @property
    @abstractmethod
    def _file(self) -> Path:
        """What the loop device lies on."""

    def device(self) -> Path | None:
        devices = self._devices()
        return devices[0] if devices else None

    def _attach_loop(self) -> Path:
        found = self._devices()
        if found:
            return found[0]
        sectors = ("--sector-size", str(self.sector_bytes()))
        return Path(run_tool("losetup", "--find", "--show", "--partscan", *sectors, self._file))

    def _detach_loop(self) -> None:
        """One that somebody looks into at that moment goes when he closes it."""
        for device in self._devices():
            run_tool("losetup", "--detach", device)
        deadline = time.monotonic() + DETACH_SECONDS
        while devices := self._devices():
            if time.monotonic() > deadline:
                raise DrengineError(STANDBY_FAILED, f"{devices[0]} is in use")
            time.sleep(LOOK_SECONDS)

    def _devices(self) -> list[Path]:
        listed = json.loads(
            run_tool("losetup", "--json", "--list", "--output", "NAME,BACK-FILE") or '{"loopdevices":[]}'
        )
        return [Path(each["name"]) for each in listed["loopdevices"] if each["back-file"] == str(self._file)]


@dataclass(frozen=True, slots=True)
class FuseDisk(LoopDisk):
    """`fuse`"""

    @property
    def _fuse(self) -> FuseFile:
        return FuseFile(MARK, f"{self.instance}/{self.volume}", self.volume, self.directory)

    @property
    def _file(self) -> Path:
        return self._fuse.path

    def attach(self, deadline: float) -> Path:
        try:
            self._fuse.show(self.uri)
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"nbdfuse: {error}") from error
        return self._attach_loop()

    def detach(self) -> None:
        self._detach_loop()
        try:
            self._fuse.remove()
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, str(error)) from error


@dataclass(frozen=True, slots=True)
class CopyDisk(LoopDisk):
    """`copy`"""

    @property
    def _copy(self) -> CopiedDisk:
        return CopiedDisk(self.instance, self.volume, self.uri, self.directory)

    @property
    def _file(self) -> Path:
        return self._copy.path

    def attach(self, deadline: float) -> Path:
        if not self._devices():
            self._copy.fill(deadline)
        return self._attach_loop()

    def detach(self) -> None:
        self._detach_loop()
        self._copy.forget() if self.discarded else self._copy.bring_home()
