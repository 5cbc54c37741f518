"""The target daemon: its parts put together, started in order and stopped in order.

Start: open (or make) the store, listen, tell the service manager READY. Stop: no new peers; every session is
committed, acknowledged and said goodbye to; NBD clients finish what is in flight; then the store is closed. Being
killed instead loses nothing that was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from drengine import __version__
from drengine.audit import FOLDER
from drengine.audit.auditing import Auditing
from drengine.enrolment.keeper import keeping
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint
from drengine.monitoring.discovery import SOURCES_PATH
from drengine.nbd.export import Export, Peer
from drengine.nbd.server import NbdServer
from drengine.policy.kept import PolicyFile
from drengine.process.descriptors import raise_descriptor_limit
from drengine.process.local import own_users
from drengine.process.signals import signalled
from drengine.store.care.lock_policy import LockPolicy
from drengine.store.care.retention import RetentionPolicy
from drengine.store.care.retire import Keeping
from drengine.store.locks import Holder
from drengine.store.store import Store
from drengine.store.targets import Introduction
from drengine.target import metrics as m
from drengine.target.access import ExportRules, shown_peer
from drengine.target.admission import CreditBudget
from drengine.target.config import TargetConfig, local_uids, open_to_everybody
from drengine.target.errors import NO_ADDRESS, WRONG_STORE
from drengine.target.exports import ExportName, StoreExports, ViewExport
from drengine.target.ingest import IngestLimits
from drengine.target.key import keks_of, s3_of
from drengine.target.listener import Reception
from drengine.target.maintenance import Maintenance
from drengine.target.members import Members
from drengine.target.metrics import TargetMetrics
from drengine.target.mirroring import Mirroring, MirrorPlan
from drengine.target.ownership import Ownership
from drengine.target.protection import Protection
from drengine.target.quotas import Quotas
from drengine.target.relay import exposition
from drengine.target.session import ended_because
from drengine.target.sources import Sources
from drengine.target.watch import StoreWatch
from drengine.telemetry import MetricsEndpoint, notify, quiet_accept_failures
from drengine.transport.credentials import Credentials
from drengine.transport.endpoints import Listener, serve
from drengine.transport.errors import TransportError, reason_of
from drengine.transport.networks import DataNetworks, is_loopback
from drengine.transport.peers import PeerRules, shown_certificate
from drengine.transport.tls import server_context

log = logging.getLogger("drengine.target")

EXPORT_THREADS = 4
BLOCKING_THREADS = 32
NBD_GRACE_SECONDS = 5.0
CONNECTIONS_GRACE_SECONDS = 3.0
HEAD_SECONDS = 3600.0
"""From one note of an encrypted store's head in the audit log to the next."""
GRANT_SECONDS = 1.0
"""How often what is open is held against the grants that live."""
REVOCATION_SECONDS = 2.0
"""How often the CRL is looked at: a revoked peer's session ends within 5 s of the file's change."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a started daemon can be reached."""

    replication: tuple[str, int]
    nbd: tuple[str, int] | None
    nbd_socket: Path | None
    metrics_port: int | None


