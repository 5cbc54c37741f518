"""The target's metrics: what there is, and where the values come from.

Labels are bounded: sources and volumes by the store's content, reasons by the tables of errors and states, networks
by the configuration.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from drengine import __version__
from drengine.enrolment.keeper import Keeper
from drengine.enrolment.metrics import KeepingFamilies
from drengine.model.clock import Clock
from drengine.model.grants import Access
from drengine.model.points import RecoveryPoint
from drengine.model.states import ReplicationState
from drengine.store.blobs import Backlog
from drengine.store.targets import TargetInfo, TargetState
from drengine.target import mirroring
from drengine.target.sources import STALLED_BY, Sources, SourceState
from drengine.telemetry import Family, Kind, Metrics, Sample
from drengine.transport.credentials import CredentialFamilies, Credentials

COUNTER, GAUGE, HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

LAG = Family(
    "target_replication_lag_seconds",
    GAUGE,
    "Seconds since a durable recovery point last held all of the volume; grows while the agent is gone.",
    ("source", "volume"),
)
POINT_AGE = Family(
    "target_recovery_point_age_seconds",
    GAUGE,
    "Age of the newest durable recovery point.",
    ("source", "volume"),
)
STATE = Family(
    "target_replication_state",
    GAUGE,
    "1 for the state that the source is in, 0 for the others.",
    ("source", "state", "reason"),
)
CONNECTED = Family("target_agent_connected", GAUGE, "1 while the source's agent has a session.", ("source",))
BACKLOG = Family("target_backlog_bytes", GAUGE, "Bytes not yet durable here, as the agent last said.", ("source",))
DAMAGED_RANGES = Family(
    "target_damaged_ranges",
    GAUGE,
    "Unreadable ranges of the head that the source is to send again.",
    ("source",),
)
POINTS = Family("target_recovery_points", GAUGE, "Recovery points kept.", ("source",))
VOLUME_BYTES = Family("target_volume_bytes", GAUGE, "Size of the volume at its newest point.", ("source", "volume"))
STORE_BYTES = Family("target_store_bytes", GAUGE, "Bytes of segments on the store's disk.")
STORE_LIVE = Family("target_store_live_bytes", GAUGE, "Plain bytes in the store that a kept point can see.")
STORE_FREE = Family("target_store_free_bytes", GAUGE, "Bytes free on the store's disk.")
STORE_STATE = Family(
    "target_store_state",
    GAUGE,
    "1 for what keeps the store from taking anything in (`none`: nothing does), 0 for the others.",
    ("reason",),
)
SET_ASIDE = Family(
    "target_store_set_aside_segments",
    GAUGE,
    "Segment files that the catalogue does not name and that nothing removes; counted at each compaction.",
)
UPLOAD_BACKLOG = Family(
    "target_upload_backlog_bytes", GAUGE, "Bytes acknowledged here that the object store does not have yet."
)
UPLOAD_LAG = Family(
    "target_upload_lag_seconds",
    GAUGE,
    "Seconds since the oldest of them was acknowledged: what is lost with this host; 0: nothing.",
)
SESSIONS = Family("target_sessions", GAUGE, "Sessions open now.")
NBD_CONNECTIONS = Family("target_nbd_connections", GAUGE, "NBD connections open now.")
FRAME_CACHE = Family("target_frame_cache_bytes", GAUGE, "Decoded frames of the store in memory, for reads.")
MAINTENANCE_AGE = Family(
    "target_maintenance_success_age_seconds",
    GAUGE,
    "Seconds since the task last succeeded; since the target's start, if it has not succeeded since then.",
    ("task",),
)
UNANCHORED = Family(
    "target_audit_unanchored_entries", GAUGE, "Audit entries that no anchor at the sink vouches for yet.", ("sink",)
)
BUILD = Family("target_build_info", GAUGE, "1, with the version that runs.", ("version",))
STORE_FREE_MIN = Family("target_store_free_min_bytes", GAUGE, "Below so many bytes free, nothing is taken in.")
CERTIFICATES = CredentialFamilies.of("target")
KEEPING = KeepingFamilies.of("target")
RECEIVED = Family("target_received_bytes_total", COUNTER, "Bytes received by peer network.", ("network",))
SENT = Family("target_sent_bytes_total", COUNTER, "Bytes sent by peer network.", ("network",))
PLAIN = Family("target_stored_plain_bytes_total", COUNTER, "Bytes stored, before compression.", ("source",))
STORED = Family("target_stored_bytes_total", COUNTER, "Bytes stored, as they lie on disk.", ("source",))
BATCHES = Family("target_batches_total", COUNTER, "Batches verified and stored.", ("source",))
COMMITS = Family("target_commits_total", COUNTER, "Commits to the store.", ("source",))
CUTS = Family("target_cuts_total", COUNTER, "Recovery points received.", ("source",))
ENDED = Family("target_sessions_ended_total", COUNTER, "Sessions ended, by reason.", ("reason",))
REFUSED = Family("target_peers_refused_total", COUNTER, "Peers turned away before a session.", ("reason",))
EXPORTS_REFUSED = Family("target_exports_refused_total", COUNTER, "Exports refused to a client.", ("reason",))
GRANTS = Family("target_grants", GAUGE, "Grants that count now, by what they allow.", ("access",))
PEER_LIVING = Family(
    "target_peer_living",
    GAUGE,
    "1 while a target that shares the store is heard of, 0 while it is silent; all of them, and this one too.",
    ("target", "state"),
)
UNOWNED = Family(
    "target_unowned_sources", GAUGE, "Sources whose target is gone and that no other has taken; the same at all."
)
TAKEOVERS = Family("target_takeovers_total", COUNTER, "Sources taken over from a target that was gone.")
GIVEN_AWAY = Family("target_sources_given_away_total", COUNTER, "Sources sent on to another target, to drain or stop.")
TAKEOVER_SECONDS = Family("target_takeover_seconds", HISTOGRAM, "From HELLO to WELCOME of a source that is taken over.")
COMMIT_SECONDS = Family("target_commit_seconds", HISTOGRAM, "How long a commit took.")
ACK_SECONDS = Family("target_ack_seconds", HISTOGRAM, "From receiving a batch or cut to acknowledging it.")
SCRUBBED = Family("target_scrubbed_bytes_total", COUNTER, "Bytes re-read and re-hashed by scrubs.")
SCRUB_DAMAGE = Family("target_scrub_damaged_records_total", COUNTER, "Damaged records that scrubs found.")
FREED = Family("target_compaction_freed_bytes_total", COUNTER, "Bytes that compaction gave back.")
RETIRED = Family("target_points_retired_total", COUNTER, "Recovery points that retention removed.")
MAINTENANCE_FAILURES = Family("target_maintenance_failures_total", COUNTER, "Failed runs of a task.", ("task",))

FAMILIES: tuple[Family, ...] = (
    *(value for value in list(globals().values()) if isinstance(value, Family)),
    *CERTIFICATES.all,
    *KEEPING.both,
    *mirroring.FAMILIES,
)


@dataclass
class StoreFigures:
    """The newest figures of the store, gathered by maintenance rather than at each scrape."""

    bytes: int = 0
    live_bytes: int = 0
    free_bytes: int | None = None
    points: dict[str, int] = field(default_factory=dict)
    damaged_ranges: dict[str, int] = field(default_factory=dict)


class TargetMetrics:
    """What the daemon counts, and what it answers when it is asked."""

    def __init__(self, sources: Sources, clock: Clock) -> None:
        self.figures = StoreFigures()
        self.free_bytes_min = 0
        self.sessions: Callable[[], int] = lambda: 0
        self.credentials: tuple[Credentials, ...] = ()
        self.keepers: tuple[Keeper, ...] = ()
        self.store_reason: Callable[[], str] = lambda: "none"
        self.nbd_connections: Callable[[], int] = lambda: 0
        self.frame_cache_bytes: Callable[[], int] = lambda: 0
        self.unanchored: Callable[[], dict[str, int]] = dict
        self.grants: Counter[str] = Counter()
        self.peers: Callable[[], Sequence[TargetInfo]] = tuple
        self.unowned: Callable[[], int] = lambda: 0
        self.last_success: dict[str, float] = {}
        self.set_aside = 0
        self.mirroring: mirroring.Mirroring | None = None
        self.uploads: Callable[[], Backlog] = Backlog
        self._sources = sources
        self._clock = clock
        self._lock = threading.Lock()
        self.metrics = Metrics(FAMILIES, self._gauges, self._counts)

    def count(self, family: Family, amount: float = 1, *labels: str) -> None:
        """Add to a counter, from any thread."""
        self.metrics.count(family, amount, labels)

    def observe(self, family: Family, value: float) -> None:
        """Add to a histogram, from any thread."""
        self.metrics.observe(family, value)

    # What transport tells.

    def bytes_received(self, network: str, count: int) -> None:
        """See TrafficObserver."""
        self.metrics.count(RECEIVED, count, (network,))

    def bytes_sent(self, network: str, count: int) -> None:
        """See TrafficObserver."""
        self.metrics.count(SENT, count, (network,))

    def _counts(self) -> Iterable[Sample]:
        """What is counted elsewhere; what was counted of sources that are gone ends here."""
        self.metrics.keep("source", {state.name for state in self._sources.all()})
        return self.mirroring.counts() if self.mirroring else ()

    def _gauges(self) -> Iterable[Sample]:
        now_ns = self._clock.now_ns()
        for state in self._sources.all():
            yield from _source_samples(state, now_ns)
        figures = self.figures
        yield Sample(BUILD, 1, (__version__,))
        yield Sample(STORE_FREE_MIN, self.free_bytes_min)
        yield Sample(STORE_BYTES, figures.bytes)
        yield Sample(STORE_LIVE, figures.live_bytes)
        if figures.free_bytes is not None:
            yield Sample(STORE_FREE, figures.free_bytes)
        for family, by_source in ((POINTS, figures.points), (DAMAGED_RANGES, figures.damaged_ranges)):
            for source, count in sorted(by_source.items()):
                if self._sources.is_shown(source):  # it was retired otherwise, or another target shows it
                    yield Sample(family, count, (source,))
        store_reason = self.store_reason()
        for reason in ("none", *STALLED_BY.values()):
            yield Sample(STORE_STATE, float(reason == store_reason), (reason,))
        yield Sample(SET_ASIDE, self.set_aside)
        if self.mirroring:
            yield from self.mirroring.gauges([state.name for state in self._sources.all()])
        uploads = self.uploads()
        yield Sample(UPLOAD_BACKLOG, uploads.bytes)
        yield Sample(UPLOAD_LAG, max(0.0, (now_ns - uploads.oldest_ns) / 1e9) if uploads.oldest_ns else 0.0)
        peers = self.peers()
        for peer in peers:
            if peer.state is not TargetState.STOPPED:
                yield Sample(PEER_LIVING, float(peer.is_living), (peer.name, peer.state.value))
        if peers:
            yield Sample(UNOWNED, self.unowned())
        yield from CERTIFICATES.samples(self.credentials)
        yield from KEEPING.samples(self.keepers)
        yield Sample(SESSIONS, self.sessions())
        yield Sample(NBD_CONNECTIONS, self.nbd_connections())
        for access in Access:
            yield Sample(GRANTS, self.grants[access], (access,))
        yield Sample(FRAME_CACHE, self.frame_cache_bytes())
        for sink, entries in sorted(self.unanchored().items()):
            yield Sample(UNANCHORED, entries, (sink,))
        for task, moment in sorted(self.last_success.items()):
            yield Sample(MAINTENANCE_AGE, self._clock.monotonic() - moment, (task,))


def _source_samples(state: SourceState, now_ns: int) -> Iterator[Sample]:
    for each in ReplicationState:
        reason = state.reason if each is state.state else "none"
        yield Sample(STATE, float(each is state.state), (state.name, each.value, reason))
    yield Sample(CONNECTED, float(state.connected), (state.name,))
    yield Sample(BACKLOG, state.backlog_bytes, (state.name,))
    point: RecoveryPoint | None = state.newest_point
    lag, age = state.lag_seconds(now_ns), state.point_age_seconds(now_ns)
    if point is None or lag is None or age is None:
        return
    for volume in point.geometry:
        labels = (state.name, volume.name)
        yield Sample(LAG, lag, labels)
        yield Sample(POINT_AGE, age, labels)
        yield Sample(VOLUME_BYTES, volume.size_bytes, labels)
