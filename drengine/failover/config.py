"""The orchestrator's options: one definition each, from which come the parser, the help and the reference page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from drengine.audit.config import AuditOptions
from drengine.config import (
    ADDRESS,
    ADDRESSES,
    BAD_CONFIG,
    DURATION,
    NETWORKS,
    PATH,
    TEXT,
    Address,
    choice,
    load,
    option,
    parse,
    section,
)
from drengine.control.config import OrchestratorBrokerOptions
from drengine.crypt.options import EncryptionOptions
from drengine.model.errors import DrengineError
from drengine.model.grants import SECRET_MARK
from drengine.monitoring.options import MonitoringOptions
from drengine.notifications.options import NotificationOptions
from drengine.people.oidc import OidcOptions
from drengine.store.blobs.s3.options import S3Options
from drengine.transport.files import TlsFiles
from drengine.transport.networks import is_loopback
from drengine.transport.reach import first_reached

ExportUri = Callable[[str, str, int, str], str]
"""NBD URI of (source, volume, branch number, secret of a capability or nothing)."""
LEASE_SECONDS_MIN = 2.0
READY_EVERY_SECONDS_MAX = 1800.0
"""Half of what the alert DrengineReadinessUnknown waits for, or it would never end."""


def _lease(seconds: float) -> None:
    if not LEASE_SECONDS_MIN <= seconds <= 600:
        raise ValueError(f"{LEASE_SECONDS_MIN:g}s to 10m are possible")


def _ready_every(seconds: float) -> None:
    if not 1 <= seconds <= READY_EVERY_SECONDS_MAX:
        raise ValueError("1s to 30m are possible: DrengineReadinessUnknown rings after an hour")


def _registry(url: str) -> None:
    if url and not url.startswith(("sqlite:///", "postgresql://")):
        raise ValueError("write sqlite:///PATH or postgresql://USER@HOST/DATABASE")


def _no_socket(address: Address) -> None:
    if address.path:
        raise ValueError("a host and a port are wanted")


def _ttl(seconds: float) -> None:
    if not 60 <= seconds <= 30 * 86400:
        raise ValueError("1m to 30d are possible")


@dataclass(frozen=True)
class RestTlsOptions:
    """The certificate that REST shows; without one REST is served on loopback only."""

    certificate: Path | None = option(PATH, default=None, help="PEM file with the certificate and its chain.")
    key: Path | None = option(PATH, default=None, help="PEM file with its key.")

    def files(self, where: str) -> TlsFiles | None:
        """The files; None for none. Clients show no certificates: people have tokens.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        return TlsFiles.together(self.certificate, self.key, self.certificate, where=where)


@dataclass(frozen=True)
class FleetOptions:
    """[fleet]"""

    ca: Path | None = option(
        PATH,
        default=None,
        help="Directory of the site's CA, where it is on this host: who has a certificate or a token is expected.",
    )
    inventory: Path | None = option(
        PATH, default=None, help="The inventory from which servers join; who is in it is expected."
    )


