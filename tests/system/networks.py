"""Four hosts in network namespaces: a source, an Outpost, a recovery host, and the region far away.

```
 source 10.81.1.2 ----- 10.81.1.1 Outpost 10.81.2.1 ----- 10.81.2.2 recovery
        10.81.8.2 --- region --- 10.81.9.2 Outpost         (services: 10.81.0.1)
                        +------- 10.81.7.2 recovery
```
Every host's default route goes through the region, as it would by a cloud's service link; only routes to each other are
local. So whatever has no business there shows in the region's counters. It passes nothing on: what is sent there is
never answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HOSTS = ("source", "outpost", "recovery", "region")
SERVICES = "10.81.0.1"
"""Address of the Outpost's services, the same for all."""


def skip_unless_networks_can_be_made() -> None:
    """Say aloud what is missing."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    missing = [tool for tool in ("ip", "nsenter") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


class Networks:
    """The hosts and the links between them."""

    def __init__(self) -> None:
        self._prefix = f"dr{secrets.token_hex(2)}"
        self._cut = False

    def inside(self, host: str) -> list[str]:
        """Put before a command it runs on that host; file systems are shared by all."""
        return ["nsenter", f"--net=/run/netns/{self._prefix}-{host}"]

    def region_bytes(self) -> int:
        """What went over the region's links so far, both ways."""
        listed = json.loads(_ip("-n", f"{self._prefix}-region", "-s", "-j", "link"))
        return sum(each["stats64"][way]["bytes"] for each in listed if each["ifname"] != "lo" for way in ("rx", "tx"))

    def region_packets(self) -> int:
        """How many packets came over the region's links so far."""
        listed = json.loads(_ip("-n", f"{self._prefix}-region", "-s", "-j", "link"))
        return sum(each["stats64"]["rx"]["packets"] for each in listed if each["ifname"] != "lo")

    def cut_region(self) -> None:
        """The region is gone."""
        for host in HOSTS[:-1]:
            _ip("-n", f"{self._prefix}-region", "link", "set", host, "down")

    def fence_command(self, host: str) -> list[str]:
        """What a switch does: the host's local port is shut."""
        return ["ip", "-n", f"{self._prefix}-{host}", "link", "set", "lan", "down"]

    def plug_in(self, host: str) -> None:
        """The port is opened again."""
        name = f"{self._prefix}-{host}"
        _ip("-n", name, "link", "set", "lan", "up")
        gateway = "10.81.1.1" if host == "source" else "10.81.2.1"
        _ip("-n", name, "route", "replace", SERVICES, "via", gateway)

    def make(self) -> None:
        """Make the hosts and their links."""
        for host in HOSTS:
            _ip("netns", "add", f"{self._prefix}-{host}")
            _ip("-n", f"{self._prefix}-{host}", "link", "set", "lo", "up")
            # The kernel itself would greet neighbours by IPv6.
            quiet = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"
            subprocess.run([*self.inside(host), "sh", "-c", quiet], check=True)
        self._link("source", "lan", "10.81.1.2/24", "outpost", "source", "10.81.1.1/24")
        self._link("recovery", "lan", "10.81.2.2/24", "outpost", "recovery", "10.81.2.1/24")
        self._link("source", "wan", "10.81.8.2/24", "region", "source", "10.81.8.1/24")
        self._link("outpost", "wan", "10.81.9.2/24", "region", "outpost", "10.81.9.1/24")
        self._link("recovery", "wan", "10.81.7.2/24", "region", "recovery", "10.81.7.1/24")
        _ip("-n", f"{self._prefix}-outpost", "address", "add", f"{SERVICES}/32", "dev", "lo")
        for host, gateway in (("source", "10.81.8.1"), ("outpost", "10.81.9.1"), ("recovery", "10.81.7.1")):
            _ip("-n", f"{self._prefix}-{host}", "route", "add", "default", "via", gateway)
        for host in ("source", "recovery"):
            self.plug_in(host)

    def remove(self) -> None:
        """Take everything away again."""
        for host in HOSTS:
            with contextlib.suppress(AssertionError):
                _ip("netns", "delete", f"{self._prefix}-{host}")

    def _link(self, host: str, name: str, address: str, other: str, other_name: str, other_address: str) -> None:
        one, two = f"{self._prefix}-{host}", f"{self._prefix}-{other}"
        _ip("link", "add", name, "netns", one, "type", "veth", "peer", "name", other_name, "netns", two)
        for space, device, at in ((one, name, address), (two, other_name, other_address)):
            _ip("-n", space, "address", "add", at, "dev", device)
            _ip("-n", space, "link", "set", device, "up")


@contextlib.contextmanager
def networks() -> Iterator[Networks]:
    """Made, and removed whatever happens."""
    made = Networks()
    try:
        made.make()
        yield made
    finally:
        made.remove()


def _ip(*arguments: str | Path) -> str:
    done = subprocess.run(["ip", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(map(str, arguments))}: {done.stderr}"
    return done.stdout
