"""Disks by the kernel's iSCSI initiator: the LUNs of one target, to which open-iscsi logs in.

iscsid, a service of its own, holds the session and comes back after the target was away, so nothing here depends on the
agent's life. A note says before the login which LUN is whose; sessions and disks are then looked for in the kernel: a
session by target and portal, a disk by its identifier and not by a name that another may get.

Who this host is to the target stands where open-iscsi keeps it, and nowhere else: its name in
/etc/iscsi/initiatorname.iscsi, user and secret for CHAP in /etc/iscsi/iscsid.conf.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from drengine.control.attach import Lun
from drengine.durable import replace_durably
from drengine.linux.devices import Number, disk_name, told
from drengine.model.errors import DrengineError
from drengine_agent.standby.disk import AttachedDisk, flush_unused
from drengine_agent.standby.errors import STANDBY_FAILED
from drengine_agent.standby.tools import run_tool

SESSIONS, CONNECTIONS = Path("/sys/class/iscsi_session"), Path("/sys/class/iscsi_connection")
NAME_FILE = Path("/etc/iscsi/initiatorname.iscsi")
APPEAR_SECONDS = 15.0
LOGIN_SECONDS = 60.0
LOOK_SECONDS = 0.05
_SESSION_EXISTS, _NOTHING_FOUND = 15, 21
_RECORD = {
    "node.startup": "manual",
    "node.session.initial_login_retry_max": "2",
    "node.conn[0].timeo.login_timeout": "10",
}
"""A reboot logs in to nothing that no order asked for; and a login has failed before we stop waiting for it."""
_DAEMON = "@ISCSIADM_ABSTRACT_NAMESPACE"
"""Where iscsid, or systemd for it, listens."""


def initiator_fault() -> str:
    """Why this host can't log in anywhere, though the programs are there; empty: it can."""
    faults = []
    if not NAME_FILE.exists():
        faults.append(f"there is no {NAME_FILE}")
    if _DAEMON not in Path("/proc/net/unix").read_text(errors="replace"):
        faults.append("iscsid does not run (systemctl enable --now iscsid.socket)")
    if not _has_driver():
        faults.append("the kernel has no iSCSI initiator (module iscsi_tcp)")
    return ", ".join(faults)


@dataclass(frozen=True, slots=True)
class IscsiDisk(AttachedDisk):
    """`iscsi`

    Attributes:
        lun: which one it is; None: as it was noted.
    """

    lun: Lun | None = None

    def attach(self, deadline: float) -> Path:
        noted = self._noted
        lun = noted if noted and _sessions(noted) else self.lun or noted
        if lun is None:
            raise DrengineError(STANDBY_FAILED, f"nobody said which LUN disk {self.volume} is")
        if lun != noted:
            replace_durably(self._note, msgspec.json.encode(lun))  # first: what is not noted is never logged out
        if not _sessions(lun):
            _log_in(lun)
        appears = time.monotonic() + APPEAR_SECONDS
        while (device := self.device()) is None:
            if time.monotonic() > appears:
                raise DrengineError(STANDBY_FAILED, f"disk {self.volume} is no LUN of {lun.target} at {lun.portal}")
            time.sleep(LOOK_SECONDS)
        return device

    def detach(self) -> None:
        """The last disk of a session ends it."""
        lun = self._noted
        if lun is None:
            return
        if device := self.device():
            flush_unused(device)
        others = (_read_lun(note) for note in self.directory.glob("*.lun") if note != self._note)
        if not any(other and (other.portal, other.target) == (lun.portal, lun.target) for other in others):
            _log_out(lun)
        self._note.unlink()

    def device(self) -> Path | None:
        lun = self._noted
        return next((device for device in _devices(lun) if device.exists()), None) if lun else None

    @property
    def _note(self) -> Path:
        return self.directory / f"{self.volume}.lun"

    @property
    def _noted(self) -> Lun | None:
        return _read_lun(self._note)


def is_lun_of(number: Number, instances: Path) -> bool:
    """Whether a device, or the disk of a partition, is a LUN that is noted in one of these directories."""
    name = disk_name(number)
    luns = filter(None, map(_read_lun, instances.glob("*/*.lun")))
    return bool(name) and any(device.name == name for lun in luns for device in _devices(lun))


def _log_in(lun: Lun) -> None:
    """
    Raises:
        DrengineError: STANDBY_FAILED.
    """
    node = _node(lun)
    run_tool(*node, "--op", "new", meant=lun.portal)
    for name, value in _RECORD.items():
        run_tool(*node, "--op", "update", "--name", name, "--value", value)
    run_tool(*node, "--login", seconds=LOGIN_SECONDS, meant=f"{lun.target} at {lun.portal}", fine=(_SESSION_EXISTS,))


def _log_out(lun: Lun) -> None:
    """And forget the target.

    Raises:
        DrengineError: STANDBY_FAILED, the session is still there.
    """
    node = _node(lun)
    run_tool(*node, "--logout", seconds=LOGIN_SECONDS, meant=lun.target, fine=(_NOTHING_FOUND,))
    if _sessions(lun):
        raise DrengineError(STANDBY_FAILED, f"{lun.target} at {lun.portal} is still logged in to")
    run_tool(*node, "--op", "delete", meant=lun.target, fine=(_NOTHING_FOUND,))


def _node(lun: Lun) -> tuple[str, ...]:
    return "iscsiadm", "--mode", "node", "--targetname", lun.target, "--portal", lun.portal


def _sessions(lun: Lun) -> list[Path]:
    """The kernel's, with this target at this portal."""
    return [
        session
        for session in SESSIONS.glob("session*")
        if told(session / "targetname") == lun.target and lun.portal in _portals(session.name)
    ]


def _portals(session: str) -> Iterator[str]:
    """Those to which a session has connected, as it was told them."""
    for connection in CONNECTIONS.glob(f"connection{session.removeprefix('session')}:*"):
        address, port = told(connection / "persistent_address"), told(connection / "persistent_port")
        yield f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _devices(lun: Lun) -> Iterator[Path]:
    for session in _sessions(lun):
        for disk in (session / "device").glob("target*/*"):
            if told(disk / "wwid") == f"naa.{lun.identifier}":
                yield from (Path("/dev") / each.name for each in (disk / "block").glob("*"))


def _read_lun(note: Path) -> Lun | None:
    try:
        return msgspec.json.decode(note.read_bytes(), type=Lun)
    except (OSError, msgspec.MsgspecError):
        return None


def _has_driver() -> bool:
    """It is loaded, or there for iscsid to load."""
    if Path("/sys/module/iscsi_tcp").exists():
        return True
    modules = Path("/lib/modules", os.uname().release)
    listed = "".join(told(modules / name) for name in ("modules.dep", "modules.builtin"))
    return "/iscsi_tcp.ko" in listed