@dataclass(frozen=True)
class OrchestratorConfig:
    """Everything an orchestrator is told."""

    store: Path = option(PATH, help="Directory of the replica store, on this host.", example="/var/lib/drengine/store")
    state: Path = option(
        PATH,
        default=Path("/var/lib/drengine/orchestrator"),
        help="Directory for what the orchestrator keeps: registry, instances' files, reports.",
    )
    registry: str = option(
        TEXT,
        default="",
        help="Where runs, journals and leases are kept: sqlite:///PATH or postgresql://...; empty: in `state`.",
        check=_registry,
    )
    export: tuple[Address, ...] = option(
        ADDRESSES,
        default=(),
        help="Where the target serves branches over NBD, as workloads reach it: its nbd_socket or nbd_listen. Of "
        "several targets of one store, a list, best first: disks come from the first that answers.",
    )
    data_networks: tuple[str, ...] = option(
        NETWORKS,
        default=(),
        help="Networks on which this host may serve disks itself (launch driver `iscsi`), checked on the portal and on "
        "each initiator's address; and loopback.",
    )
    lease: float = option(
        DURATION,
        default=15.0,
        help="How long an orchestrator may be silent before another may go on with its run.",
        check=_lease,
    )
    ready_every: float = option(
        DURATION,
        default=300.0,
        help="How often `drengine orchestrator run` looks whether the runbooks that are kept are ready "
        "(docs/operations.md); each look also runs the dry forms of their fences.",
        check=_ready_every,
    )
    rest: Address = option(
        ADDRESS,
        default=Address("127.0.0.1", 7443),
        help="REST API of `drengine orchestrator run`. Beyond loopback it needs `[rest_tls]`.",
        check=_no_socket,
    )
    socket: Path | None = option(
        PATH,
        default=None,
        help="Unix socket of `drengine orchestrator run` for commands on this host; absent: orchestrator.sock in "
        "`state`. Where other users than the service's reach it, they may do what their account may.",
    )
    login_ttl: float = option(DURATION, default=12 * 3600.0, help="How long a login counts.", check=_ttl)
    metrics: Address | None = option(
        ADDRESS, default=None, help="Address of the Prometheus endpoint of `drengine orchestrator run`; absent: none."
    )
    log_level: str = option(choice("debug", "info", "warning", "error"), default="info", help="What is logged.")
    log_form: str = option(choice("auto", "json", "text"), default="auto", help="How it is logged.")
    fleet: FleetOptions = section(FleetOptions, help="What `drengine fleet` asks beside store and broker.")
    audit: AuditOptions = section(AuditOptions, help="The audit log, in the folder `audit` of `state`.")
    encryption: EncryptionOptions = section(
        EncryptionOptions, help="The key of the store, where it is encrypted: as in the target's file."
    )
    s3: S3Options = section(
        S3Options, help="How the objects of a store in an object store are reached: as in the target's file."
    )
    oidc: OidcOptions = section(OidcOptions, help="An OpenID Connect provider whose people may sign in.")
    monitoring: MonitoringOptions = section(
        MonitoringOptions, help="What Prometheus is told to ask (`drengine monitoring init`)."
    )
    notifications: NotificationOptions = section(NotificationOptions, help="Whom to tell what happens, over Apprise.")
    rest_tls: RestTlsOptions = section(RestTlsOptions, help="TLS of REST.")
    broker: OrchestratorBrokerOptions = section(
        OrchestratorBrokerOptions, help="The MQTT broker, which carries commands to agents."
    )

    @property
    def registry_url(self) -> str:
        """Where the registry is."""
        return self.registry or f"sqlite:///{self.state.absolute()}/registry.sqlite"

    @property
    def socket_path(self) -> Path:
        """Where the daemon hears commands."""
        return self.socket or self.state / "orchestrator.sock"

    @property
    def reports(self) -> Path:
        """Directory of the reports."""
        return self.state / "reports"

    @property
    def instances(self) -> Path:
        """Directory of the launched workloads' files."""
        return self.state / "instances"

    def exporting(self) -> ExportUri:
        """NBD URIs of branches' volumes, all at one target: of several the first that answers now. Blocks.

        Raises:
            DrengineError: BAD_CONFIG when it is not configured.
        """
        if not self.export:
            raise DrengineError(
                BAD_CONFIG,
                "option export is missing: workloads would not find their disks",
                hint="Name the target's NBD address: --export unix:/run/drengine/nbd.sock, or `export` in the file.",
            )
        place = self.export[0]  # whoever uses it is told why it does not answer
        if len(self.export) > 1:
            with suppress(OSError):
                place = first_reached(self.export)
        return partial(_export_uri, place)


def _export_uri(place: Address, source: str, volume: str, branch: int, secret: str) -> str:
    shown = f"{SECRET_MARK}{secret}" if secret else ""
    name = quote(f"{source}/{volume}#{branch}{shown}", safe="/")
    if place.path:
        return f"nbd+unix:///{name}?socket={quote(place.path)}"
    return f"nbd://{place}/{name}"


def load_orchestrator_config(path: Path | None, overrides: Mapping[str, Any]) -> OrchestratorConfig:
    """From a file, or from command-line options alone.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    config = load(OrchestratorConfig, path, overrides=given) if path else parse(OrchestratorConfig, given)
    config.encryption.check(f"{path or 'command line'}")
    config.broker.check(f"{path or 'command line'}: [broker]")
    config.oidc.check(f"{path or 'command line'}: [oidc]")
    files = config.rest_tls.files(f"{path or 'command line'}: [rest_tls]")
    if files is None and not is_loopback(config.rest.host):
        raise DrengineError(BAD_CONFIG, f"{path or 'command line'}: rest beyond loopback needs [rest_tls]")
    return config
