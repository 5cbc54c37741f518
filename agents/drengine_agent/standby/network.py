"""The network of a workload: its own, empty or in the drill's bubble, or this host's with addresses that it brings."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from drengine.bubble import Bubble
from drengine.control.attach import BUBBLE, NONE, AttachOrder
from drengine.durable import replace_durably
from drengine.linux.links import DAD_FAILED, TENTATIVE, links
from drengine.linux.namespaces import in_network, is_network, make_network, remove_network
from drengine.linux.neighbours import announce, who_has
from drengine.model.errors import DrengineError
from drengine_agent.standby.errors import ADDRESS_TAKEN, STANDBY_FAILED

PROBE_SECONDS = 1.0
"""RFC 5227 waits for 1 to 2 s before an address is used."""
DAD_SECONDS = 5.0
LOOK_SECONDS = 0.05


class WorkloadNetwork:
    """The network of one instance. Calls block and may be repeated.

    What is taken over on an interface of the host is noted in `addresses.json` before, so that just that is given back.
    """

    def __init__(self, order: AttachOrder, directory: Path) -> None:
        self._order = order
        self._noted = directory / "addresses.json"

    @property
    def name(self) -> str:
        """Of its own network; "": it is in the host's."""
        own = self._order.isolated and self._order.settings.network in (NONE, BUBBLE)
        return f"dr-{self._order.instance}" if own else ""

    @property
    def is_there(self) -> bool:
        """Commands can be run in it."""
        return not self.name or is_network(self.name)

    def make(self) -> None:
        """Make it, or take over the addresses.

        Raises:
            DrengineError: STANDBY_FAILED, BUBBLE_FAILED; ADDRESS_TAKEN, somebody else has one: nothing is taken over.
        """
        try:
            if self.name:
                make_network(self.name)
                in_network(self.name, _loopback)
            if self.name and self._in_bubble:
                self._bubble().connect(self.name, self._order.cards)
            elif self._interface:
                self._take_over()
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"network: {error.strerror or error}") from error

    def leave(self) -> None:
        """Take it away, or give the addresses back. No error if there is nothing.

        Raises:
            DrengineError: STANDBY_FAILED, BUBBLE_FAILED.
        """
        try:
            for address in self._taken():
                with links() as found:
                    found.remove_address(self._order.settings.interface, address)
            self._noted.unlink(missing_ok=True)
            if self.name and self._in_bubble:
                self._bubble().leave(self.name)
            elif self.name:
                remove_network(self.name)
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"network: {error.strerror or error}") from error

    def addresses(self) -> list[str] | None:
        """Those that the workload has, with prefix lengths, as they are now; None: it brings none."""
        if not (self._in_bubble or self._interface) or not self.is_there:
            return None

        def look() -> list[str]:
            with links() as found:
                all_but_lo = [each.name for each in found.all() if each.name != "lo"]
                names = [self._interface] if self._interface else all_but_lo
                return sorted(address for name in names for address in found.addresses(name))

        try:
            return in_network(self.name, look)
        except OSError:
            return []  # its interface is gone

    @property
    def _in_bubble(self) -> bool:
        return self._order.isolated and self._order.settings.network == BUBBLE

    @property
    def _interface(self) -> str:
        """That of the host which gets the addresses; "": none. A drill takes nothing over."""
        return "" if self._order.isolated else self._order.settings.interface

    def _bubble(self) -> Bubble:
        return Bubble(self._order.run or self._order.instance, self._order.servers)

    def _take_over(self) -> None:
        wanted = [address for card in self._order.cards for address in card.addresses]
        with links() as found:
            there = found.addresses(self._interface)
        new = [each for each in wanted if each not in there]
        for each in new:
            if ":" not in each and (mac := who_has(self._interface, each.partition("/")[0], seconds=PROBE_SECONDS)):
                raise DrengineError(ADDRESS_TAKEN, f"{each} is in use on {self._interface} by {mac}")
        replace_durably(self._noted, msgspec.json.encode(sorted({*self._taken(), *new})))
        for each in new:
            with links() as found:
                found.up(self._interface)
                found.add_address(self._interface, each, look_for_doubles=True)
        for each in new:
            if ":" in each:
                self._wait_for(each)
        for each in self._taken():
            announce(self._interface, each.partition("/")[0])

    def _wait_for(self, address: str) -> None:
        """IPv6 asks by itself whether somebody has it."""
        deadline = time.monotonic() + DAD_SECONDS
        while True:
            with links() as found:
                flags = found.addresses(self._interface).get(address, DAD_FAILED)
                if flags & DAD_FAILED:
                    found.remove_address(self._interface, address)
                    raise DrengineError(ADDRESS_TAKEN, f"{address} is in use on {self._interface}")
            if not flags & TENTATIVE or time.monotonic() > deadline:
                return
            time.sleep(LOOK_SECONDS)

    def _taken(self) -> list[str]:
        try:
            return msgspec.json.decode(self._noted.read_bytes(), type=list[str])
        except (OSError, msgspec.MsgspecError):
            return []


def _loopback() -> None:
    with links() as found:
        found.up("lo")
