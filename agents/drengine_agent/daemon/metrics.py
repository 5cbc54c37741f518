"""What Prometheus learns from an agent. Gauges are asked for at each scrape, so lag grows while the target is gone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from drengine import __version__
from drengine.enrolment.keeper import Keeper
from drengine.enrolment.metrics import KeepingFamilies
from drengine.model.points import PointKind
from drengine.model.states import REASONS, ReplicationState
from drengine.telemetry.metrics import Family, Kind, Metrics, Sample
from drengine.transport.credentials import CredentialFamilies
from drengine.wire.events import MetricSample
from drengine.wire.fields import SAMPLES_BYTES_MAX, SAMPLES_MAX, sample_bytes
from drengine_agent.capture.figures import Figures, families_of
from drengine_agent.daemon.health import RESCAN_REASONS, derive_state
from drengine_agent.daemon.service import Agent
from drengine_agent.daemon.trackers import capture_class
from drengine_agent.trackers import OURS

if TYPE_CHECKING:
    from drengine.control.party import Party

_SOURCE = ("source",)
_VOLUME = ("source", "volume")
LAG = Family(
    "agent_replication_lag_seconds",
    Kind.GAUGE,
    "Seconds since the source was last fully represented by a durable recovery point.",
    _SOURCE,
)
STATE = Family(
    "agent_state", Kind.GAUGE, "1 for the replication state that holds, 0 for the others.", ("source", "state")
)
REASON = Family(
    "agent_state_reason", Kind.GAUGE, "1 for the reason of the state, where it has one.", ("source", "reason")
)
BACKLOG = Family(
    "agent_backlog_bytes", Kind.GAUGE, "Bytes captured or dirty that are not durable at the target.", _SOURCE
)
VOLUME_SIZE = Family("agent_volume_size_bytes", Kind.GAUGE, "Size of a protected volume.", _VOLUME)
COMPRESSION = Family("agent_compression_ratio", Kind.GAUGE, "Plain bytes for each byte sent, since the start.", _SOURCE)
CAPTURED = Family("agent_captured_bytes_total", Kind.COUNTER, "Bytes of volumes taken up to be shipped.", _SOURCE)
READ = Family("agent_read_bytes_total", Kind.COUNTER, "Bytes read from volumes by scans and syncs.", _SOURCE)
SENT = Family("agent_sent_bytes_total", Kind.COUNTER, "Payload bytes sent, as encoded.", _SOURCE)
BATCHES = Family("agent_batches_total", Kind.COUNTER, "Batches sent.", _SOURCE)
CUTS = Family("agent_recovery_points_total", Kind.COUNTER, "Recovery points declared.", _SOURCE)
READ_ERRORS = Family("agent_read_errors_total", Kind.COUNTER, "Ranges of volumes that could not be read.", _SOURCE)
RESCANS = Family("agent_rescans_total", Kind.COUNTER, "Comparisons of everything, by reason.", ("source", "reason"))
ACK = Family("agent_ack_latency_seconds", Kind.HISTOGRAM, "From sending a position to its acknowledgement.", _SOURCE)
PEER = Family(
    "agent_peer_bytes_total",
    Kind.COUNTER,
    "Bytes on data connections by the configured network of the peer and direction.",
    ("source", "network", "direction"),
)
BROKER = Family("agent_broker_connected", Kind.GAUGE, "1 while there is a connection with the broker.", _SOURCE)
FENCED = Family("agent_fenced", Kind.GAUGE, "1 while the source is fenced: it neither serves nor ships.", _SOURCE)
COMMANDS = Family(
    "agent_commands_total",
    Kind.COUNTER,
    "Commands carried out, by verb and outcome (done, failed).",
    ("source", "verb", "outcome"),
)
IGNORED = Family(
    "agent_commands_ignored_total",
    Kind.COUNTER,
    "Commands that were not carried out: stale, retained, repeated, of another generation...",
    ("source", "reason"),
)
CUTS_BY_KIND = Family(
    "agent_cuts_total", Kind.COUNTER, "Recovery points cut, by how they are known to be consistent.", ("source", "kind")
)
BUILD = Family("agent_build_info", Kind.GAUGE, "1, with the version that runs.", ("source", "version"))
SYNC_LEFT = Family(
    "agent_sync_remaining_bytes",
    Kind.GAUGE,
    "Bytes that the copy or comparison under way has not looked at yet; 0 while there is none.",
    _SOURCE,
)
SYNC_SECONDS = Family(
    "agent_sync_remaining_seconds",
    Kind.GAUGE,
    "How long that will take at its rate so far; absent while nothing is known of it.",
    _SOURCE,
)
CERTIFICATES = CredentialFamilies.of("agent", _SOURCE)
KEEPING = KeepingFamilies.of("agent", _SOURCE)
_OWN = (
    LAG, STATE, REASON, BACKLOG, VOLUME_SIZE, COMPRESSION, CAPTURED, READ, SENT, BATCHES, CUTS, READ_ERRORS, RESCANS,
    ACK, PEER, BROKER, FENCED, COMMANDS, IGNORED, CUTS_BY_KIND, BUILD, SYNC_LEFT, SYNC_SECONDS, *CERTIFICATES.all,
    *KEEPING.both,
)  # fmt: skip
FAMILIES = (*_OWN, *(family for name in OURS for family in families_of(capture_class(name).figures_class)))
"""The agent's own, and those of our trackers."""


