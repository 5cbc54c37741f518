"""Network links of the namespace in which the calling thread is: bridges, pairs of cards, addresses, routes.

Each call looks first, so all of it can be asked for again after a crash.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any

from drengine.linux.namespaces import NAMED

NAME_CHARACTERS_MAX = 15
_NO_DAD, _PERMANENT = 0x02, 0x80
DAD_FAILED, TENTATIVE = 0x08, 0x40
"""Flags of an IPv6 address: somebody else has it; the kernel asks yet whether somebody does."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel shows it. `kind` is `bridge`, `veth`, `tun`, ...; `master` 0: it is no bridge's port."""

    index: int
    name: str
    kind: str
    mac: str
    master: int
    is_up: bool


@contextmanager
def links() -> Iterator[Links]:
    """The links of this thread's network.

    Raises:
        OSError: the kernel does not let us look.
    """
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 - takes half a second, and few commands need it

    with IPRoute() as route:
        yield Links(route, NetlinkError)


class Links:
    """See `links`. Calls raise OSError with the kernel's word."""

    def __init__(self, route: Any, refused: type[Any]) -> None:
        self._route = route
        self._refused = refused

    def all(self) -> list[Link]:
        """Every link, loopback too."""
        return [_link(each) for each in self._refused_as_os_error(lambda: list(self._route.get_links()))]

    def find(self, name: str) -> Link | None:
        """The link of a name."""
        return next((each for each in self.all() if each.name == name), None)

    def bridge(self, name: str) -> Link:
        """A bridge, up, that forwards to a new port at once."""
        if self.find(name) is None:
            self._do("link", "add", ifname=name, kind="bridge", br_forward_delay=0, br_stp_state=0, br_mcast_snooping=0)
        return self.up(name)

    def pair(self, name: str, peer: str, network: str, *, mac: str = "", mtu: int = 1500) -> None:
        """A cable: `name` here, `peer` in a named network. The kernel makes both ends or none."""
        if self.find(name) is not None:
            return
        there = os.open(NAMED / network, os.O_RDONLY | os.O_CLOEXEC)
        try:
            far: dict[str, Any] = {"ifname": peer, "net_ns_fd": there, "mtu": mtu} | ({"address": mac} if mac else {})
            self._do("link", "add", ifname=name, kind="veth", mtu=mtu, peer=far)
        finally:
            os.close(there)

    def put_into(self, name: str, bridge: str) -> None:
        """Make a link the port of a bridge."""
        self._do("link", "set", index=self._must(name).index, master=self._must(bridge).index)

    def up(self, name: str) -> Link:
        """Switch a link on."""
        link = self._must(name)
        if not link.is_up:
            self._do("link", "set", index=link.index, state="up")
        return link

    def remove(self, name: str) -> None:
        """Take a link away; no error if there is none."""
        link = self.find(name)
        if link is not None:
            self._do("link", "del", index=link.index)

    def addresses(self, name: str) -> dict[str, int]:
        """A link's addresses with prefix lengths, and their flags; link-local ones are left out."""
        index, found = self._must(name).index, dict[str, int]()
        for each in self._refused_as_os_error(lambda: list(self._route.get_addr(index=index))):
            text = each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")
            if not ip_address(text).is_link_local:
                found[f"{text}/{each['prefixlen']}"] = int(each.get_attr("IFA_FLAGS") or each["flags"])
        return found

    def add_address(self, name: str, address: str, *, look_for_doubles: bool = False) -> None:
        """Give a link an address; IPv6 looks for others that have it, which takes a second, where that is asked for."""
        parsed = ip_interface(address)
        if str(parsed) in self.addresses(name):
            return
        more = {} if parsed.version == 4 or look_for_doubles else {"flags": _NO_DAD | _PERMANENT}
        self._do(
            "addr",
            "add",
            index=self._must(name).index,
            address=str(parsed.ip),
            prefixlen=parsed.network.prefixlen,
            **more,
        )

    def remove_address(self, name: str, address: str) -> None:
        """Take an address from a link; no error if it has it not."""
        parsed, link = ip_interface(address), self.find(name)
        if link is not None and str(parsed) in self.addresses(name):
            self._do("addr", "del", index=link.index, address=str(parsed.ip), prefixlen=parsed.network.prefixlen)

    def add_route(self, name: str, to: str, via: str) -> None:
        """A route through a link; `default` is all of the gateway's version. One that is there is replaced."""
        family = {4: 2, 6: 10}[ip_address(via).version]
        onlink = 4  # the gateway may lie outside of the card's own network
        self._do("route", "replace", dst=to, gateway=via, oif=self._must(name).index, family=family, flags=onlink)

    def _must(self, name: str) -> Link:
        link = self.find(name)
        if link is None:
            raise OSError(errno.ENODEV, f"there is no link {name}")
        return link

    def _do(self, what: str, verb: str, **how: Any) -> None:
        self._refused_as_os_error(lambda: getattr(self._route, what)(verb, **how), f"{what} {verb}")

    def _refused_as_os_error(self, ask: Any, about: str = "links") -> Any:
        try:
            return ask()
        except self._refused as error:
            raise OSError(error.code, f"{about}: {os.strerror(error.code)}") from error


def _link(found: Any) -> Link:
    info = found.get_attr("IFLA_LINKINFO")
    return Link(
        index=found["index"],
        name=found.get_attr("IFLA_IFNAME"),
        kind=(info.get_attr("IFLA_INFO_KIND") if info else "") or "",
        mac=found.get_attr("IFLA_ADDRESS") or "",
        master=found.get_attr("IFLA_MASTER") or 0,
        is_up=bool(found["flags"] & 1),
    )
