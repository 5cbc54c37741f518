"""A runbook as frozen values. The published JSON Schema comes from these classes and from the kinds of steps."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec

Duration = Annotated[
    str,
    msgspec.Meta(
        extra={"what": "a duration", "example": "10m"},
        extra_json_schema={
            "pattern": r"^\d{1,9}(\.\d{1,9})?\s*(ms|s|m|h|d|w)$",
            "examples": ["500ms", "5s", "10m", "1h"],
        },
    ),
]
"""Texts of a kind of their own are marked, so that what is said of a value of another type leads to a right one."""
WebAddress = Annotated[str, msgspec.Meta(extra={"what": "a web address", "example": "http://10.0.0.5:8080/health"})]
Schedule = Annotated[str, msgspec.Meta(extra={"what": "a schedule", "example": '"30 3 * * sun"'})]
Driver = Annotated[str, msgspec.Meta(extra={"what": "the name of a driver", "example": "qemu"})]
Network = Annotated[str, msgspec.Meta(extra={"what": "a network", "example": "10.1.0.0/16"})]
IpAddress = Annotated[str, msgspec.Meta(extra={"what": "an IP address", "example": '"10.9.0.1"'})]
CardAddress = Annotated[str, msgspec.Meta(extra={"what": "an address with its prefix", "example": "10.9.0.5/24"})]
Mac = Annotated[str, msgspec.Meta(extra={"what": "new, keep or a MAC", "example": '"02:00:00:00:00:05"'})]

RETRIES_MAX = 1000


class OnFailure(enum.StrEnum):
    """What a failed step means for the run."""

    STOP = "stop"
    """Stop here and leave everything as it is, for a person to decide."""
    CONTINUE = "continue"
    """Note it and go on."""
    ROLLBACK = "rollback"
    """Undo what this run did, in reverse order."""


class Mode(enum.StrEnum):
    """What a run is for."""

    DRILL = "drill"
    FAILOVER = "failover"
    MIGRATION = "migration"
    """A planned failover: quiesce the source first, lose nothing."""
    REPROTECT = "reprotect"
    """Reverse replication without the switch: the source's disks follow the recovered side."""
    FAILBACK = "failback"

    @property
    def is_way_home(self) -> bool:
        """It starts from a recovered side that serves, and leads back to the source."""
        return self in (Mode.REPROTECT, Mode.FAILBACK)


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One step before or after a wave: exactly one of the actions is given."""

    name: str = ""
    """Shown to people instead of what it does."""
    actions: dict[str, Any] = {}
    """What is done, by kind of step, as settings of that kind. In the text each kind is a key of the step itself."""
    inside: str = ""
    """Source on whose recovery host a `command`, `http` or `tcp` is done, inside the network of its workload."""
    modes: tuple[Mode, ...] = (Mode.DRILL, Mode.FAILOVER, Mode.MIGRATION)
    """In which modes it is run; steps of the way home name `failback`."""
    timeout: Duration = "30s"
    """How long it may take; checks are repeated until then."""
    retries: int = 0
    """How often it is tried again after it failed."""
    every: Duration = "1s"
    """Between tries of checks and retries."""
    critical: bool = True
    """false: a failure is noted and the run goes on."""
    on_failure: OnFailure = OnFailure.STOP
    """What a failure of a critical step means for the run."""


class HostFence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What keeps one host from serving."""

    command: list[str]
    """Program and arguments; no shell."""
    dry: list[str] = []
    """The same without effect, such as asking for its state: exit 0 means that the fence would answer."""


