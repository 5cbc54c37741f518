"""One target with the disks of one instance: a tgtd of its own over one file for each disk, found again by its mark.

    initiator  --iSCSI-->  tgtd  --file-->  nbdfuse  --NBD-->  branch

Writes go through: tgtd answers one when nbdfuse has given it to the branch, and SYNCHRONIZE CACHE, or a write with
FUA, when the branch's flush has ended. tgtd keeps nothing, so it is ended by SIGKILL: what it had not answered was not
promised.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from drengine.durable import replace_durably
from drengine.iscsi.errors import ISCSI_FAILED, ISCSI_SETTINGS
from drengine.iscsi.gate import hear_only
from drengine.iscsi.names import (
    check_account,
    check_iscsi_name,
    disk_identifier,
    disk_serial,
    target_number,
)
from drengine.iscsi.portals import Portal
from drengine.iscsi.tgtd import CONTROL_PORT, SOCKET, Tgtd, TgtdError
from drengine.model.errors import DrengineError
from drengine.nbd.fuse import FuseFile
from drengine.ownership import make_directory
from drengine.process import end_marked, find_marked, start_marked
from drengine.transport.networks import DataNetworks

MARK = "DRENGINE_ISCSI"
FILE_MARK = "DRENGINE_ISCSI_DISK"
READY_SECONDS = 10.0
LOOK_SECONDS = 0.02
OUTPUT_CHARACTERS_MAX = 2000
_PORTAL, _OUTPUT = "portal", "tgtd.log"


@dataclass(frozen=True, slots=True)
class Account:
    """A user and secret of CHAP; never shown."""

    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LunDisk:
    """A disk to be served; the first one is LUN 1.

    Attributes:
        volume: its name.
        uri: NBD URI.
        sector_bytes: of its content, and so of the LUN.
    """

    volume: str
    uri: str
    sector_bytes: int


@dataclass(frozen=True, slots=True)
class IscsiTarget:
    """What is served to whom.

    Attributes:
        name: an iSCSI qualified name.
        portal: where; without a port at the first free one.
        networks: from where initiators may come; loopback always.
        initiators: their names; empty: any.
        account: with which they log in; None only where the portal is loopback.
        mutual: with which the target shows itself to them.
        read_only: no LUN can be written.
    """

    name: str
    portal: Portal
    networks: DataNetworks
    initiators: tuple[str, ...] = ()
    account: Account | None = None
    mutual: Account | None = None
    read_only: bool = False

    def check(self) -> None:
        """Whether it may be served so.

        Raises:
            DrengineError: ISCSI_SETTINGS; OUTSIDE_DATA_NETWORK, the portal.
        """
        self.portal.require_inside(self.networks)
        try:
            for name in (self.name, *self.initiators):
                check_iscsi_name(name)
            for account in filter(None, (self.account, self.mutual)):
                check_account(account.user, account.secret)
        except ValueError as error:
            raise DrengineError(ISCSI_SETTINGS, str(error)) from error
        if self.account is None and (self.mutual or not self.portal.is_loopback):
            raise DrengineError(
                ISCSI_SETTINGS, f"portal {self.portal}: beyond loopback initiators must log in with CHAP"
            )
        if self.account and self.mutual and self.account.secret == self.mutual.secret:
            raise DrengineError(ISCSI_SETTINGS, "the two secrets must differ, or one side could play back the other's")


class ServedTarget(msgspec.Struct, frozen=True):
    """What initiators have to know.

    Attributes:
        portal: address and port.
        target: its name.
        luns: number of each volume's.
        initiators: who is logged in, by name.
    """

    portal: str
    target: str
    luns: Mapping[str, int]
    initiators: tuple[str, ...] = ()

    def root_path(self, volume: str) -> str:
        """Of a disk, as iPXE's `sanboot` and DHCP's option 17 take it (RFC 4173)."""
        host, _, port = self.portal.rpartition(":")
        return f"iscsi:{host}::{port}:{self.luns[volume]:x}:{self.target}"


class IscsiInstance:
    """An instance's target. Calls block; each looks first what is there, so all can be repeated."""

    def __init__(self, name: str, directory: Path, volumes: Sequence[str], *, ends_with_us: bool = False) -> None:
        """
        Args:
            name: the instance's.
            directory: its own.
            volumes: of its disks, in the order of their LUNs.
            ends_with_us: its processes end when the thread does that calls `start`, whatever ends that.
        """
        self._name = name
        self._directory = directory.resolve()
        self._volumes = tuple(volumes)
        self._ends_with_us = ends_with_us
        self._tgtd = Tgtd(self._directory, target_number(name))

    def start(self, target: IscsiTarget, disks: Sequence[LunDisk]) -> ServedTarget:
        """Serve, and return when initiators may log in; what is served already goes on.

        Raises:
            DrengineError: ISCSI_SETTINGS, ISCSI_PORTAL, OUTSIDE_DATA_NETWORK, ISCSI_FAILED.
        """
        target.check()
        make_directory(self._directory)
        if served := self.served():
            return served
        self._end_tgtd()
        try:
            for disk in disks:
                self._file(disk.volume).show(disk.uri, read_only=target.read_only, before=self._bound("TERM"))
            self._start_tgtd(self._choose(target.portal))
            self._configure(target, disks)
        except (OSError, TgtdError) as error:
            said = self._last_words()
            raise DrengineError(ISCSI_FAILED, f"{error}{f': {said}' if said else ''}") from error
        served = self.served()
        if served is None:
            raise DrengineError(ISCSI_FAILED, f"the target is not as it was asked for: {self._last_words()}")
        return served

    def served(self) -> ServedTarget | None:
        """What initiators may use now; None: not all of it is there."""
        if not self.processes() or not all(self._file(volume).is_served for volume in self._volumes):
            return None
        try:
            shown = self._tgtd.show()
            portal = (self._directory / _PORTAL).read_text()
        except (OSError, TgtdError):
            return None
        luns = {volume: number for number, volume in enumerate(self._volumes, 1)}
        if not shown.allowed or set(shown.luns) != set(luns.values()):
            return None
        return ServedTarget(portal, shown.target, luns, shown.initiators)

    def processes(self) -> list[int]:
        """Of its tgtd."""
        return find_marked(MARK, self._name, self._directory)

    def file_processes(self) -> list[int]:
        """Of its disks' nbdfuse."""
        found = (find_marked(FILE_MARK, f"{self._name}/{volume}", self._directory) for volume in self._volumes)
        return [process for processes in found for process in processes]

    def stop(self) -> None:
        """Serve no more; what was written is flushed. Nothing is left but the directory, which knows the portal.

        Raises:
            DrengineError: ISCSI_FAILED, a disk could not be flushed.
        """
        self._end_tgtd()
        failed = ""
        for volume in self._known_volumes():
            file = self._file(volume)
            try:
                if file.is_served:
                    file.flush()
            except OSError as error:
                failed = f"disk {volume} could not be flushed: {error}"
            try:
                file.remove()
            except OSError as error:
                failed = failed or str(error)
        if failed:
            raise DrengineError(ISCSI_FAILED, failed)

    def details(self) -> dict[str, Any]:
        """For reports."""
        served = self.served()
        if served is None:
            return {"pids": self.processes()}
        first = self._volumes[0] if self._volumes else ""
        return {
            "pids": self.processes(),
            "portal": served.portal,
            "target": served.target,
            "luns": dict(served.luns),
            "root_path": served.root_path(first) if first else "",
            "initiators": list(served.initiators),
        }

    def _known_volumes(self) -> list[str]:
        """Ours, and those of files that lie there: who ends it may not know how it was started."""
        return sorted({*self._volumes, *(each.name.removesuffix(".disk") for each in self._directory.glob("*.disk"))})

    def _file(self, volume: str) -> FuseFile:
        return FuseFile(FILE_MARK, f"{self._name}/{volume}", volume, self._directory)

    def _choose(self, portal: Portal) -> Portal:
        """The portal with a port: that of before, if there was one."""
        note = self._directory / _PORTAL
        if not portal.port and note.exists():
            noted = Portal.parse(note.read_text())
            portal = noted if noted.address == portal.address else portal
        chosen = portal.free()
        replace_durably(note, str(chosen).encode())
        return chosen

    def _start_tgtd(self, portal: Portal) -> None:
        start_marked(
            [*self._bound("KILL"), "tgtd", "-f", "-C", str(CONTROL_PORT), "--iscsi", f"portal={portal}"],
            MARK,
            self._name,
            output=self._directory / _OUTPUT,
            directory=self._directory,
            environment={"TGT_IPC_SOCKET": SOCKET},
        )
        deadline = time.monotonic() + READY_SECONDS
        while not self._tgtd.answers:
            if time.monotonic() > deadline or not self.processes():
                raise OSError("tgtd does not come up")
            time.sleep(LOOK_SECONDS)

    def _configure(self, target: IscsiTarget, disks: Sequence[LunDisk]) -> None:
        """Whom it hears and what it serves; that anybody may log in comes last."""
        port = Portal.parse((self._directory / _PORTAL).read_text()).port
        for process in self.processes():
            hear_only(process, port, target.networks.networks)
        self._tgtd.create_target(target.name)
        if target.account:
            self._tgtd.create_account(target.account.user, target.account.secret)
        if target.mutual:
            self._tgtd.create_own_account(target.mutual.user, target.mutual.secret)
        for number, disk in enumerate(disks, 1):
            self._tgtd.create_lun(
                number,
                self._file(disk.volume).path.name,
                sector_bytes=disk.sector_bytes,
                identifier=disk_identifier(self._name, disk.volume),
                serial=disk_serial(self._name, disk.volume),
                read_only=target.read_only,
            )
        self._tgtd.allow(target.initiators)

    def _bound(self, signal: str) -> list[str]:
        """What a command is begun with that is to end with us, by this signal."""
        return ["setpriv", "--pdeathsig", signal] if self._ends_with_us else []

    def _end_tgtd(self) -> None:
        end_marked(MARK, self._name, self._directory, grace_seconds=0.0)
        for left in (f"{SOCKET}.{CONTROL_PORT}", f"{SOCKET}.{CONTROL_PORT}.lock"):
            (self._directory / left).unlink(missing_ok=True)

    def _last_words(self) -> str:
        try:
            return (self._directory / _OUTPUT).read_text(errors="replace")[-OUTPUT_CHARACTERS_MAX:].strip()
        except OSError:
            return ""
