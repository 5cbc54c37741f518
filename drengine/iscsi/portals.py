"""Portals: the address and port at which a target is reached."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass

from drengine.iscsi.errors import ISCSI_PORTAL
from drengine.model.errors import DrengineError
from drengine.transport.networks import DataNetworks, is_loopback

DEFAULT_PORT = 3260
_PORTS_TRIED = 64


@dataclass(frozen=True, slots=True)
class Portal:
    """An address, no name, and a port; port 0: whichever is free."""

    address: str
    port: int = 0

    @staticmethod
    def parse(text: str) -> Portal:
        """From ``10.0.0.5``, ``10.0.0.5:3260``, ``[fd00::5]`` or ``[fd00::5]:3260``.

        Raises:
            ValueError: it is none, or stands for every address of a host.
        """
        host, port = text, ""
        if text.startswith("["):
            host, _, rest = text[1:].partition("]")
            port = rest.removeprefix(":")
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
        address = ipaddress.ip_address(host)
        if address.is_unspecified or address.is_multicast:
            raise ValueError(f"{host} is not the address of one interface")
        if port and not (port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{port!r} is no port")
        return Portal(str(address), int(port or 0))

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}" if self.port else host

    @property
    def is_loopback(self) -> bool:
        """It is reached from this host only."""
        return is_loopback(self.address)

    def require_inside(self, networks: DataNetworks) -> None:
        """Block data leaves by the data networks only (rule 7).

        Raises:
            DrengineError: OUTSIDE_DATA_NETWORK.
        """
        networks.label(self.address)

    def require_here(self) -> None:
        """This host has the address.

        Raises:
            DrengineError: ISCSI_PORTAL.
        """
        if fault := _listen_fault(self.address, 0):
            raise DrengineError(ISCSI_PORTAL, f"portal {self.address}: {_MEANING.get(fault, fault)}")

    def free(self) -> Portal:
        """This one, or with the first port that nobody listens at, as of now.

        Raises:
            DrengineError: ISCSI_PORTAL.
        """
        wanted = [self.port] if self.port else range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED)
        for port in wanted:
            fault = _listen_fault(self.address, port)
            if fault != errno.EADDRINUSE:
                break
        if fault:
            raise DrengineError(ISCSI_PORTAL, f"portal {Portal(self.address, port)}: {_MEANING.get(fault, fault)}")
        return Portal(self.address, port)


_MEANING = {
    errno.EADDRINUSE: "its port is taken",
    errno.EADDRNOTAVAIL: "this host does not have the address",
    errno.EACCES: "only root may use the port",
}


def _listen_fault(address: str, port: int) -> int:
    """The number of the error with which listening there fails; 0: it does not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as tgtd: connections that linger take no port
        try:
            tried.bind((address, port))
            tried.listen(1)
        except OSError as error:
            return error.errno or errno.EADDRNOTAVAIL
    return 0
