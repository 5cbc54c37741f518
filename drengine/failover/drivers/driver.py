"""The interface of a launch driver.

Every call is idempotent under the instance's name: an executor that was killed calls again (rule 9). A driver keeps
nothing of its own that `inspect` could not find again from the name: pid files, unit names, tags carry it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from drengine.control.attach import HostAnswer
from drengine.control.messages import Answer, Verb
from drengine.failover.needs import Need
from drengine.model.hardware import Card, Machine, Server
from drengine.model.inventory import Inventory
from drengine.model.sectors import SECTOR_BYTES

HostOrder = Callable[[Verb, Mapping[str, Any], float, Callable[[str], None]], Answer]


@dataclass(frozen=True, slots=True)
class Disk:
    """One promoted volume as a workload may use it.

    Attributes:
        volume: its name.
        size_bytes: its size.
        uri: NBD URI, writable, of the branch.
        sector_bytes: logical sector size of the disk that its content was made on.
    """

    volume: str
    size_bytes: int
    uri: str
    sector_bytes: int = SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What is to be started.

    Attributes:
        instance: unique name of this launch: the same after a restart of the orchestrator.
        run, source: what it belongs to.
        isolated: a drill: it must not reach production's networks.
        settings: the runbook's settings for this driver, drill's over them.
        directory: the driver's own place for this instance's files, made and empty at first.
        host: name of the recovery host, for drivers that need one.
        hydrate: copy the disks to local storage in the background while they are served.
        order: tells the recovery host `host` something and waits for its answer: (verb, arguments, seconds, progress);
            raises DrengineError when the broker or the host is silent. None without a broker.
        timeout_seconds: how long `launch` may wait for health; threads can't be cancelled from outside.
        inventory: the source, as its agent found it last; None: it never told.
        data_networks: what this host may serve disks on beyond loopback, for drivers that do.
        cards: the network cards that the recovered server is to have, by the site's rules; empty: nobody knows them.
        servers: all that the run recovers, by source, as they know each other.
    """

    instance: str
    run: str
    source: str
    disks: tuple[Disk, ...]
    isolated: bool
    settings: Mapping[str, Any]
    directory: Path
    host: str = ""
    hydrate: bool = False
    timeout_seconds: float = 300.0
    order: HostOrder | None = None
    inventory: Inventory | None = None
    data_networks: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    servers: Mapping[str, Server] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instance:
    """A workload, as found.

    Attributes:
        running: it was started and has not ended.
        healthy: its own check (console marker, health command) passed.
        details: for people and reports: pid, addresses, console's last lines (bounded).
    """

    instance: str
    running: bool
    healthy: bool
    details: Mapping[str, Any] = field(default_factory=dict)


class LaunchDriver(Protocol):
    """One way of starting workloads. Calls may block; they are made in threads and may be cancelled by timeout."""

    name: str
    needs_host: bool = False
    """Whether a launch has to name a recovery host."""

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Whether a runbook's settings make sense here, before anything is started.

        Raises:
            DrengineError: LAUNCH_SETTINGS, naming the key.
        """
        ...

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        """Start it and wait until it is healthy; if it runs already, only wait.

        Raises:
            DrengineError: LAUNCH_FAILED with the workload's last words.
        """
        ...

    def inspect(self, request: LaunchRequest) -> Instance:
        """How it is, changing nothing."""
        ...

    def quiesce(self, request: LaunchRequest) -> None:
        """Stop it cleanly, so that its disks are flushed and nobody writes them any more."""
        ...

    def stop(self, request: LaunchRequest) -> None:
        """End it and remove everything that `launch` made; nothing is left behind. No error if there is nothing."""
        ...


@runtime_checkable
class KnowsNeeds(Protocol):
    """A driver that can say what it needs on the orchestrator's host; others are launched unseen."""

    def needs(
        self, settings: Mapping[str, Any], inventory: Inventory | None, *, isolated: bool = False
    ) -> Iterable[Need]:
        """What launching with these settings needs here.

        Args:
            inventory: the source's, None if it never told.
            isolated: in a drill.
        """
        ...


@runtime_checkable
class AsksHost(Protocol):
    """A driver whose workloads run on a recovery host, which can be asked whether it could carry out a launch."""

    def ask_host(self, request: LaunchRequest) -> HostAnswer:
        """What the host looked at; nothing is done there.

        Raises:
            DrengineError: it did not answer, or can't be asked; LAUNCH_SETTINGS.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudFinding:
    """One thing that a cloud was asked about a launch.

    Attributes:
        check: a check's name, see `drengine.failover.preflight`.
        seen: what was found.
        fault: why it would not do; empty: it would.
        hint: a better one than the check's.
        warns: it does not keep a run from beginning.
    """

    check: str
    seen: str = ""
    fault: str = ""
    hint: str = ""
    warns: bool = False


@runtime_checkable
class AsksCloud(Protocol):
    """A driver whose workloads run in a cloud, whose API can be asked whether it would carry a launch out."""

    def ask_cloud(self, request: LaunchRequest) -> list[CloudFinding]:
        """What was found; nothing is made there.

        Raises:
            DrengineError: LAUNCH_SETTINGS.
        """
        ...


@runtime_checkable
class SeesAddresses(Protocol):
    """A driver that can look from within which addresses a recovered server has."""

    def addresses(self, request: LaunchRequest) -> Collection[str] | None:
        """All of them with prefix lengths, as they are now; None: it can't be looked at, or brings no addresses.

        Raises:
            DrengineError: whoever knows did not answer.
        """
        ...


@runtime_checkable
class KnowsMachine(Protocol):
    """A driver that boots the source's disks on a machine of its own making, which may differ from the source's."""

    def machine(self, settings: Mapping[str, Any], inventory: Inventory | None) -> Machine:
        """What the guest will find there."""
        ...