class TargetDaemon:
    """One target. `start` and `stop` belong to one event loop."""

    def __init__(
        self,
        config: TargetConfig,
        *,
        store: Store | None = None,
        clock: Clock | None = None,
        ingest_limits: IngestLimits | None = None,
    ) -> None:
        """Prepare it; with `store` an open one is used (and left open), otherwise the configured one is opened."""
        self.config = config
        self.clock = clock or SystemClock()
        self.networks = DataNetworks.parse(config.data_networks)
        self.credentials: Credentials | None = None
        self.sources = Sources()
        self.metrics = TargetMetrics(self.sources, self.clock)
        self._given_store = store
        self._ingest_limits = ingest_limits or IngestLimits(free_bytes_min=config.free_space_min)
        self.metrics.free_bytes_min = self._ingest_limits.free_bytes_min
        self._cleanup = contextlib.AsyncExitStack()
        self._ready = False
        self._nbd: NbdServer | None = None

    async def start(self) -> Addresses:
        """Open the store, recover, listen.

        Raises:
            DrengineError: the store can't be opened, an address can't be listened on; nothing was left behind.
        """
        try:
            return await self._start()
        except BaseException:
            await self._cleanup.aclose()
            raise

    async def stop(self) -> None:
        """Stop in order, within `stop_seconds`."""
        self._ready = False
        await self._cleanup.aclose()

    def reload(self) -> None:
        """Read the certificates again; sessions go on as they are."""
        if self.credentials is None:
            log.info("there is nothing to read again: TLS is not configured, other options need a restart")
        else:
            self.audit.did("target.reload")
            self.credentials.refresh(again=True)
            self._end_revoked()

    @property
    def _context(self) -> Callable[[], ssl.SSLContext] | None:
        """Gives the context for each TLS handshake; None without TLS."""
        return self.credentials.context if self.credentials else None

    async def _start(self) -> Addresses:
        config, cleanup = self.config, self._cleanup
        asyncio.get_running_loop().set_default_executor(
            ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="blocking")
        )
        if config.tls.files:
            self.credentials = Credentials(config.tls.files, server_context, role="target", clock=self.clock)
            self.metrics.credentials = (self.credentials,)
        store = self._given_store
        if store is None:
            store = await asyncio.to_thread(open_expected, config, self.clock)
            cleanup.push_async_callback(asyncio.to_thread, store.close)
        self.store = store
        self.audit = await asyncio.to_thread(Auditing, config.store / FOLDER, config.audit, self.clock)
        cleanup.push_async_callback(asyncio.to_thread, self.audit.close)
        self.metrics.unanchored = self.audit.unsent
        await asyncio.to_thread(self.audit.did, "target.start")
        await asyncio.to_thread(self.sources.load, store)
        readers = self._pool(EXPORT_THREADS, "export")
        self.reception = self._reception(store)
        await self._share(store)
        self.members = self._members(store)
        await asyncio.to_thread(self.members.load)
        self.reception.members = self.members
        cleanup.push_async_callback(_end, asyncio.create_task(self.members.run()))
        self.metrics.sessions = lambda: len(self.reception.sessions)
        self._tend(store)
        nbd_address = await self._serve_nbd(store, readers)
        cleanup.push_async_callback(_end, asyncio.create_task(self._watch_grants()))
        if store.is_encrypted:
            cleanup.push_async_callback(_end, asyncio.create_task(self._note_heads()))
        if self.credentials:
            keeping_it = keeping([self.credentials.files], self.clock, self.reload)
            self.metrics.keepers = await cleanup.enter_async_context(keeping_it)
        if self.credentials and self.credentials.files.crl:
            watching = asyncio.create_task(self._watch_revocations(self.credentials))
            cleanup.push_async_callback(_end, watching)
        server = await serve(
            config.listen.host,
            config.listen.port,
            self.reception.receive,
            networks=self.networks,
            tls=self._context,
            allow_plain=config.allow_plain,
            observer=self.metrics,
            failed=lambda error: self.metrics.count(m.ENDED, 1, ended_because(error)),
            clock=self.clock,
        )
        cleanup.push_async_callback(self._drain, server)
        cleanup.callback(server.close)
        metrics_port = self._serve_metrics()
        self._ready = True
        host, port = server.sockets[0].getsockname()[:2]
        return Addresses((host, port), nbd_address, config.nbd_socket, metrics_port)

    def _tend(self, store: Store) -> None:
        """What goes on beside sessions and exports: maintenance, looking whether the store is usable, a second copy."""
        # Several targets wait for each other's transactions: no session is to wait with maintenance.
        aside = self._cleanup.enter_context(store.aside()) if store.targets.is_shared else store
        self.maintenance = self._maintenance(aside)
        self.maintenance.start()
        self._cleanup.push_async_callback(self.maintenance.stop)
        self.watch = StoreWatch(store, self.clock, self._ingest_limits.free_bytes_min, self.reception.end_all)
        self.metrics.store_reason = lambda: self.watch.reason
        self._cleanup.push_async_callback(_end, asyncio.create_task(self.watch.run()))
        self._begin_mirroring(store)

    async def _share(self, store: Store) -> None:
        """Be known to the other targets of the store, until the last session has ended."""
        self.ownership = self.reception.ownership = self._ownership(store)
        await asyncio.to_thread(self.ownership.begin)
        self._cleanup.push_async_callback(asyncio.to_thread, self.ownership.leave)
        for task in (self.ownership.run(), self.ownership.watch()):
            self._cleanup.push_async_callback(_end, asyncio.create_task(task))

    def _begin_mirroring(self, store: Store) -> None:
        if (plan := MirrorPlan.of(self.config.mirror, self.config.s3)) is None:
            return
        keks = keks_of(self.config.encryption, self.config.store) if store.is_encrypted else None
        mirroring = self.metrics.mirroring = Mirroring(store, plan, keks, self.clock)
        following = asyncio.create_task(mirroring.follow())
        following.add_done_callback(lambda task: task.cancelled() or task.exception())

        async def end() -> None:
            mirroring.stop()
            await asyncio.gather(following, return_exceptions=True)

        self._cleanup.push_async_callback(end)

    def _reception(self, store: Store) -> Reception:
        config = self.config
        return Reception(
            store,
            self.sources,
            self.metrics,
            self._pool(config.workers, "verify"),
            self._pool(config.workers, "answer"),
            CreditBudget(config.memory_budget, config.session_credit),
            self.clock,
            peers=self._peer_rules(),
            ingest_limits=self._ingest_limits,
            sources_max=config.sources_max,
            refusals=self.audit.refusals,
            quotas=Quotas(config.quotas, config.quota),
            local_users=None if config.allow_plain else config.agent_users,
        )

    def _ownership(self, store: Store) -> Ownership:
        config = self.config
        me = Introduction(config.known_as, tuple(map(str, config.reached_at)), str(config.metrics or ""), __version__)
        if store.targets.is_shared and not me.addresses:
            raise DrengineError(NO_ADDRESS, f"it listens at {config.listen}, which is no address of one host")
        reception = self.reception
        ownership = Ownership(store, me, self.sources, self.metrics, self.clock, lambda: reception.sessions)
        self.metrics.peers, self.metrics.unowned = lambda: ownership.targets, lambda: ownership.unowned
        return ownership

    def _members(self, store: Store) -> Members:
        return Members(
            PolicyFile(self.config.store),
            store,
            self.sources,
            self.clock,
            RetentionPolicy.parse(self.config.maintenance.retention),
            self.reception.end_source,
            lambda source: self.audit.did("source.return", source),
        )

    @property
    def _local_users(self) -> frozenset[int] | None:
        """Who may come to exports over loopback without TLS; None: anybody."""
        config = self.config
        return None if config.allow_plain else own_users() | local_uids(config.local_users)

    def _pool(self, threads: int, name: str) -> ThreadPoolExecutor:
        """Threads that end with the target; what they still do then is not waited for."""
        pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._cleanup.callback(pool.shutdown, wait=False)
        return pool

    async def _drain(self, server: Listener) -> None:
        """End all sessions in peace; one that takes too long is abandoned."""
        seconds = self.config.stop_seconds
        self.ownership.stopping = True
        await self.reception.close(seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), CONNECTIONS_GRACE_SECONDS)

    def _peer_rules(self) -> PeerRules:
        tls, credentials = self.config.tls, self.credentials
        if credentials is None:
            return PeerRules()
        return PeerRules(
            lambda: credentials.identity,
            credentials.is_revoked,
            is_required=tls.identities == "required",
            by_common_name=tls.identity_map == "cn",
        )

    async def _watch_revocations(self, credentials: Credentials) -> None:
        """A session that is open has shown its certificate long ago, so the CRL is asked again and again."""
        while True:
            await self.clock.sleep(REVOCATION_SECONDS)
            await asyncio.to_thread(credentials.refresh)
            self._end_revoked()

    async def _note_heads(self) -> None:
        """Note the state of an encrypted store in the audit log, whose anchors lie elsewhere (`Store.head`)."""
        while True:
            try:
                await asyncio.to_thread(self.audit.did, "store.head", await asyncio.to_thread(lambda: self.store.head))
            except DrengineError as error:
                log.warning("the store's head can't be read: %s", error.message)
            await self.clock.sleep(HEAD_SECONDS)

    async def _watch_grants(self) -> None:
        """What rests on a grant ends when that is taken back, by whatever process, or its time is over."""
        while True:
            await self.clock.sleep(GRANT_SECONDS)
            # What is opened from here on rests on grants that may be newer than those that are read.
            open_now = self._granted_now()
            try:
                grants = await asyncio.to_thread(self.store.grants.living)
            except DrengineError as error:
                log.debug("the grants can't be read: %s", error.message)
                continue
            self.metrics.grants = Counter(grant.access for grant in grants)
            self._end_grants(open_now - {grant.id for grant in grants})

    def _end_grants(self, gone: set[str]) -> None:
        if gone:
            log.info("what was granted is taken back", extra={"grants": sorted(gone)})
            self.reception.end_grants(gone)
        if gone and self._nbd is not None:
            self._nbd.cut_off(lambda _, export: _grant_of(export) in gone)

    def _granted_now(self) -> set[str]:
        found = {session.grant for session in self.reception.errands.values()}
        if self._nbd is not None:
            found |= {_grant_of(export) for export in self._nbd.exports}
        return found - {""}

    def _end_revoked(self) -> None:
        self.reception.end_revoked()
        if self._nbd is not None:
            self._nbd.cut_off(self._was_revoked)

    def _was_revoked(self, client: Peer, _: Export | None) -> bool:
        try:
            self.reception.peers.require_unrevoked(client.certificate or None)
        except TransportError as error:
            log.warning("NBD client %s is cut off: %s", client.address, error.message)
            return True
        return False

    def _keeping(self, source: str) -> Keeping:
        return replace(self.members.keeping(source), lock=LockPolicy.parse(self.config.maintenance.lock))

    def _maintenance(self, store: Store) -> Maintenance:
        options = self.config.maintenance
        return Maintenance(
            store,
            self.metrics,
            self.clock,
            self._keeping,
            options.retention_interval,
            options.compaction_interval,
            options.scrub_interval,
            is_ingest_busy=lambda: self.reception.is_busy,
            on_scrubbed=self.reception.ask_again,
        )

    async def _serve_nbd(self, store: Store, readers: ThreadPoolExecutor) -> tuple[str, int] | None:
        config = self.config
        if config.nbd_socket is None and config.nbd_listen is None:
            return None
        protection = Protection(config.point_interval, readers, self.clock, self._note_point)
        granted = config.exports == "granted" or config.tls.identities == "required"
        rules = ExportRules(store, self.reception.peers, only_granted=granted)
        exports = StoreExports(store, readers, protection=protection, rules=rules)
        self._cleanup.push_async_callback(exports.close)
        self._cleanup.push_async_callback(protection.close)
        tls = self._context
        server = NbdServer(
            exports, tls=tls, tls_required=tls is not None, allow=self._may_read, refused=self._note_refused
        )
        self._nbd = server
        self._cleanup.push_async_callback(server.close, NBD_GRACE_SECONDS)
        self.metrics.nbd_connections = lambda: server.connections
        self.metrics.frame_cache_bytes = lambda: store.frame_cache_bytes
        self.metrics.uploads = store.upload_backlog
        if config.nbd_socket is not None:
            await server.start_unix(config.nbd_socket, users=local_uids(config.local_users))
        if config.nbd_listen is None:
            return None
        users = self._local_users if tls is None else None
        return await server.start_tcp(config.nbd_listen.host, config.nbd_listen.port, users=users)

    def _note_refused(self, peer: Peer, name: str, error: DrengineError) -> None:
        reason = reason_of(error)
        self.metrics.count(m.EXPORTS_REFUSED, 1, reason)
        with contextlib.suppress(KeyError):  # a name that is none tells nothing
            name = str(ExportName.parse(name))
        told = {"export": name[:200], "peer": peer.address, "who": shown_peer(peer), "reason": reason}
        log.warning("an export is refused: %s", error.message, extra=told)
        shown = shown_certificate(peer.certificate)
        self.audit.refusals.note(
            who=shown or shown_peer(peer),
            proved="certificate" if shown else "peer" if peer.uid is not None else "",
            did="target.export",
            on=name[:200],
            error=reason,
            details={"peer": peer.address},
        )

    def _note_point(self, point: RecoveryPoint) -> None:
        Sources.note_points(self.sources.get(point.source), [point])

    def _may_read(self, peer: Peer) -> bool:
        """Data leaves only into the data networks (rule 7), and in the clear only over loopback or when told to."""
        try:
            self.networks.label(peer.address)
        except DrengineError as error:
            log.warning("refused %s", peer.address, extra={"reason": error.kind.id})
            self.metrics.count(m.REFUSED, 1, error.kind.id)
            return False
        if self.config.tls.files or is_loopback(peer.address) or self.config.allow_plain:
            return True
        self.metrics.count(m.REFUSED, 1, "plain-refused")
        return False

    def _not_ready(self) -> str:
        """Why nothing can be taken in now; empty when it can."""
        if not self._ready:
            return "starting or stopping"
        trouble = self.watch.trouble
        return f"{self.watch.reason}: {trouble.message}" if trouble else ""

    def _serve_metrics(self) -> int | None:
        address = self.config.metrics
        if address is None:
            return None
        pages = {SOURCES_PATH: self._agents_metrics}
        endpoint = MetricsEndpoint(
            address.host, address.port, self.metrics.metrics, not_ready=self._not_ready, pages=pages
        )
        self._cleanup.push_async_callback(asyncio.to_thread, endpoint.close)
        return endpoint.port

    def _agents_metrics(self, source: str) -> bytes | None:
        """What this source's agent tells, or all agents'; None while it tells nothing."""
        told = [state for state in self.sources.all() if state.samples and source in ("", state.name)]
        return exposition(told) if told or not source else None


