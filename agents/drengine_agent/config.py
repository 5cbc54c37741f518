"""The agent's options: defined once; parser, example file and reference page come from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drengine.config import (
    ADDRESS,
    ADDRESSES,
    COUNT,
    DURATION,
    FLAG,
    NETWORKS,
    PATH,
    SIZE,
    TABLE,
    TEXT,
    WORDS,
    Address,
    choice,
    joined,
    option,
    section,
    tables,
)
from drengine.config import load as load_options
from drengine.config import parse as parse_options
from drengine.config.bandwidth import BandwidthSchedule
from drengine.config.options import BAD_CONFIG
from drengine.control.allowed import COMMANDS_HELP, check_commands
from drengine.control.config import AGENT_VERBS, BrokerOptions, check_verbs
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.transport.files import TlsFiles
from drengine_agent.cuts.config import CutOptions
from drengine_agent.trackers import TRACKERS

WORKERS_MAX = 64
SITE_SETTINGS = ("cuts", "bandwidth", "point_interval")
"""What a site may decide for an agent (`drengine fleet policy`)."""
LEASE_SECONDS_MIN = 5.0


def _name(what: str) -> Callable[[str], str]:
    return lambda text: check_name(text, what=what)


def _workers(count: int) -> None:
    if not 1 <= count <= WORKERS_MAX:
        raise ValueError(f"1 to {WORKERS_MAX} are possible")


def _lease(seconds: float) -> None:
    if seconds and seconds < LEASE_SECONDS_MIN:
        raise ValueError(f"at least {LEASE_SECONDS_MIN:g} s are needed, or 0s for none: networks hiccup")


def _site_settings(names: tuple[str, ...]) -> None:
    if strange := set(names) - set(SITE_SETTINGS):
        raise ValueError(f"{min(strange)[:40]!r} is none that a site decides; there are {', '.join(SITE_SETTINGS)}")


@dataclass(frozen=True)
class TlsOptions:
    """[tls]"""

    certificate: Path | None = option(PATH, default=None, help="PEM file with this host's certificate and its chain.")
    key: Path | None = option(PATH, default=None, help="PEM file with its key.")
    ca: Path | None = option(PATH, default=None, help="PEM file with the CA that signs targets.")
    crl: Path | None = option(
        PATH,
        default=None,
        help="PEM file with the newest CRL of each CA in `ca`; absent: nobody is revoked. It is read again when it "
        "changes.",
    )

    def files(self, where: str = "[tls]") -> TlsFiles | None:
        """The three files; None when TLS is not configured.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        return TlsFiles.together(self.certificate, self.key, self.ca, self.crl, where=where)


@dataclass(frozen=True)
class NbdOptions:
    """[nbd]"""

    listen: Address = option(
        ADDRESS,
        default=Address(path="/run/drengine-agent/nbd.sock"),
        help="Where the volumes are served; each by its name. A unix socket, or loopback for clients that need TCP.",
    )
    await_target: float = option(
        DURATION,
        default=5.0,
        help="After a start, clients wait until the target has confirmed that this source is in charge, but no longer "
        "than this: then they are served without its word, so that a cut network does not stop production. So a "
        "source that was failed over and comes back is fenced before anyone believes it (docs/failback.md).",
    )
    protocol: str = option(
        choice("async", "sync"),
        default="async",
        help="When a write is completed: `async`, once it is in the journal and on the volume; `sync`, once it is "
        "durable at the target as well.",
    )
    sync_fallback: float = option(
        DURATION,
        default=10.0,
        help="With `sync`: a write that has waited so long is let through, and the others no longer wait until the "
        "target has caught up.",
    )
    journal: int = option(
        SIZE,
        default=1 << 30,
        help="Capacity of the journal that keeps writes in order until they are durable at the target. When it is "
        "full, order is given up for a list of dirty blocks; no write waits and none is lost.",
    )


@dataclass(frozen=True)
class ScanOptions:
    """[scan]"""

    interval: float = option(DURATION, default=3600.0, help="From the start of a scan to the start of the next.")
    assume_quiescent: bool = option(
        FLAG,
        default=False,
        help="Somebody vouches that nobody writes during a scan (a snapshot, a powered-off guest's disk). Otherwise "
        "only the kernel's word counts: a read lease, which regular files that nobody has open for writing can get.",
    )


@dataclass(frozen=True)
class VolumeOptions:
    """[[volume]]"""

    name: str = option(TEXT, help="What people call it; also its name over NBD.", example="data", check=_name("volume"))
    path: Path = option(PATH, help="The file or block device.", example="/dev/vg0/data")
    anonymous: bool = option(
        FLAG,
        default=False,
        help="It is accepted that nothing tells this disk from another one: it has no serial number, partition table "
        "or file system. No warning then.",
    )


