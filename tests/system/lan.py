"""Hosts of their own on one network: each a machine under an overlay with its own systemd, all on one switch.

```
 outpost 10.83.0.1    shop 10.83.0.2    recovery-1 10.83.0.3    office 10.83.0.4    (names in /etc/hosts: NAME.example)
```
There is no way out: what a host needs is on it, or comes from another one.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.agent.install.host import Host, host

DOMAIN = "example"
UNSANDBOXED = "[Service]\nPrivateDevices=no\nPrivateUsers=no\nProtectClock=no\nDevicePolicy=auto\n"
"""A host in a namespace has no devices and users to take away from its services."""


def address(number: int) -> str:
    """Of the host of that number, from 0."""
    return f"10.83.0.{number + 1}"


@contextlib.contextmanager
def lan(place: Path, names: Sequence[str]) -> Iterator[dict[str, Host]]:
    """The hosts by name, booted; all of it is gone afterwards."""
    place.mkdir()
    switch = f"dr{secrets.token_hex(2)}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_namespace(switch))
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        made = {}
        for number, name in enumerate(names):
            network = f"{switch}-{number}"
            stack.enter_context(_namespace(network))
            _plug_in(switch, network, number)
            made[name] = stack.enter_context(host(place / name, systemd=True, network=network))
        for name, there in made.items():
            there.run("hostname", f"{name}.{DOMAIN}")
            # What the machine's other tests left, and lists of packages newer than those that are here.
            there.run("rm", "-rf", "/etc/drengine", "/var/lib/drengine", "/var/lib/apt/lists")
            drop_in = there.root / "etc/systemd/system/service.d/test.conf"
            drop_in.parent.mkdir(parents=True)
            drop_in.write_text(UNSANDBOXED, encoding="utf-8")
            there.run("systemctl", "daemon-reload")
            lines = ["127.0.0.1 localhost", f"127.0.1.1 {name}"]
            lines += [f"{address(number)} {each}.{DOMAIN} {each}" for number, each in enumerate(names)]
            (there.root / "etc/hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield made


def listening(there: Host) -> list[str]:
    """Where something on the host accepts connections from others: ADDRESS:PORT of TCP, loopback left out."""
    listed = there.run("ss", "--no-header", "--tcp", "--listening", "--numeric").stdout
    places = [line.split()[3] for line in listed.splitlines()]
    return [each for each in places if not each.startswith(("127.", "[::1]"))]


@contextlib.contextmanager
def _namespace(name: str) -> Iterator[None]:
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        _ip("netns", "delete", name)


def _plug_in(switch: str, network: str, number: int) -> None:
    port = f"port{number}"
    _ip("link", "add", "lan", "netns", network, "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", switch, "link", "set", port, "master", "switch", "up")
    _ip("-n", network, "address", "add", f"{address(number)}/24", "dev", "lan")
    _ip("-n", network, "link", "set", "lan", "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
