"""QEMU's guest agent, as the guest answers through a virtio port. A guest is no friend: what it says is bounded.

Each conversation is one connection, begun by a number that must come back: what an earlier one left in the port is
passed over.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from ipaddress import ip_interface
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from drengine.failover.drivers.qmp import connect_unix

PORT = "org.qemu.guest_agent.0"
SECONDS = 2.0
ANSWER_BYTES_MAX = 256 << 10
INTERFACES_MAX, ADDRESSES_MAX = 32, 64
_WORD_MAX, _REFUSAL_BYTES = 64, 200
_BEGIN = b"\xff"
T = TypeVar("T")


class AgentError(Exception):
    """The guest does not answer, or not as an agent does."""


class _Address(msgspec.Struct, frozen=True):
    address: str = msgspec.field(name="ip-address")
    prefix: int


class _Interface(msgspec.Struct, frozen=True):
    name: str
    mac: str = msgspec.field(name="hardware-address", default="")
    addresses: list[_Address] = msgspec.field(name="ip-addresses", default=[])


class _Answer(msgspec.Struct, frozen=True):
    back: msgspec.Raw = msgspec.field(name="return", default=msgspec.Raw(b""))
    error: msgspec.Raw = msgspec.Raw(b"nothing")


class GuestInterface(msgspec.Struct, frozen=True):
    """A network interface of the guest, as it says; `addresses` with prefix lengths."""

    name: str
    mac: str
    addresses: tuple[str, ...]


class GuestAgent:
    """One conversation, which as a whole takes no longer than it was given."""

    def __init__(self, path: Path, *, seconds: float = SECONDS) -> None:
        """Connect, and find an agent there.

        Raises:
            AgentError: there is none.
        """
        self._deadline = time.monotonic() + seconds
        self._left = b""
        try:
            self._socket = connect_unix(path, seconds)
        except OSError as error:
            raise AgentError(str(error)) from error
        try:
            number = secrets.randbelow(1 << 31)
            self._send("guest-sync-delimited", begin=_BEGIN, id=number)
            while self._answer(int, delimited=True) != number:
                pass
        except BaseException:
            self._socket.close()
            raise

    def ping(self) -> None:
        """Find it alive.

        Raises:
            AgentError: it is not.
        """
        self._send("guest-ping")
        self._answer(dict[str, Any])

    def interfaces(self) -> tuple[GuestInterface, ...]:
        """The guest's networks, loopback excepted.

        Raises:
            AgentError: it does not tell.
        """
        self._send("guest-network-get-interfaces")
        found = self._answer(list[_Interface])
        told = [each for each in found if each.name != "lo"][:INTERFACES_MAX]
        return tuple(GuestInterface(_word(each.name), _word(each.mac), _addresses(each)) for each in told)

    def shut_down(self) -> None:
        """Ask the guest to end; it does not answer.

        Raises:
            AgentError: it can't be asked.
        """
        self._send("guest-shutdown", mode="powerdown")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def _send(self, command: str, *, begin: bytes = b"", **arguments: Any) -> None:
        told = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._socket.settimeout(self._seconds())
            self._socket.sendall(begin + json.dumps(told).encode() + b"\n")
        except OSError as error:
            raise AgentError(str(error)) from error

    def _answer(self, kind: type[T], *, delimited: bool = False) -> T:
        """What comes back, as `kind`. Until a delimited one has come, whatever else comes is passed over."""
        while True:
            line = self._line()
            if delimited:
                _, found, line = line.rpartition(_BEGIN)
                if not found:
                    continue
            try:
                answer = msgspec.json.decode(line, type=_Answer)
                if not bytes(answer.back):
                    said = bytes(answer.error)[:_REFUSAL_BYTES]
                    raise AgentError(f"the guest's agent refuses: {said.decode(errors='replace')}")
                return msgspec.json.decode(answer.back, type=kind)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                if not delimited:
                    raise AgentError(f"the guest does not answer as an agent does: {error}") from error

    def _line(self) -> bytes:
        while b"\n" not in self._left:
            if len(self._left) > ANSWER_BYTES_MAX:
                raise AgentError(f"the guest's answer is longer than {ANSWER_BYTES_MAX >> 10} KiB")
            try:
                self._socket.settimeout(self._seconds())
                came = self._socket.recv(1 << 16)
            except OSError as error:
                raise AgentError(str(error)) from error
            if not came:
                raise AgentError("the machine has ended")
            self._left += came
        line, _, self._left = self._left.partition(b"\n")
        return line

    def _seconds(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise AgentError("the guest's agent does not answer in time")
        return left


def _word(said: str) -> str:
    """Fit to be shown."""
    return "".join(each if each.isprintable() else "?" for each in said[:_WORD_MAX])


def _addresses(interface: _Interface) -> tuple[str, ...]:
    """Those that are some."""
    told = []
    for each in interface.addresses[:ADDRESSES_MAX]:
        with contextlib.suppress(ValueError):
            told.append(str(ip_interface(f"{each.address}/{each.prefix}")))
    return tuple(told)
