"""What the REST API takes and gives, as classes: the OpenAPI document is made from them and from the engine's values.

Times are nanoseconds since the epoch; 0 means: has not happened.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from drengine.failover.runbook.values import Mode

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
RUN_PATTERN = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,120}$"
TEXT_CHARACTERS_MAX = 1 << 20

RunId = Annotated[str, Path(pattern=RUN_PATTERN, description="A run's id.")]
RunbookName = Annotated[str, Path(pattern=NAME_PATTERN, description="A runbook's name.")]
SourceName = Annotated[str, Path(pattern=NAME_PATTERN, description="A source's name.")]


class Body(BaseModel):
    """Of a request: unknown keys are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StartRun(Body):
    """A run to begin. The runbook is one that is kept: see PUT /runbooks/{name}."""

    mode: Annotated[Mode, Field(strict=False, description="What the run is for.")]
    runbook: str = Field(pattern=NAME_PATTERN)
    point: str = Field("", max_length=300, description="`latest`, a time, a point's id or its label.")
    force: bool = Field(False, description="Failover and migration: go on although a source can't be fenced.")
    hold: bool = Field(False, description="Drill: keep it running until somebody approves its end.")
    discard_divergent: bool = Field(False, description="Way home: do not keep what a source wrote on its own.")


class Ask(Body):
    """What somebody wants of a run."""

    note: str = Field("", max_length=2000, description="Kept with the request.")


class Approve(Ask):
    """An approval."""

    step: str = Field("", max_length=200, description="The step's id; not needed when only one is waiting.")


class Resume(Ask):
    """Going on with a run."""

    force: bool = Field(False, description="Go on although a source can't be fenced.")


class Rollback(Ask):
    """Undoing a run."""

    yes: bool = Field(False, description="Go on although the recovered side's writes are lost.")


class RunbookText(Body):
    """A runbook in YAML."""

    text: str = Field(max_length=TEXT_CHARACTERS_MAX)


class Problem(BaseModel):
    """Why a request failed: the same ids and hints as the commands give."""

    id: str
    message: str
    hint: str


class Health(BaseModel):
    """That the orchestrator answers."""

    version: str
    store: str


class Measured(BaseModel):
    """What a run achieved so far."""

    declared_ns: int
    recovered_ns: int
    rto_seconds: float | None
    outage_seconds: float | None
    rpo_seconds: float | None
    rpo_known_by: str
    fencing: dict[str, str]
    unfenced: list[str]
    bytes_shipped_back: int


class StepAnswer(BaseModel):
    """A step of a run."""

    id: str
    kind: str
    title: str
    wave: str
    source: str
    status: str
    critical: bool
    attempt: int
    began_ns: int
    ended_ns: int
    code: str
    message: str
    output: str


class RunAnswer(BaseModel):
    """A run as it is listed."""

    id: str
    mode: str
    runbook: str
    version: str
    sources: list[str]
    started_by: str
    created_ns: int
    state: str
    outcome: str
    reason: str
    finished_ns: int


class RunDetail(RunAnswer):
    """A run with its steps."""

    waiting_for: list[str]
    measured: Measured
    steps: list[StepAnswer]


class EntryAnswer(BaseModel):
    """A line of a run's journal."""

    seq: int
    step: str
    event: str
    attempt: int
    at_ns: int
    payload: dict[str, Any]


class RequestAnswer(BaseModel):
    """What somebody asked of a run."""

    run: str
    kind: str
    step: str
    by: str
    note: str
    at_ns: int
    seq: int


class RunbookAnswer(BaseModel):
    """A version of a runbook."""

    name: str
    version: str
    at_ns: int
    text: str


class FindingAnswer(BaseModel):
    """A mistake in a runbook, or something worth a thought."""

    id: str
    line: int
    column: int
    path: str
    message: str
    hint: str
    warning: bool


class Validation(BaseModel):
    """What is to be said about a runbook."""

    valid: bool
    findings: list[FindingAnswer]


class Saved(Validation):
    """A runbook that is kept now."""

    name: str
    version: str


class PlannedAnswer(BaseModel):
    """A step that a run would have."""

    id: str
    kind: str
    title: str
    needs: list[str]
    source: str
    wave: str
    seconds: float
    measured: bool


class PlanAnswer(BaseModel):
    """What a run would do now; nothing is touched."""

    mode: str
    runbook: str
    predicted_seconds: float
    points: dict[str, dict[str, Any]]
    steps: list[PlannedAnswer]


class PartyAnswer(BaseModel):
    """An agent, a recovery host or a target, as it was last heard of."""

    kind: str
    name: str
    online: bool
    since_ns: int
    release: str
    reported_ns: int
    report: dict[str, Any] | None


class SourceAnswer(BaseModel):
    """A source in the store."""

    name: str
    generation: int
    active_branch: int


class PointAnswer(BaseModel):
    """A recovery point."""

    id: str
    branch: int
    sequence: int
    time_ns: int
    received_ns: int
    kind: str
    label: str
    verified_ns: int
    damaged: bool
    pinned: bool
    volumes: dict[str, int]


class BranchAnswer(BaseModel):
    """A branch of a source."""

    number: int
    parent: int
    base_sequence: int
    generation: int
    role: str
    label: str
    closed: bool
    active: bool


class ReportAnswer(BaseModel):
    """A report that is kept."""

    run: str
    verdict: str
    good: bool
    warnings: list[str]
    made_ns: int
