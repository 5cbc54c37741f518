"""The orchestrator's metrics: drills, what was measured and promised, runs, generations, fencing.

Everything is read from the registry and the store at each scrape, so it is the same whoever executed the runs, and
after a restart. What a finished run's journal says is remembered: it does not change until somebody goes on with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from drengine.config import parse_duration
from drengine.enrolment.keeper import Keeper
from drengine.enrolment.metrics import KeepingFamilies
from drengine.failover.daemon import Orchestrator
from drengine.failover.engine import Engine
from drengine.failover.measure import Measures, measure
from drengine.failover.reading.reader import read_runbook
from drengine.failover.registry.values import StoredRunbook
from drengine.failover.run import Event, JournalEntry, Outcome, RunRecord, RunState
from drengine.failover.runbook.values import Mode, Objectives
from drengine.failover.snapshot import observe
from drengine.failover.steps.fence import FENCE
from drengine.model.errors import DrengineError
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
FENCING_FAILURES = Family(
    "orchestrator_fencing_failures",
    GAUGE,
    f"Fence steps that failed or were forced without evidence, in the newest {RUNS_READ_MAX} runs.",
    ("runbook",),
)
DROPPED = Family(
    "orchestrator_messages_dropped_total",
    Kind.COUNTER,
    "Messages of parties that were not taken, by reason; docs/control.md tells them.",
    ("reason",),
)
CERTIFICATES = CredentialFamilies.of("orchestrator")
KEEPING = KeepingFamilies.of("orchestrator")

FAMILIES: tuple[Family, ...] = (
    *(value for value in list(globals().values()) if isinstance(value, Family)),
    *CERTIFICATES.all,
    *KEEPING.both,
)


@dataclass(frozen=True, slots=True)
class _Read:
    """What a run's journal says."""

    measures: Measures
    fencing_failures: int


class OrchestratorMetrics:
    """Answers scrapes, in the scraper's thread."""

    def __init__(self, engine: Engine, credentials: Sequence[Credentials] = ()) -> None:
        self.keepers: tuple[Keeper, ...] = ()
        self._engine, self._credentials = engine, credentials
        self._read: dict[tuple[str, ...], _Read] = {}
        self._objectives: dict[tuple[str, str], Objectives | None] = {}
        self.metrics = Metrics(FAMILIES, self._gauges)

    def _gauges(self) -> Iterator[Sample]:
        engine = self._engine
        yield from CERTIFICATES.samples((*engine.agents.credentials, *self._credentials))
        yield from KEEPING.samples(self.keepers)
        for reason, count in list(engine.agents.dropped.items()):
            yield Sample(DROPPED, count, (reason.value,))
        stored = engine.registry.runbooks()
        runs = engine.registry.runs(limit=RUNS_READ_MAX)
        self._read = {_key(run): self._look(run) for run in runs}
        for runbook in stored:
            yield from self._drills(runbook)
            yield from self._promised(runbook)
        yield from self._measured(runs)
        yield from self._counted()
        for source in engine.site.store.sources():
            yield Sample(GENERATION, source.generation, (source.name,))
        failures = {runbook.name: 0 for runbook in stored}
        for run in runs:
            failures[run.runbook] = failures.get(run.runbook, 0) + self._read[_key(run)].fencing_failures
        for name, count in failures.items():
            yield Sample(FENCING_FAILURES, count, (name,))

    def _drills(self, runbook: StoredRunbook) -> Iterator[Sample]:
        drills = self._engine.registry.runs(mode=Mode.DRILL, runbook=runbook.name, limit=10)
        last = next((run for run in drills if run.state is RunState.FINISHED), None)
        since_ns = last.finished_ns if last else runbook.at_ns
        age = max(0.0, (self._engine.site.clock.now_ns() - since_ns) / 1e9)
        yield Sample(DRILL_AGE, age, (runbook.name,))
        yield Sample(DRILL_PASSED, 1 if last and last.outcome is Outcome.COMPLETED else 0, (runbook.name,))

    def _promised(self, runbook: StoredRunbook) -> Iterator[Sample]:
        key = runbook.name, runbook.version
        if key not in self._objectives:
            try:
                self._objectives[key] = read_runbook(runbook.text, where=runbook.name).objectives
            except DrengineError:  # of another version of this program: its promises are not known
                self._objectives[key] = None
        objectives = self._objectives[key]
        if objectives is not None:
            yield Sample(RTO_OBJECTIVE, parse_duration(objectives.rto), (runbook.name,))
            yield Sample(RPO_OBJECTIVE, parse_duration(objectives.rpo), (runbook.name,))

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

    def _look(self, run: RunRecord) -> _Read:
        known = self._read.get(_key(run))
        if known is not None and run.state is RunState.FINISHED:
            return known
        entries = self._engine.registry.entries(run.id)
        failed = sum(1 for each in entries if _is_fence_failure(each))
        return _Read(measure(observe(entries, (), (), 0)), failed)


def _key(run: RunRecord) -> tuple[str, ...]:
    """Differs when somebody went on with a run after it was finished."""
    return run.id, run.state.value, run.outcome.value, run.reason, str(run.finished_ns)


def _is_fence_failure(entry: JournalEntry) -> bool:
    if entry.event is not Event.RESULT or not entry.step.startswith(FENCE.step_id("") + ":"):
        return False
    data = entry.payload.get("data") or {}
    return not entry.payload.get("ok") or data.get("evidence") == "none"


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
    metrics = made.metrics
    endpoint = MetricsEndpoint(address.host, address.port, metrics, not_ready=lambda: "")
    try:
        yield endpoint.port
    finally:
        endpoint.close()
