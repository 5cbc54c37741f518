"""What a server or recovery host that joins is told: options of `drengine join-command`, and keys of an inventory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from drengine.config import ADDRESS, ADDRESSES, FLAG, NETWORKS, TABLE, TEXT, WORDS, Address, choice, option
from drengine.control.topics import check_party_name
from drengine.identity.names import Role
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.model.points import PointKind
from drengine.transport.networks import DataNetworks, parse_address


def _cuts(text: str) -> None:
    known = (PointKind.QUIET, PointKind.FROZEN, PointKind.APPLICATION)
    named = [each.strip() for each in text.split(",")]
    if text != "auto" and not set(named) <= set(known):
        raise ValueError(f"possible are auto, {', '.join(known)}")


def _host_port(address: Address | None) -> None:
    if address is not None and not address.host:
        raise ValueError("a host and a port are needed")


def _hosts_ports(addresses: tuple[Address, ...]) -> None:
    if not addresses:
        raise ValueError("at least one address is needed")
    for address in addresses:
        _host_port(address)


def _volumes(volumes: Mapping[str, Any]) -> None:
    for name, path in volumes.items():
        check_name(name, what="volume")
        if not isinstance(path, str) or not PurePosixPath(path).is_absolute():
            raise ValueError(f"{name}: the absolute path of a disk is needed")
    twice = [path for path in volumes.values() if list(volumes.values()).count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is in use twice")


@dataclass(frozen=True)
class Server:
    """A server in an inventory, or the `defaults` of all."""

    target: tuple[Address, ...] = option(
        ADDRESSES,
        help="The target's host and port; of several targets of one store, a list.",
        example=(Address("outpost.example", 7440),),
        check=_hosts_ports,
    )
    data_networks: tuple[str, ...] = option(
        NETWORKS, default=(), help="Networks that block data may use, beside loopback; the target's is one of them."
    )
    volumes: Mapping[str, Any] = option(
        TABLE, default={}, help="Disks by name; none: each disk that holds mounted file systems.", check=_volumes
    )
    broker: Address | None = option(
        ADDRESS, default=None, help="The MQTT broker's host and port; absent: no orders.", check=_host_port
    )
    metrics: Address | None = option(ADDRESS, default=None, help="Where Prometheus may ask the agent.")
    cuts: str = option(
        TEXT, default="auto", help="Which cuts: `auto`, or of `quiet`, `frozen`, `application`.", check=_cuts
    )
    bandwidth: str = option(TEXT, default="unlimited", help="A limit, as the agent's option of that name.")
    tracker: str = option(
        choice("auto", "ebpf", "nbd", "scan"), default="auto", help="`auto`: as the doctor finds on that server."
    )
    spare: bool = option(
        FLAG,
        default=False,
        help="It stands ready to become the home of a source whose own is gone; needs `broker`, and volumes by name.",
    )
    replace: bool = option(
        FLAG, default=False, help="The server was set up anew: its certificates of before are revoked when it joins."
    )

    @property
    def role(self) -> Role:
        """What it becomes."""
        return Role.AGENT

    def doubts(self) -> Iterator[str]:
        """What can't work together."""
        if self.spare and not (self.broker and self.volumes):
            yield "a spare server needs a broker, which brings the order, and its volumes by name"
        for target in self.target:
            yield from self._doubts_of(target.host)

    def _doubts_of(self, host: str) -> Iterator[str]:
        try:
            parse_address(host)
        except ValueError:
            if host != "localhost" and not self.data_networks:
                yield "data_networks is missing: block data goes nowhere but to loopback without it"
            return
        try:
            DataNetworks.parse(self.data_networks).label(host)
        except DrengineError as error:
            yield f"the target's address {error.message}"

    def words(self, name: str, site: str) -> list[str]:
        """What `drengine-agent` is told on it."""
        words = ["install", "--yes", "--source", name, "--target", ",".join(map(str, self.target))]
        words += [word for each in self.data_networks for word in ("--data-network", each)]
        words += [word for disk, path in self.volumes.items() for word in ("--volume", f"{disk}={path}")]
        words += [] if self.volumes else ["--all-disks"]
        others = {"--broker": self.broker, "--metrics": self.metrics, "--cuts": self.cuts, "--tracker": self.tracker}
        words += [word for flag, value in others.items() if value is not None for word in (flag, str(value))]
        words += ["--spare"] if self.spare else []
        words += ["--bandwidth", self.bandwidth] if self.bandwidth != "unlimited" else []
        return [*words, "--site", site] if site != "main" else words


@dataclass(frozen=True)
class RecoveryHost:
    """A recovery host in an inventory."""

    broker: Address = option(
        ADDRESS, help="The MQTT broker's host and port.", example=Address("outpost.example", 8883), check=_host_port
    )
    data_networks: tuple[str, ...] = option(
        NETWORKS, default=(), help="Networks in which disks may be attached, beside loopback."
    )
    mount_roots: tuple[str, ...] = option(
        WORDS, default=(), help="Directories in and below which disks may be mounted; none: the host's default."
    )
    replace: bool = option(
        FLAG, default=False, help="The host was set up anew: its certificates of before are revoked when it joins."
    )

    @property
    def role(self) -> Role:
        """What it becomes."""
        return Role.HOST

    def doubts(self) -> Iterator[str]:
        """What can't work together."""
        yield from (f"{each} is no absolute path" for each in self.mount_roots if not PurePosixPath(each).is_absolute())

    def words(self, name: str, site: str) -> list[str]:
        """What `drengine-agent` is told on it."""
        words = ["standby", "install", "--yes", "--name", name, "--broker", str(self.broker)]
        words += [word for each in self.data_networks for word in ("--data-network", each)]
        words += [word for each in self.mount_roots for word in ("--mount-root", each)]
        return [*words, "--site", site] if site != "main" else words


Joining = Server | RecoveryHost


def check_server_name(name: str) -> None:
    """A server has the name of its source, and a recovery host its own.

    Raises:
        DrengineError: BAD_NAME.
    """
    check_party_name(name)