class AgentMetrics(Metrics):
    """An agent's metrics; also what a transport tells its traffic."""

    def __init__(self, source: str, figures: type[Figures] = Figures) -> None:
        """`figures` are those of the tracker that is used: it may be none of ours."""
        self.keepers: tuple[Keeper, ...] = ()
        self._source = source
        self._agent: Agent | None = None
        self._party: Party | None = None
        self.bytes_by_network: dict[str, list[int]] = {}
        """Received and sent, by network, since the start."""
        super().__init__(dict.fromkeys((*FAMILIES, *families_of(figures))), self._ask)

    def watch(self, agent: Agent) -> None:
        """Show this agent."""
        self._agent = agent
        agent.replication.observe_ack = lambda seconds: self.observe(ACK, seconds, (self._source,))
        agent.replication.samples = self.samples

    def watch_party(self, party: Party) -> None:
        """Show how it is at the broker, too."""
        self._party = party

    def bytes_received(self, network: str, count: int) -> None:
        """See transport.TrafficObserver."""
        self.count(PEER, count, (self._source, network, "received"))
        self.bytes_by_network.setdefault(network, [0, 0])[0] += count

    def bytes_sent(self, network: str, count: int) -> None:
        """See transport.TrafficObserver."""
        self.count(PEER, count, (self._source, network, "sent"))
        self.bytes_by_network.setdefault(network, [0, 0])[1] += count

    def render(self) -> bytes:
        """The text for a scrape."""
        self._catch_up()
        return super().render()

    def samples(self) -> tuple[MetricSample, ...]:
        """All of them without `source`, for the target to show; what does not fit into a report is left out."""
        self._catch_up()
        found: list[MetricSample] = []
        room = SAMPLES_BYTES_MAX - 2
        for family in self.registry.collect():
            for name, labels, value, *_ in family.samples:
                told = tuple(sorted((key, text) for key, text in labels.items() if key != "source"))
                sample = MetricSample(name, told, value)
                size = sample_bytes(sample)
                if size is not None and size <= room and len(found) < SAMPLES_MAX:
                    found.append(sample)
                    room -= size
        return tuple(found)

    def _catch_up(self) -> None:
        """Bring the counters to what the agent has counted itself."""
        agent = self._agent
        if agent is None:
            return
        traffic, progress = agent.traffic, agent.progress
        counts: list[tuple[Family, tuple[str, ...], float]] = [
            (CAPTURED, (), traffic.captured_bytes),
            (READ, (), progress.read_bytes),
            (SENT, (), traffic.payload_bytes),
            (BATCHES, (), traffic.batches),
            (CUTS, (), traffic.cuts),
            (READ_ERRORS, (), progress.read_errors),
            *((RESCANS, (reason,), progress.rescans.get(reason, 0)) for reason in sorted(RESCAN_REASONS)),
            *((CUTS_BY_KIND, (kind.value,), progress.cuts.get(kind, 0)) for kind in PointKind),
            *(each for each in agent.capture.figures().readings() if each[0].kind is Kind.COUNTER),
        ]
        if self._party is not None:
            commands = self._party.dispatcher
            done = dict(commands.done).items()
            counts += [(COMMANDS, (verb, "done" if ok else "failed"), count) for (verb, ok), count in done]
            counts += [(IGNORED, (reason,), count) for reason, count in dict(commands.ignored).items()]
        for family, labels, now in counts:
            self.reach(family, now, (self._source, *labels))

    def _ask(self) -> Iterable[Sample]:
        agent, source = self._agent, self._source
        if agent is None:
            return
        agent.replication.refresh_lag()
        facts = agent.replication.facts()
        state, reason = derive_state(facts)
        yield Sample(LAG, agent.replication.lag.lag_seconds, (source,))
        yield Sample(FENCED, float(agent.is_fenced), (source,))
        yield Sample(BUILD, 1, (source, __version__))
        yield Sample(SYNC_LEFT, agent.progress.sweep_left_bytes, (source,))
        seconds = agent.progress.sweep_left_seconds(agent.uplink.clock.monotonic())
        if seconds is not None:
            yield Sample(SYNC_SECONDS, seconds, (source,))
        if self._party is not None:
            yield Sample(BROKER, float(self._party.link.is_connected), (source,))
        used = (agent.connector.credentials, self._party.link.credentials if self._party else None)
        yield from CERTIFICATES.samples(filter(None, used), (source,))
        yield from KEEPING.samples(self.keepers, (source,))
        yield Sample(BACKLOG, facts.backlog_bytes, (source,))
        for each in ReplicationState:
            yield Sample(STATE, float(each is state), (source, each.value))
        for code in REASONS:
            if code != "none":
                yield Sample(REASON, float(code == reason), (source, code))
        for volume in agent.capture.volumes.values():
            yield Sample(VOLUME_SIZE, volume.size_bytes, (source, volume.name))
        for family, labels, value in agent.capture.figures().readings():
            if family.kind is Kind.GAUGE:
                yield Sample(family, value, (source, *labels))
        if agent.traffic.payload_bytes:
            yield Sample(COMPRESSION, agent.traffic.plain_bytes / agent.traffic.payload_bytes, (source,))
