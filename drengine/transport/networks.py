"""Data stays local (rule 7): which addresses block data may come from and go to, checked on the resolved peer."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from drengine.transport.errors import OUTSIDE_DATA_NETWORK, TransportError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def parse_address(text: str) -> Address:
    """An address as a socket names it; IPv4 inside IPv6 is taken as IPv4, a scope is dropped."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


def is_loopback(text: str) -> bool:
    """Whether an address is this machine's loopback. A name is not one, wherever it may lead."""
    try:
        address = parse_address(text)
    except ValueError:
        return False
    return any(address in network for network in LOOPBACK if network.version == address.version)


@dataclass(frozen=True)
class DataNetworks:
    """The networks that block data may use. Loopback is always one of them: such data leaves no machine."""

    networks: tuple[Network, ...] = ()

    @staticmethod
    def parse(texts: Iterable[str]) -> DataNetworks:
        """From CIDR strings.

        Raises:
            ValueError: one is not a network, or has host bits set.
        """
        return DataNetworks(tuple(ipaddress.ip_network(text) for text in texts))

    def label(self, peer: str) -> str:
        """The configured network that holds `peer`: a bounded metric label.

        Raises:
            TransportError: OUTSIDE_DATA_NETWORK.
        """
        if is_loopback(peer):
            return "loopback"
        address = parse_address(peer)
        for network in self.networks:
            if network.version == address.version and address in network:
                return str(network)
        allowed = ", ".join(map(str, self.networks)) or "loopback only"
        message = f"{peer} is outside the data networks ({allowed})"
        raise TransportError(OUTSIDE_DATA_NETWORK, "outside-data-network", message)
