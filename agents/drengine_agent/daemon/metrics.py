"""What Prometheus learns from an agent. Gauges are asked for at each scrape, so lag grows while the target is gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from drengine.model.points import PointKind
from drengine.model.states import REASONS, ReplicationState
from drengine.telemetry.metrics import Family, Kind, Metrics, Sample
from drengine_agent.daemon.health import RESCAN_REASONS, STALL_REASONS, derive_state
from drengine_agent.daemon.service import Agent

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
JOURNAL_USED = Family("agent_journal_used_bytes", Kind.GAUGE, "Bytes of the capture journal in use.", _SOURCE)
JOURNAL_CAPACITY = Family("agent_journal_capacity_bytes", Kind.GAUGE, "Bytes the capture journal can hold.", _SOURCE)
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
CUTS_FAILED = Family(
    "agent_cuts_failed_total", Kind.COUNTER, "Forced cuts that came to nothing, by reason.", ("source", "reason")
)
DIRTY_BLOCKS = Family(
    "agent_dirty_blocks", Kind.GAUGE, "Blocks of 4 KiB that the kernel marked and that are not durable.", _SOURCE
)
DIRTY_BYTES = Family(
    "agent_dirty_bytes", Kind.GAUGE, "Bytes in blocks that the kernel marked and that are not durable.", _SOURCE
)
FREEZES = Family("agent_freezes_total", Kind.COUNTER, "Freezes of the file systems on tracked disks.", _SOURCE)
FREEZE_LAST = Family("agent_freeze_last_seconds", Kind.GAUGE, "How long the last freeze lasted.", _SOURCE)
FREEZE_LONGEST = Family(
    "agent_freeze_longest_seconds", Kind.GAUGE, "How long the longest freeze lasted since the start.", _SOURCE
)
DIRECT_READ = Family(
    "agent_direct_read_bytes_total", Kind.COUNTER, "Bytes read from tracked disks, past the page cache.", _SOURCE
)
READ_WAIT = Family(
    "agent_read_wait_seconds_total", Kind.COUNTER, "Seconds that reads waited for `ebpf.read_limit`.", _SOURCE
)
EVENTS = Family(
    "agent_tracker_events_total", Kind.COUNTER, "Changes of tracked disks that the kernel counted.", _SOURCE
)
RUNS = Family(
    "agent_tracker_runs_total",
    Kind.COUNTER,
    "Runs of the tracker's programs, for all disks of the host; only with kernel.bpf_stats_enabled.",
    _SOURCE,
)
RUN_SECONDS = Family(
    "agent_tracker_run_seconds_total", Kind.COUNTER, "Time of these runs; only with kernel.bpf_stats_enabled.", _SOURCE
)
RUNS_MISSED = Family(
    "agent_tracker_runs_missed_total", Kind.COUNTER, "Runs that the kernel left out; copies did their work.", _SOURCE
)
HEALED = Family(
    "agent_tracker_healed_total",
    Kind.COUNTER,
    "Times that changes were left out by all copies, found by the audit, and handed out again.",
    _SOURCE,
)
PASSED = Family(
    "agent_tracker_passthrough_total",
    Kind.COUNTER,
    "Pass-through commands to tracked disks, by where their data went.",
    ("source", "direction"),
)
FAMILIES = (
    LAG, STATE, REASON, BACKLOG, VOLUME_SIZE, JOURNAL_USED, JOURNAL_CAPACITY, COMPRESSION, CAPTURED, READ, SENT,
    BATCHES, CUTS, READ_ERRORS, RESCANS, ACK, PEER, BROKER, FENCED, COMMANDS, IGNORED,
    CUTS_BY_KIND, CUTS_FAILED, DIRTY_BLOCKS, DIRTY_BYTES, FREEZES, FREEZE_LAST, FREEZE_LONGEST, DIRECT_READ, READ_WAIT,
    EVENTS, RUNS, RUN_SECONDS, RUNS_MISSED, HEALED, PASSED,
)  # fmt: skip


_FIGURES: tuple[tuple[Family, str], ...] = (
    (JOURNAL_USED, "journal_used_bytes"),
    (JOURNAL_CAPACITY, "journal_capacity_bytes"),
    (DIRTY_BLOCKS, "dirty_blocks"),
    (DIRTY_BYTES, "dirty_bytes"),
    (FREEZE_LAST, "freeze_seconds_last"),
    (FREEZE_LONGEST, "freeze_seconds_longest"),
)
"""Gauges by the name of what the tracker tells; those that it does not tell are not shown."""

_COUNTS: tuple[tuple[Family, str], ...] = (
    (FREEZES, "freezes"),
    (DIRECT_READ, "direct_read_bytes"),
    (READ_WAIT, "read_waited_seconds"),
    (EVENTS, "tracker_events"),
    (RUNS, "tracker_runs"),
    (RUN_SECONDS, "tracker_run_seconds"),
    (RUNS_MISSED, "tracker_runs_missed"),
    (HEALED, "tracker_healed"),
)


class AgentMetrics(Metrics):
    """An agent's metrics; also what a transport tells its traffic."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._agent: Agent | None = None
        self._party: Party | None = None
        self._counted: dict[tuple[Family, tuple[str, ...]], float] = {}
        self.bytes_by_network: dict[str, list[int]] = {}
        """Received and sent, by network, since the start."""
        super().__init__(FAMILIES, self._ask)

    def watch(self, agent: Agent) -> None:
        """Show this agent."""
        self._agent = agent
        agent.observe_ack = lambda seconds: self.observe(ACK, seconds, (self._source,))

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
            *self._tracker_counts(agent.capture.details()),
        ]
        if self._party is not None:
            commands = self._party.dispatcher
            done = dict(commands.done).items()
            counts += [(COMMANDS, (verb, "done" if ok else "failed"), count) for (verb, ok), count in done]
            counts += [(IGNORED, (reason,), count) for reason, count in dict(commands.ignored).items()]
        for family, labels, now in counts:
            self.count(family, max(0.0, now - self._counted.get((family, labels), 0.0)), (self._source, *labels))
            self._counted[family, labels] = now

    @staticmethod
    def _tracker_counts(details: Mapping[str, object]) -> Iterator[tuple[Family, tuple[str, ...], float]]:
        """What only some trackers count. Every reason is there from the start, so that an increase can be seen."""
        for family, key in _COUNTS:
            if isinstance(value := details.get(key), int | float):
                yield family, (), value
        if isinstance(failed := details.get("cuts_failed"), dict):
            yield from ((CUTS_FAILED, (reason,), failed.get(reason, 0)) for reason in sorted(STALL_REASONS))
        for direction in ("out", "in"):
            if isinstance(value := details.get(f"tracker_passed_{direction}"), int):
                yield PASSED, (direction,), value

    def _ask(self) -> Iterable[Sample]:
        agent, source = self._agent, self._source
        if agent is None:
            return
        if agent.pipeline is not None:
            agent.pipeline.refresh_lag()
        facts = agent.facts()
        state, reason = derive_state(facts)
        yield Sample(LAG, agent.lag.lag_seconds, (source,))
        yield Sample(FENCED, float(agent.is_fenced), (source,))
        if self._party is not None:
            yield Sample(BROKER, float(self._party.link.is_connected), (source,))
        yield Sample(BACKLOG, facts.backlog_bytes, (source,))
        for each in ReplicationState:
            yield Sample(STATE, float(each is state), (source, each.value))
        for code in REASONS:
            if code != "none":
                yield Sample(REASON, float(code == reason), (source, code))
        for volume in agent.capture.volumes.values():
            yield Sample(VOLUME_SIZE, volume.size_bytes, (source, volume.name))
        details = agent.capture.details()
        for family, key in _FIGURES:
            if isinstance(value := details.get(key), int | float):
                yield Sample(family, value, (source,))
        if agent.traffic.payload_bytes:
            yield Sample(COMPRESSION, agent.traffic.plain_bytes / agent.traffic.payload_bytes, (source,))
