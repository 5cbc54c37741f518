"""The target's options: one definition each, from which come the parser, the help and the reference page."""

from __future__ import annotations

import platform
import pwd
import re
from dataclasses import dataclass
from pathlib import Path

from drengine.audit.config import AuditOptions
from drengine.config import (
    ADDRESS,
    ADDRESSES,
    BAD_CONFIG,
    COUNT,
    DURATION,
    FLAG,
    NETWORKS,
    PATH,
    SIZE,
    TEXT,
    WORDS,
    Address,
    choice,
    load,
    option,
    parse,
    section,
    tables,
)
from drengine.crypt.options import EncryptionOptions
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.store.blobs.s3.options import S3Options
from drengine.store.care.lock_policy import LockPolicy
from drengine.store.care.retention import RetentionPolicy
from drengine.target.quotas import QuotaOptions, SourceQuotaOptions
from drengine.transport.files import TlsFiles
from drengine.wire.fields import ENDPOINTS_MAX
from drengine.wire.frames import BATCH_FRAME_BYTES_MAX

WORKERS_MAX = 64
_ANY_HOST = ("0.0.0.0", "::")
INTERVAL_SECONDS_MIN = 1.0


def _workers(count: int) -> None:
    if not 1 <= count <= WORKERS_MAX:
        raise ValueError(f"1 to {WORKERS_MAX} are possible")


def _interval(seconds: float) -> None:
    if seconds < INTERVAL_SECONDS_MIN:
        raise ValueError(f"at least {INTERVAL_SECONDS_MIN:g} s are needed: the task would never rest")


def _credit(size: int) -> None:
    if size < BATCH_FRAME_BYTES_MAX:
        raise ValueError(f"one frame alone may have {BATCH_FRAME_BYTES_MAX} bytes")


def local_uids(names: tuple[str, ...]) -> frozenset[int]:
    """Users by name.

    Raises:
        ValueError: this machine does not know one.
    """
    try:
        return frozenset(pwd.getpwnam(name).pw_uid for name in names)
    except KeyError as error:
        raise ValueError(f"this machine knows no such user: {error}") from error


def _replication(address: Address) -> None:
    if address.path:
        raise ValueError("agents connect by TCP: a host and port are needed")


def _hosts(addresses: tuple[Address, ...]) -> None:
    for address in addresses:
        _replication(address)
    if len(addresses) > ENDPOINTS_MAX:
        raise ValueError(f"at most {ENDPOINTS_MAX} are possible")


def _target_name(name: str) -> None:
    if name:
        check_name(name, what="target")


@dataclass(frozen=True)
class TlsOptions:
    """[tls]"""

    certificate: Path | None = option(PATH, default=None, help="PEM file with this target's certificate and its chain.")
    key: Path | None = option(PATH, default=None, help="PEM file with its key.")
    ca: Path | None = option(PATH, default=None, help="PEM file with the CA that signs agents and NBD clients.")
    crl: Path | None = option(
        PATH,
        default=None,
        help="PEM file with the newest CRL of each CA in `ca`; absent: nobody is revoked. It is read again when it "
        "changes, and whoever is on it loses the sessions that are open.",
    )
    identities: str = option(
        choice("named", "required"),
        default="named",
        help="Which agents must prove by their certificate whose they are (docs/security.md). `named`: an agent whose "
        "certificate says drengine://SITE/ROLE/NAME is held to it, others may ship any source. `required`: all.",
    )
    identity_map: str = option(
        choice("none", "cn"),
        default="none",
        help="What else names a source, for certificates of other CAs. `cn`: the common name, where a certificate says "
        "no drengine://SITE/ROLE/NAME.",
    )

    @property
    def files(self) -> TlsFiles | None:
        """The three files, or None when TLS is not configured."""
        return TlsFiles.together(self.certificate, self.key, self.ca, self.crl, where="[tls]")


