"""Orders to a tgtd of ours over its management socket.

tgt's own tool, tgtadm, takes secrets as arguments, which everybody on the host can read; so this speaks to the socket
itself. A request is a fixed header and parameters as text, an answer an error's number and text (tgt 1.0.x, tgtadm.h).
tgtd answers its own user only.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOCKET = "tgtd"
CONTROL_PORT = 0
SECONDS_MAX = 10.0
_REQUEST = struct.Struct("=II64sIiQQIIIIII")
_ANSWER = struct.Struct("=II")
_ANSWER_BYTES_MAX = 4 << 20
_DISK = 0
_EVERY_TARGET = -1


class Mode(IntEnum):
    """What an order is about."""

    TARGET = 1
    DEVICE = 2
    ACCOUNT = 7


class Act(IntEnum):
    """What is done with it."""

    NEW = 0
    SHOW = 2
    BIND = 3
    UPDATE = 5


_FAULTS = {
    3: "it speaks no iSCSI",
    4: "there is no such target",
    5: "there is no such LUN",
    9: "the target is there already",
    10: "the LUN is there already",
    14: "the account is there already",
    17: "the request is invalid",
}


class TgtdError(Exception):
    """tgtd refused an order."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What tgtd serves, as it says.

    Attributes:
        target: its name.
        luns: numbers of those that are online; 0 is tgt's own.
        allowed: whether anybody may log in.
        initiators: those that are logged in.
    """

    target: str
    luns: tuple[int, ...]
    allowed: bool
    initiators: tuple[str, ...]


class Tgtd:
    """A tgtd whose working directory is `directory`, and one target of it."""

    def __init__(self, directory: Path, number: int) -> None:
        """`number`: the target's."""
        self._directory = directory
        self._number = number

    @property
    def answers(self) -> bool:
        """Whether it takes orders."""
        try:
            self.show()
        except (OSError, TgtdError):
            return False
        return True

    def create_target(self, name: str) -> None:
        """A target that nobody may log in to yet.

        Raises:
            TgtdError, OSError: as of all these orders.
        """
        self._order(Mode.TARGET, Act.NEW, f"targetname={name}")

    def create_lun(
        self, lun: int, file: str, *, sector_bytes: int, identifier: str, serial: str, read_only: bool
    ) -> None:
        """A disk of a file in its directory. `identifier` and `serial`: see names.py."""
        self._order(Mode.DEVICE, Act.NEW, f"path={file},bstype=rdwr,blocksize={sector_bytes}", lun=lun)
        about = f"scsi_id={identifier},scsi_sn={serial},vendor_id=DRENGINE,product_id=branch"
        self._order(Mode.DEVICE, Act.UPDATE, f"{about},thin_provisioning=1,readonly={int(read_only)}", lun=lun)

    def create_account(self, user: str, secret: str) -> None:
        """With which initiators log in, for disks and for the list of targets."""
        self._order(Mode.ACCOUNT, Act.NEW, f"user={user},password={secret}")
        for number in (self._number, _EVERY_TARGET):
            self._order(Mode.ACCOUNT, Act.BIND, f"user={user}", number=number)

    def create_own_account(self, user: str, secret: str) -> None:
        """With which the target shows initiators who it is."""
        self._order(Mode.ACCOUNT, Act.NEW, f"user={user},password={secret}")
        self._order(Mode.ACCOUNT, Act.BIND, f"user={user}", ours=True)

    def allow(self, initiators: tuple[str, ...]) -> None:
        """Let initiators of these names in; without any, of all. The last order: whoever comes finds all disks."""
        for name in initiators:
            self._order(Mode.TARGET, Act.BIND, f"initiator-name={name}")
        if not initiators:
            self._order(Mode.TARGET, Act.BIND, "initiator-address=ALL")

    def show(self) -> Shown:
        """What it serves."""
        text = self._order(Mode.TARGET, Act.SHOW, number=_EVERY_TARGET)
        name = re.search(r"^Target \d+: (.*)$", text, re.MULTILINE)
        _, _, allowed = text.partition("ACL information:")
        return Shown(
            target=name[1].strip() if name else "",
            luns=tuple(int(lun) for lun in re.findall(r"LUN: (\d+)\n(?:.*\n){4}\s*Online: Yes", text) if lun != "0"),
            allowed=bool(allowed.strip()),
            initiators=tuple(re.findall(r"^\s*Initiator: (\S+)", text, re.MULTILINE)),
        )

    def _order(
        self, mode: Mode, act: Act, parameters: str = "", *, lun: int = 0, ours: bool = False, number: int | None = None
    ) -> str:
        body = parameters.encode() + b"\0" if parameters else b""
        target = self._number if number is None else number
        size = _REQUEST.size + len(body)
        header = _REQUEST.pack(mode, act, b"iscsi", size, target, 0, lun, 0, 0, _DISK, int(ours), 0, 0)
        with self._connected() as connection:
            connection.sendall(header + body)
            answer = bytearray()
            while received := connection.recv(64 << 10):
                answer += received
                if len(answer) > _ANSWER_BYTES_MAX:
                    raise TgtdError("tgtd's answer is too long")
        if len(answer) < _ANSWER.size:
            raise TgtdError("tgtd closed its socket: it answers its own user only")
        fault, _ = _ANSWER.unpack_from(answer)
        if fault:
            raise TgtdError(f"tgtd refused to {act.name.lower()} a {mode.name.lower()}: {_FAULTS.get(fault, fault)}")
        return bytes(answer[_ANSWER.size :]).rstrip(b"\0").decode(errors="replace")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        """By way of a descriptor: the names of sockets are short, those of directories need not be."""
        descriptor = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(SECONDS_MAX)
                connection.connect(f"/proc/self/fd/{descriptor}/{SOCKET}.{CONTROL_PORT}")
                yield connection
        finally:
            os.close(descriptor)