def _grant_of(export: Export | None) -> str:
    return export.permit.grant if isinstance(export, ViewExport) else ""


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def open_expected(config: TargetConfig, clock: Clock) -> Store:
    """The configured store. None is made there: an empty directory may be where a file system is not mounted.

    Raises:
        DrengineError: WRONG_STORE when its id is not the expected one; see also Store.open.
    """
    path, store_id = config.store, config.store_id
    me = Holder(config.known_as, tuple(map(str, config.reached_at)))
    keks, options = keks_of(config.encryption, path), s3_of(config.s3, path)
    store = Store.open(path, clock=clock, keks=keks, storage_options=options, holder=me)
    if store_id and store.identity.hex() != store_id.lower():
        store.close()
        raise DrengineError(WRONG_STORE, f"{path} holds store {store.identity.hex()}, and {store_id[:80]} is expected")
    return store


async def run_target(config: TargetConfig) -> int:
    """Run until SIGTERM or SIGINT; a second one ends the process at once. Returns the exit code."""
    daemon = TargetDaemon(config)
    stopping = signalled(insist=True, reload=daemon.reload)
    raise_descriptor_limit()
    quiet_accept_failures(asyncio.get_running_loop())
    where = await daemon.start()
    for line in open_to_everybody(config):
        log.warning(line)
    log.info(
        "target is ready",
        extra={
            "store": str(config.store),
            "replication": "{}:{}".format(*where.replication),
            "nbd": "{}:{}".format(*where.nbd) if where.nbd else "",
            "nbd_socket": str(where.nbd_socket or ""),
            "metrics_port": where.metrics_port or 0,
        },
    )
    notify("READY=1")
    await stopping.wait()
    notify("STOPPING=1")
    log.info("target is stopping")
    await daemon.stop()
    log.info("target has stopped")
    return 0