@dataclass(frozen=True)
class MaintenanceOptions:
    """[maintenance]"""

    retention: str = option(
        TEXT,
        default=str(RetentionPolicy()),
        help="How long points are kept. The newest verified point and pinned ones are never removed.",
        check=RetentionPolicy.parse,
    )
    lock: str = option(
        TEXT,
        default="",
        help="Which points nobody can remove before their time, no role and no command (docs/security.md): `7d`: every "
        "point, for so long; `every 1h for 7d`: one an hour. Empty: none from now on; what is locked stays so.",
        check=LockPolicy.parse,
    )
    retention_interval: float = option(
        DURATION, default=60.0, help="From one thinning of points to the next.", check=_interval
    )
    compaction_interval: float = option(
        DURATION,
        default=300.0,
        help="From one giving back of space to the next; it lets replication go first.",
        check=_interval,
    )
    scrub_interval: float = option(
        DURATION,
        default=604800.0,
        help="From one re-reading and re-hashing of everything stored to the next.",
        check=_interval,
    )


@dataclass(frozen=True)
class MirrorSection:
    """[mirror]"""

    destination: Path | None = option(
        PATH,
        default=None,
        help="Directory of the store's second copy, on another disk or mounted from another site; absent: none. "
        "`drengine mirror STORE DESTINATION` makes it, once: what is not there may be not mounted.",
    )
    place: str = option(
        TEXT,
        default="",
        help="Where the copy's segments lie, if not in the directory: another bucket, as `s3://...` (docs/format.md). "
        "It is reached as [s3] says.",
    )
    interval: float = option(DURATION, default=1.0, help="From a pass to the next. The copy lags by it.")
    limit: int = option(SIZE, default=0, help="What is copied a second at most, in bytes; 0: no limit.")
    hashes: bool = option(FLAG, default=False, help="Compare every hash of what is copied, beside the checksums.")