@dataclass(frozen=True)
class EbpfOptions:
    """[ebpf]"""

    read_limit: str = option(
        TEXT,
        default="unlimited",
        help="How fast the agent reads the disks, also by time of day, as `bandwidth`; a freeze does not wait for it.",
        check=BandwidthSchedule.parse,
    )


@dataclass(frozen=True)
class ControlOptions(BrokerOptions):
    """[control]"""

    report_interval: float = option(
        DURATION, default=5.0, help="A report of the agent's state is sent when it changes, and at least so often."
    )
    lease: float = option(
        DURATION,
        default=0.0,
        help="Self-fencing: when the broker has heard nothing of the agent for so long, it stops serving its volumes "
        "until it is released. `0s`: never, so that a cut network does not stop production (docs/control.md).",
        check=_lease,
    )
    verbs: tuple[str, ...] = option(
        WORDS,
        default=AGENT_VERBS,
        help="What orders over the broker may have done here; others are refused as `order-not-allowed`.",
        check=check_verbs(AGENT_VERBS),
    )
    local_settings: tuple[str, ...] = option(
        WORDS,
        default=(),
        help="Settings that this file decides, whatever the site's policy says: of `cuts`, `bandwidth`, "
        "`point_interval` (docs/operations.md#policy).",
        check=_site_settings,
    )
    forced_reverse: str = option(
        choice("approved", "any"),
        default="approved",
        help="A reversal that gives up what the disks hold: where orders are signed, only when the order names who "
        "approved it; or `any`.",
    )


@dataclass(frozen=True)
class AllowOptions:
    """[allow]"""

    commands: tuple[str, ...] = option(
        WORDS,
        default=(),
        example=["systemctl stop shop", "systemctl start shop"],
        help="Commands that runs may have the agent run here, as its own user: the `services` of runbooks, "
        f"{COMMANDS_HELP}. By default none.",
        check=check_commands,
    )


@dataclass(frozen=True)
class AgentConfig:
    """Everything an agent is told."""

    source: str = option(TEXT, help="This source server's name at the target.", example="shop", check=_name("source"))
    name: str = option(
        TEXT,
        default="",
        help="This host's name among the parties, as its certificate says it, where that is not the source's: of a "
        "host to which a source has moved (docs/failback.md#home-to-new-hardware).",
        check=lambda text: not text or check_name(text, what="host"),
    )
    spare: bool = option(
        FLAG,
        default=False,
        help="This host stands ready to become the home of a source whose own is gone: it replicates nothing, and a "
        "run of `drengine failback --onto` may overwrite its volumes.",
    )
    target: tuple[Address, ...] = option(
        ADDRESSES,
        help="The target's host and port; of several targets of one store, a list: the agent finds the one that has "
        "its source, and goes to another when that is gone (docs/operations.md#several-targets).",
        example=(Address("outpost.example", 7440),),
    )
    state_directory: Path = option(
        PATH,
        default=Path("/var/lib/drengine-agent"),
        help="Journal, hash indexes, control socket. It must not lie on a protected volume.",
    )
    data_networks: tuple[str, ...] = option(
        NETWORKS, default=(), help="Networks that block data may use, checked on the resolved address; and loopback."
    )
    allow_plain: bool = option(
        FLAG, default=False, help="Allow sessions without TLS beyond loopback; the log repeats it."
    )
    target_user: str = option(
        TEXT,
        default="drengine",
        help="Without TLS on loopback: the user whose process the target may be, besides root and the agent's own; any "
        "other user's is refused. `allow_plain` lets anybody be it.",
    )
    tracker: str = option(
        TEXT,
        default="nbd",
        help="How changes are seen: `nbd` serves the volumes and records each write in order; `ebpf` tracks the disks "
        "of a running host inside the kernel; `scan` compares hashes. Installed packages may bring others "
        "(docs/capture.md).",
        check=TRACKERS.place_of,
    )
    tracker_options: Mapping[str, Any] = option(
        TABLE, default={}, help="Options of a tracker that an installed package brings; the tracker says which."
    )
    point_interval: float = option(
        DURATION,
        default=0.05,
        help="Least time between two recovery points under load; while the source is quiet, a write gets its own at "
        "once, but none sooner than a fifth of this after the last. It is most of the loss that a disaster costs; each "
        "point costs the target one row until retention thins them.",
    )
    compression: str = option(
        choice("adaptive", "adaptive-raw", "none", "-5", "-1", "1", "3"),
        default="adaptive",
        help="zstd level, or `adaptive`: from -5 to 3 by whether CPU or network is the bottleneck. `adaptive-raw` may "
        "also send raw, which the target then stores raw. Data that does not shrink is always sent as it is.",
    )
    bandwidth: str = option(
        TEXT,
        default="unlimited",
        help="A limit, also by time of day: `20MiB/s`, `08:00-18:00=20MiB/s, otherwise unlimited`. SIGHUP rereads it.",
        check=BandwidthSchedule.parse,
    )
    workers: int = option(COUNT, default=2, help="Threads that read, hash and compress.", check=_workers)
    drain: float = option(DURATION, default=20.0, help="How long SIGTERM waits for what is captured to become durable.")
    metrics: Address | None = option(ADDRESS, default=None, help="Where Prometheus may ask; nowhere by default.")
    log_level: str = option(
        choice("debug", "info", "warning", "error"), default="info", help="Least level that is logged."
    )
    log_form: str = option(
        choice("auto", "json", "text"), default="auto", help="`auto`: text at a terminal, else JSON."
    )
    tls: TlsOptions = section(TlsOptions, help="TLS 1.3 to the target; needed beyond loopback.")
    nbd: NbdOptions = section(NbdOptions, help="The tap: tracker `nbd`.")
    ebpf: EbpfOptions = section(EbpfOptions, help="Tracker `ebpf`.")
    cuts: CutOptions = section(CutOptions, help="Recovery points of tracker `ebpf`: which, how often, how.")
    scan: ScanOptions = section(ScanOptions, help="Tracker `scan`.")
    allow: AllowOptions = section(AllowOptions, help="What orders may do on this host beyond replication.")
    control: ControlOptions = section(ControlOptions, help="Control messages over MQTT; none without an address.")
    volume: tuple[VolumeOptions, ...] = tables(VolumeOptions, help="A volume to protect; one table for each.")

    @property
    def party(self) -> str:
        """Our name at the broker and in our certificate."""
        return self.name or self.source

    @property
    def is_spare_now(self) -> bool:
        """Whether this is a spare host that has become nobody's home yet."""
        return self.spare and self.party == self.source

    @property
    def control_socket(self) -> Path:
        """Where `drengine-agent status` and the others ask."""
        return self.state_directory / "control.sock"

    @property
    def schedule(self) -> BandwidthSchedule:
        """The bandwidth option, read."""
        return BandwidthSchedule.parse(self.bandwidth)


