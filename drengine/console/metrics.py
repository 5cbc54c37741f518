"""The orchestrator's metrics: drills, what was measured and promised, runs, generations, fencing.

Everything is read from the registry and the store at each scrape, so it is the same whoever executed the runs, and
after a restart. What a finished run's journal says is remembered: it does not change until somebody goes on with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

from drengine import __version__
from drengine.config import parse_duration
from drengine.console.needing import Told, told_by, unfenced_sources
from drengine.control.agents import NoAgents
from drengine.control.messages import PartyKind
from drengine.enrolment.keeper import Keeper
from drengine.enrolment.metrics import KeepingFamilies
from drengine.failover.daemon import Orchestrator
from drengine.failover.duties import Duty
from drengine.failover.engine import Engine
from drengine.failover.readiness import Readiness
from drengine.failover.reading.reader import read_runbook
from drengine.failover.registry.values import Party, StoredRunbook
from drengine.failover.run import Outcome, RunRecord, RunState
from drengine.failover.runbook.values import Mode, Runbook
from drengine.model.errors import DrengineError
from drengine.policy.kept import retired_sources
from drengine.telemetry import Family, Kind, Metrics, MetricsEndpoint, Sample
from drengine.transport.credentials import CredentialFamilies, Credentials

GAUGE = Kind.GAUGE
RUNS_READ_MAX = 500
"""The newest runs of which journals are read."""

_MEASURED = ("runbook", "mode")
DRILL_AGE = Family(
    "orchestrator_last_drill_age_seconds",
    GAUGE,
    "Seconds since a drill of the runbook last ended; since it was kept, if there never was one.",
    ("runbook",),
)
DRILL_PASSED = Family(
    "orchestrator_last_drill_passed", GAUGE, "1 if the last drill of the runbook passed, else 0.", ("runbook",)
)
RTO = Family("orchestrator_rto_seconds", GAUGE, "Recovery time that the last completed run measured.", _MEASURED)
RPO = Family("orchestrator_rpo_seconds", GAUGE, "Data loss at most that the last completed run measured.", _MEASURED)
RTO_OBJECTIVE = Family("orchestrator_rto_objective_seconds", GAUGE, "Recovery time that is promised.", ("runbook",))
RPO_OBJECTIVE = Family("orchestrator_rpo_objective_seconds", GAUGE, "Data loss at most that is promised.", ("runbook",))
RUNS = Family("orchestrator_runs", GAUGE, "Finished runs in the registry.", ("runbook", "mode", "outcome"))
UNFINISHED = Family(
    "orchestrator_runs_unfinished", GAUGE, "Runs that hold their sources.", ("runbook", "mode", "state")
)
GENERATION = Family("orchestrator_generation", GAUGE, "Generation that may write the source's replica.", ("source",))
UNFENCED = Family(
    "orchestrator_source_unfenced",
    GAUGE,
    "1 while a source may be writing beside what was recovered: its fencing failed, or was forced. Ends with a fence "
    "that gave evidence, and with a run that was rolled back or ended before anything was promoted.",
    ("runbook", "source"),
)
RUN_WAITING = Family(
    "orchestrator_run_waiting_seconds",
    GAUGE,
    "For how long a run has been waiting for a person: for an approval, or stopped for the reason.",
    ("runbook", "mode", "run", "state", "reason"),
)
RUN_SECONDS = Family(
    "orchestrator_run_seconds", GAUGE, "Since an unfinished run was begun.", ("runbook", "mode", "run")
)
SOURCE_RPO_OBJECTIVE = Family(
    "orchestrator_source_rpo_objective_seconds",
    GAUGE,
    "Data loss at most that a runbook promises for a source.",
    ("runbook", "source"),
)
SOURCE_SEEN = Family(
    "orchestrator_source_seen",
    GAUGE,
    "1 once the store has a recovery point of the source; 0 for one that a runbook names or whose agent has joined, "
    "and that has none.",
    ("source",),
)
BROKER = Family("orchestrator_broker_connected", GAUGE, "1 while there is a connection with the broker.")
PARTY_CONNECTED = Family(
    "orchestrator_party_connected",
    GAUGE,
    "1 while the broker sees the party (agent, recovery host), 0 while it does not; absent while we see no broker.",
    ("kind", "name"),
)
PARTY_CERTIFICATE = Family(
    "orchestrator_party_certificate_expiry_seconds",
    GAUGE,
    "Seconds until the certificate expires that a party shows the broker, as it said last; negative once it has.",
    ("kind", "name"),
)
PARTY_BUILD = Family(
    "orchestrator_party_build_info", GAUGE, "1, with the version that a party runs.", ("kind", "name", "version")
)
READY = Family(
    "orchestrator_ready",
    GAUGE,
    "1 if nothing would block a run of the runbook when the orchestrator looked last, else 0.",
    ("runbook", "mode"),
)
READY_AGE = Family(
    "orchestrator_ready_age_seconds",
    GAUGE,
    "Since the orchestrator last looked whether the runbook is ready; not while a run holds its sources.",
    ("runbook",),
)
CHECK_PASSED = Family(
    "orchestrator_check_passed",
    GAUGE,
    "1 if a check of the preflight passed for what it is about when the orchestrator looked last, else 0.",
    ("runbook", "check", "about", "severity"),
)
DISCOVERY_AGE = Family(
    "orchestrator_discovery_age_seconds",
    GAUGE,
    "Since Prometheus last asked what there is; absent before it ever did.",
)
BUILD = Family("orchestrator_build_info", GAUGE, "1, with the version that runs.", ("version",))
DROPPED = Family(
    "orchestrator_messages_dropped_total",
    Kind.COUNTER,
    "Messages of parties that were not taken, by reason; docs/control.md tells them.",
    ("reason",),
)
NOTIFICATIONS = Family(
    "orchestrator_notifications_total",
    Kind.COUNTER,
    "Notices of this process, one for each place they go to: sent, failed after all tries, dropped.",
    ("outcome",),
)
DUTY = Family(
    "orchestrator_duty",
    GAUGE,
    "1 while this orchestrator does for the site what one of several does: `policies` (telling agents their policy), "
    "`upgrades` (while an upgrade of agents is carried out); else 0.",
    ("duty",),
)
TAKEN_UP = Family(
    "orchestrator_runs_taken_up_total",
    Kind.COUNTER,
    "Runs that this process took up, because whoever executed them died, was cut off or handed them over.",
)
CERTIFICATES = CredentialFamilies.of("orchestrator")
KEEPING = KeepingFamilies.of("orchestrator")

FAMILIES: tuple[Family, ...] = (
    *(value for value in list(globals().values()) if isinstance(value, Family)),
    *CERTIFICATES.all,
    *KEEPING.both,
)


class OrchestratorMetrics:
    """Answers scrapes, in the scraper's thread."""

    def __init__(self, engine: Engine, credentials: Sequence[Credentials] = ()) -> None:
        self.keepers: tuple[Keeper, ...] = ()
        self.discovered_at: Callable[[], float | None] = lambda: None
        self.duties: Sequence[Duty] = ()
        self.taken_up: Callable[[], int] = lambda: 0
        self.readiness: Callable[[], Mapping[str, Readiness]] = dict
        self._engine, self._credentials = engine, credentials
        self._read: dict[tuple[str, ...], Told] = {}
        self._seen: set[str] = set()
        self._books: dict[tuple[str, str], Runbook | None] = {}
        self.metrics = Metrics(FAMILIES, self._gauges, self._counts)

    def _counts(self) -> Iterator[Sample]:
        yield Sample(TAKEN_UP, self.taken_up())
        for reason, count in list(self._engine.agents.dropped.items()):
            yield Sample(DROPPED, count, (reason.value,))
        for outcome in ("sent", "failed", "dropped"):
            yield Sample(NOTIFICATIONS, self._engine.notifier.counts[outcome], (outcome,))

    def _gauges(self) -> Iterator[Sample]:
        engine = self._engine
        yield Sample(BUILD, 1, (__version__,))
        discovered_at = self.discovered_at()
        if discovered_at is not None:
            yield Sample(DISCOVERY_AGE, engine.site.clock.monotonic() - discovered_at)
        yield from CERTIFICATES.samples((*engine.agents.credentials, *self._credentials))
        yield from KEEPING.samples(self.keepers)
        yield from self._ready()
        for duty in self.duties:
            yield Sample(DUTY, float(duty.is_ours), (duty.name,))
        stored = engine.registry.runbooks()
        runs = engine.registry.runs(limit=RUNS_READ_MAX)
        self._read = {_key(run): self._look(run) for run in runs}
        for runbook in stored:
            yield from self._drills(runbook)
            yield from self._promised(runbook)
        yield from self._measured(runs)
        yield from self._counted()
        yield from self._needing(runs)
        for labels, unfenced in unfenced_sources((run, self._read[_key(run)]) for run in runs).items():
            yield Sample(UNFENCED, float(unfenced), labels)
        retired = retired_sources(engine.config.store)
        parties = [each for each in engine.registry.parties() if each.name not in retired]
        yield from self._parties(parties)
        yield from self._sources(stored, parties, retired)

    def _ready(self) -> Iterator[Sample]:
        now_ns = self._engine.site.clock.now_ns()
        for name, found in self.readiness().items():
            yield Sample(READY, int(found.ready), (name, found.mode.value))
            yield Sample(READY_AGE, max(0.0, (now_ns - found.at_ns) / 1e9), (name,))
            for each in found.checks:
                yield Sample(CHECK_PASSED, int(each.ok), (name, each.check, each.about, each.severity.value))

    def _drills(self, runbook: StoredRunbook) -> Iterator[Sample]:
        drills = self._engine.registry.runs(mode=Mode.DRILL, runbook=runbook.name, limit=10)
        last = next((run for run in drills if run.state is RunState.FINISHED), None)
        since_ns = last.finished_ns if last else runbook.at_ns
        age = max(0.0, (self._engine.site.clock.now_ns() - since_ns) / 1e9)
        yield Sample(DRILL_AGE, age, (runbook.name,))
        yield Sample(DRILL_PASSED, 1 if last and last.outcome is Outcome.COMPLETED else 0, (runbook.name,))

    def _promised(self, runbook: StoredRunbook) -> Iterator[Sample]:
        book = self._book(runbook)
        if book is not None:
            rpo = parse_duration(book.objectives.rpo)
            yield Sample(RTO_OBJECTIVE, parse_duration(book.objectives.rto), (runbook.name,))
            yield Sample(RPO_OBJECTIVE, rpo, (runbook.name,))
            for source in book.sources:
                yield Sample(SOURCE_RPO_OBJECTIVE, rpo, (runbook.name, source))

    def _book(self, runbook: StoredRunbook) -> Runbook | None:
        """Read once for each version; None for one of another version of this program: its promises are not known."""
        key = runbook.name, runbook.version
        if key not in self._books:
            try:
                self._books[key] = read_runbook(runbook.text, where=runbook.name)
            except DrengineError:
                self._books[key] = None
        return self._books[key]

    def _needing(self, runs: list[RunRecord]) -> Iterator[Sample]:
        now_ns = self._engine.site.clock.now_ns()
        for run in runs:
            if run.state is RunState.FINISHED:
                continue
            yield Sample(RUN_SECONDS, _seconds(run.created_ns, now_ns), (run.runbook, run.mode.value, run.id))
            if run.state in (RunState.WAITING, RunState.STOPPED):
                labels = (run.runbook, run.mode.value, run.id, run.state.value, run.reason)
                yield Sample(RUN_WAITING, _seconds(self._read[_key(run)].newest_ns, now_ns), labels)

    def _parties(self, parties: list[Party]) -> Iterator[Sample]:
        agents = self._engine.agents
        if isinstance(agents, NoAgents):
            return
        is_connected = agents.link.is_connected
        yield Sample(BROKER, float(is_connected))
        for party in parties:
            yield Sample(PARTY_BUILD, 1, (party.kind.value, party.name, party.release))
            ends_ns = party.report.details.get("certificate_ends_ns") if party.report else None
            if isinstance(ends_ns, int):
                left = (ends_ns - self._engine.site.clock.now_ns()) / 1e9
                yield Sample(PARTY_CERTIFICATE, left, (party.kind.value, party.name))
            if is_connected:
                yield Sample(PARTY_CONNECTED, float(agents.is_online(party.name)), (party.kind.value, party.name))

    def _sources(self, stored: list[StoredRunbook], parties: list[Party], retired: frozenset[str]) -> Iterator[Sample]:
        store = self._engine.site.store
        known = [each for each in store.sources() if each.name not in retired]
        for source in known:
            yield Sample(GENERATION, source.generation, (source.name,))
        self._seen &= {source.name for source in known}
        new = (source for source in known if source.name not in self._seen)
        seen = self._seen = self._seen | {each.name for each in new if store.points(each.name)}
        wanted = {party.name for party in parties if party.kind is PartyKind.AGENT}
        wanted |= {source for runbook in stored if (book := self._book(runbook)) for source in book.sources}
        for name in sorted((wanted | seen) - retired):
            yield Sample(SOURCE_SEEN, float(name in seen), (name,))

    def _measured(self, runs: list[RunRecord]) -> Iterator[Sample]:
        seen: set[tuple[str, str]] = set()
        for run in runs:
            labels = (run.runbook, run.mode.value)
            if run.outcome is Outcome.COMPLETED and labels not in seen:
                seen.add(labels)
                measures = self._read[_key(run)].measures
                rto = measures.outage_seconds if run.mode is Mode.MIGRATION else measures.rto_seconds
                if rto is not None:
                    yield Sample(RTO, rto, labels)
                if measures.rpo_seconds is not None:
                    yield Sample(RPO, measures.rpo_seconds, labels)

    def _counted(self) -> Iterator[Sample]:
        unfinished: dict[tuple[str, str, str], int] = {}
        for each in self._engine.registry.run_counts():
            if each.state is RunState.FINISHED:
                yield Sample(RUNS, each.count, (each.runbook, each.mode.value, each.outcome.value))
            else:
                labels = (each.runbook, each.mode.value, each.state.value)
                unfinished[labels] = unfinished.get(labels, 0) + each.count
        for labels, count in unfinished.items():
            yield Sample(UNFINISHED, count, labels)

    def _look(self, run: RunRecord) -> Told:
        known = self._read.get(_key(run))
        if known is not None and run.state is RunState.FINISHED:
            return known
        return told_by(self._engine.registry.entries(run.id))


def _key(run: RunRecord) -> tuple[str, ...]:
    """Differs when somebody went on with a run after it was finished."""
    return run.id, run.state.value, run.outcome.value, run.reason, str(run.finished_ns)


def _seconds(since_ns: int, now_ns: int) -> float:
    return max(0.0, (now_ns - since_ns) / 1e9)


@asynccontextmanager
async def serve_metrics(orchestrator: Orchestrator) -> AsyncIterator[int]:
    """Serve at the configured address, if one is, until left; gives the port, or 0.

    Raises:
        DrengineError: METRICS_ADDRESS.
    """
    address = orchestrator.engine.config.metrics
    if address is None:
        yield 0
        return
    made = OrchestratorMetrics(orchestrator.engine, orchestrator.credentials)
    made.keepers = orchestrator.keepers
    made.duties, made.taken_up = orchestrator.duties, lambda: orchestrator.taken_up
    made.readiness = lambda: orchestrator.watch.newest
    made.discovered_at = lambda: orchestrator.discovered_at
    metrics = made.metrics
    endpoint = MetricsEndpoint(address.host, address.port, metrics, not_ready=lambda: "")
    try:
        yield endpoint.port
    finally:
        endpoint.close()