@dataclass(frozen=True)
class TargetConfig:
    """All options of a target."""

    store: Path = option(
        PATH,
        help="Directory of the replica store, which `drengine target init` made.",
        example="/var/lib/drengine/store",
    )
    store_id: str = option(
        TEXT,
        default="",
        help="Id of the store that is expected there (`drengine target init` and `drengine status` show it); any other "
        "one is refused. Empty: whichever is there.",
    )
    listen: Address = option(
        ADDRESS, default=Address("127.0.0.1", 7440), help="Where agents connect.", check=_replication
    )
    name: str = option(
        TEXT,
        default="",
        help="This target's name among those that share a store (docs/operations.md#several-targets); empty: the "
        "host's.",
        check=_target_name,
    )
    addresses: tuple[Address, ...] = option(
        ADDRESSES,
        default=(),
        help="Where agents reach this target, best first, which other targets of a shared store tell them; absent: "
        "`listen`, where that is one host's address.",
        check=_hosts,
    )
    nbd_socket: Path | None = option(
        PATH, default=None, help="Unix socket on which points and branches are served over NBD; absent: none."
    )
    local_users: tuple[str, ...] = option(
        WORDS,
        default=(),
        check=local_uids,
        help="Users of this machine that may use nbd_socket, and nbd_listen over loopback without TLS, beside root and "
        "the target's own: only with a capability, as the programs have it that a run launches.",
    )
    agent_users: tuple[str, ...] = option(
        WORDS,
        default=(),
        check=local_uids,
        help="Without TLS on loopback: users of this machine whose agents may ship, beside root and the target's own. "
        "`allow_plain` lets anybody.",
    )
    nbd_listen: Address | None = option(
        ADDRESS,
        default=None,
        help="TCP address on which points and branches are served over NBD; absent: none.",
    )
    exports: str = option(
        choice("named", "granted"),
        default="named",
        help="Who may open points and branches over NBD (docs/security.md). `named`: who has a name in its certificate "
        "is held to what the store granted it; others open everything, unless `identities` are required. `granted`: "
        "others need a capability.",
    )
    point_interval: float = option(
        DURATION,
        default=1.0,
        help="Least time between two recovery points of a promoted branch that is written over NBD. Its data is "
        "durable with each flush; the points are what one can go back to.",
    )
    metrics: Address | None = option(
        ADDRESS,
        default=None,
        help="Address of the Prometheus endpoint (/metrics, /healthz, /readyz); absent: none.",
    )
    data_networks: tuple[str, ...] = option(
        NETWORKS,
        default=(),
        help="Networks that block data may use, checked on the peer's address; and loopback.",
    )
    allow_plain: bool = option(
        FLAG,
        default=False,
        help="Allow sessions without TLS beyond loopback; the log repeats it at each one.",
    )
    workers: int = option(COUNT, default=2, help="Threads that decompress and hash what arrives.", check=_workers)
    memory_budget: int = option(
        SIZE, default=512 << 20, help="What all sessions together may have in flight.", check=_credit
    )
    session_credit: int = option(
        SIZE, default=16 << 20, help="What one session may have in flight at most.", check=_credit
    )
    sources_max: int = option(
        COUNT, default=1000, help="How many sources are taken in; one more is refused (`too-many-sources`)."
    )
    free_space_min: int = option(
        SIZE,
        default=64 << 20,
        help="Below so much free space nothing is taken in, so that compaction has room.",
    )
    stop_seconds: float = option(
        DURATION, default=20.0, help="How long stopping may take: commit, acknowledge, say goodbye."
    )
    log_level: str = option(choice("debug", "info", "warning", "error"), default="info", help="What is logged.")
    log_form: str = option(choice("auto", "json", "text"), default="auto", help="How it is logged.")
    audit: AuditOptions = section(AuditOptions, help="The audit log, in the store's folder `audit`.")
    encryption: EncryptionOptions = section(
        EncryptionOptions, help="Encryption of the store at rest (docs/security.md); without a key it is in clear."
    )
    s3: S3Options = section(
        S3Options, help="How the objects of a store in an object store are reached, and what is kept of them here."
    )
    quotas: QuotaOptions = section(QuotaOptions, help="What each source may take at most.")
    quota: tuple[SourceQuotaOptions, ...] = tables(
        SourceQuotaOptions, needed=False, help="What one source may take, where it is more or less; one table for each."
    )
    tls: TlsOptions = section(TlsOptions, help="TLS 1.3, both sides authenticated; needed beyond loopback.")
    maintenance: MaintenanceOptions = section(MaintenanceOptions, help="What the store does by itself.")
    mirror: MirrorSection = section(MirrorSection, help="A second copy of the store (docs/operations.md).")

    @property
    def known_as(self) -> str:
        """Its name among targets."""
        return self.name or re.sub(r"[^a-z0-9._-]", "-", platform.node().lower())[:63].strip("-._") or "target"

    @property
    def reached_at(self) -> tuple[Address, ...]:
        """Where agents reach it; none where only `listen` could say it, and names no single host."""
        return self.addresses or (() if self.listen.host in _ANY_HOST or not self.listen.port else (self.listen,))


def open_to_everybody(config: TargetConfig) -> list[str]:
    """What anybody may do who can connect, because nothing proves who comes and `allow_plain` says that it need not."""
    if config.tls.files or not config.allow_plain:
        return []
    found = [f"whoever connects to {config.listen} may ship as any source"]
    if config.nbd_listen and config.exports == "named":
        found.append(f"whoever connects to {config.nbd_listen} may open every point and branch")
    return [f"{each}: `allow_plain` is set, and there is no [tls]" for each in found]


def load_target_config(path: Path | None, overrides: dict[str, object]) -> TargetConfig:
    """From a file, or from command-line options alone.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    config = load(TargetConfig, path, overrides=overrides) if path else parse(TargetConfig, overrides)
    where, tls = str(path or "command line"), config.tls
    TlsFiles.together(tls.certificate, tls.key, tls.ca, tls.crl, where=f"{where}: [tls]")
    config.encryption.check(where)
    if tls.files is None and (tls.identities, tls.identity_map) != ("named", "none"):
        raise DrengineError(BAD_CONFIG, f"{where}: identities are proved by TLS: [tls] needs certificate, key and ca")
    for address in (config.nbd_listen, config.metrics):
        if address and address.path:
            raise DrengineError(BAD_CONFIG, f"{where}: {address} is no HOST:PORT (nbd_socket takes a path)")
    return config