class Fence(HostFence, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a source that does not answer is kept from serving: power, hypervisor or switch. Exit 0 means: it is off.

    `command` and `dry` are for the host that has the source's name.
    """

    command: list[str] = []
    """Program and arguments; no shell."""
    homes: dict[str, HostFence] = {}
    """The same for other hosts on which the source may live after `--onto`, by the names of their agents. A command for
    another host than where the source lives is never run."""
    timeout: Duration = "30s"
    """How long one try may take."""
    retries: int = 1
    """How often it is tried again."""

    def by_host(self, source: str) -> dict[str, HostFence]:
        """All of them, by the host that each keeps from serving."""
        own = {source: HostFence(command=self.command, dry=self.dry)} if self.command else {}
        return {**own, **self.homes}


class InterfaceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one network interface of a source becomes; what is not said follows from the rules of `addresses`."""

    addresses: list[CardAddress] = []
    """Fixed ones with prefix lengths: `10.9.0.5/24`; empty: the source's own, moved by the rules."""
    dhcp: bool = False
    """It asks for its addresses."""
    gateway: IpAddress = ""
    """Of the default route; empty: the source's own, moved by the rules."""
    name_servers: list[IpAddress] = []
    """Of its resolver; empty: the source's own, moved by the rules."""
    search: list[str] = []
    """Domains of its resolver; empty: the source's own."""
    mac: Mac = "new"
    """`new`: one of the launch, the same whenever it is repeated; `keep`: the source's own (licences); or one that is
    given."""


class LaunchInterface(InterfaceSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same, with what counts in a drill instead."""

    drill: InterfaceSettings | None = None
    """What it becomes in a drill; absent: the same."""


class Convert(enum.StrEnum):
    """Whether a source's disks are made fit for the launch driver's machine before they are launched."""

    AUTO = "auto"
    """Where the source's inventory tells that something differs, or there is none and its disks boot."""
    ALWAYS = "always"
    """Whatever is known of the source."""
    NEVER = "never"
    """They are launched as they are."""


class Conversion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How its disks are converted."""

    timeout: Duration = "30m"
    """How long it may take; it takes a minute or two on KVM, and about ten times that without."""
    memory_mib: int = 1024
    """Of the helper machine in which it is done."""
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    """What runs it; `auto`: kvm where it really runs guests."""
    kernel: str = ""
    """Image of its kernel, whose modules are in /lib/modules; default: the newest of the orchestrator's host."""
    first_boot: str = ""
    """A shell script that the recovered server runs once, at its first start."""


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a source's workload is started from the promoted disks.

    `settings` belong to the driver, which checks them; `drill` holds those that differ in a drill (isolation).
    """

    driver: Driver
    """`command`, `qemu`, `standby`, or one that an installed package brings."""
    host: str = ""
    """Recovery host, for drivers that need one."""
    settings: dict[str, Any] = {}
    """The driver's own."""
    drill: dict[str, Any] = {}
    """Settings that differ in a drill."""
    timeout: Duration = "5m"
    """Until it has to be healthy."""
    retries: int = 0
    """How often it is tried again."""
    hydrate: bool = False
    """Make its disks local in the background while it runs."""
    interfaces: dict[str, LaunchInterface] = {}
    """Those of the source's network interfaces, by name, that become something of their own: a fixed address, a MAC."""
    convert: Convert = Convert.AUTO
    """Whether its disks are made fit for the driver's machine (drivers, names, boot loader, network) before."""
    conversion: Conversion = Conversion()
    """How."""

    def settings_in(self, mode: Mode) -> dict[str, Any]:
        """The driver's settings in a mode: those of a drill lie over the others."""
        return {**self.settings, **(self.drill if mode is Mode.DRILL else {})}


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A service of the source itself. Its agent runs the commands there; its file has to allow them."""

    name: str
    """For people."""
    stop: list[str] = []
    """Program and arguments that stop it; what is stopped already is no failure."""
    start: list[str] = []
    """Program and arguments that start it again."""
    timeout: Duration = "2m"
    """How long each of them may take."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One protected server in the runbook.

    For the planned switches, `services` are stopped and started on the source itself, by its agent; `stop` and `start`
    are run on the orchestrator's host (migration and failback).
    """

    launch: Launch
    """How its workload is started."""
    fence: Fence | None = None
    """How it is kept from serving when its agent does not answer."""
    services: list[Service] = []
    """What uses its disks, in the order in which it is started; it is stopped in the reverse order."""
    stop: list[str] = []
    """Stops the workload before a planned switch, run by the orchestrator; program and arguments."""
    start: list[str] = []
    """Starts it again after a failback, run by the orchestrator."""
    point: str = "latest"
    """Recovery point: `latest`, a time (the newest at or before it), an id, or its label; --point goes before it."""


class Wave(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Servers that start together; a wave begins when those it comes `after` are through (default: the one before)."""

    name: str
    """Unique in the runbook."""
    sources: list[str] = []
    """Servers that start together."""
    after: list[str] | None = None
    """Waves that have to be through before; default: the one above; []: none."""
    before_steps: list[Step] = msgspec.field(name="before", default_factory=list)
    """Steps before its servers start."""
    after_steps: list[Step] = msgspec.field(name="then", default_factory=list)
    """Steps after its servers have started."""


class Objectives(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is promised: the longest data loss and the longest outage."""

    rpo: Duration = "5s"
    """Longest data loss, a duration."""
    rto: Duration = "5m"
    """Longest time until users work again, a duration."""
    drill: Duration = "32d"
    """Longest time since the last drill that passed, a duration."""


class AddressRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What becomes of the addresses in one network of the sources."""

    source_network: Network = msgspec.field(name="from")
    """A network of the sources: `10.1.0.0/16`."""
    to: Network = ""
    """The network of the same size to which its addresses move; the host part is kept. May be left out with `dhcp`."""
    dhcp: bool = False
    """Servers ask for their addresses there; those that the rule gives are what they are expected to get."""
    gateway: IpAddress = ""
    """Of the default route there; empty: the source's own, moved by the rules."""
    name_servers: list[IpAddress] = []
    """Of resolvers there; empty: the source's own, moved by the rules."""
    search: list[str] = []
    """Domains of resolvers there; empty: the source's own."""


class Addresses(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rules of the site where servers are recovered. An address that no rule covers stays as it is."""

    rules: list[AddressRule] = []
    """One for each network of the sources; they may not overlap."""
    drill: list[AddressRule] | None = None
    """Those that count in a drill instead; absent: the same; []: addresses stay as they are."""


class Runbook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole runbook."""

    version: int
    """Of this format: 1."""
    name: str
    """1 to 63 of a-z, 0-9, '.', '_' and '-'."""
    description: str = ""
    """For people."""
    objectives: Objectives = Objectives()
    """What is promised."""
    sources: dict[str, Source]
    """Protected servers, by the names under which they replicate."""
    waves: list[Wave]
    """In which order they start, and what is done before and after."""
    addresses: Addresses = Addresses()
    """Which addresses recovered servers get."""
    schedule: Schedule = ""
    """Drills by themselves: a cron expression of five fields, in UTC; empty: none."""
    force_by: list[str] = []
    """Who has to approve before a run goes on without fencing, or overwrites what a source wrote on its own: accounts,
    or `role:approver`; empty: nobody is asked."""