def with_settings(config: AgentConfig, settings: Mapping[str, str]) -> AgentConfig:
    """The configuration with other values of SITE_SETTINGS, as TOML would hold them.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    where = "the site's policy"
    kinds = {"kinds": settings["cuts"]} if "cuts" in settings else {}
    plain = {name: settings[name] for name in ("bandwidth", "point_interval") if name in settings}
    needed = {"source": config.source, "target": joined(config.target), "volume": [{"name": "x", "path": "/"}]}
    read = parse_options(AgentConfig, {**needed, **plain, "cuts": kinds}, where=where)
    cuts = replace(config.cuts, kinds=read.cuts.kinds) if kinds else config.cuts
    return replace(config, cuts=cuts, **{name: getattr(read, name) for name in plain})


def load_config(path: Path) -> AgentConfig:
    """Read a configuration file.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    return _checked(load_options(AgentConfig, path), str(path))


def parse_config(values: dict[str, object], *, where: str = "command line") -> AgentConfig:
    """A configuration from plain values, as TOML would hold them.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    return _checked(parse_options(AgentConfig, values, where=where), where)


def _checked(config: AgentConfig, where: str) -> AgentConfig:
    names = [volume.name for volume in config.volume]
    if not names:
        raise DrengineError(BAD_CONFIG, f"{where}: no volume is named; add a [[volume]] table")
    if len(set(names)) < len(names):
        raise DrengineError(BAD_CONFIG, f"{where}: two volumes have the same name")
    if not config.target or not all(each.host for each in config.target):
        raise DrengineError(BAD_CONFIG, f"{where}: option target: a host and port are needed")
    config.control.check(f"{where}: [control]")
    if config.control.lease and config.control.more_addresses:
        told = f"{where}: option control.lease needs one broker, and control.more_addresses names others"
        raise DrengineError(BAD_CONFIG, told, hint="The silence of a broker that an agent has left is no evidence.")
    if config.control.lease and config.control.address is None:
        raise DrengineError(BAD_CONFIG, f"{where}: option control.lease needs a broker, at control.address")
    if config.spare and config.control.address is None:
        raise DrengineError(BAD_CONFIG, f"{where}: option spare needs a broker, at control.address: runs order it")
    config.tls.files(f"{where}: [tls]")
    return config
