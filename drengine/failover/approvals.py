"""What an approval is about: a digest over the run, its runbook, its plan and the points that were chosen.

An approval counts for the digest that it names and for no other, so what was approved is what is carried out. It is
asked again when a point is chosen or changed meanwhile, and where somebody changed the runbook's text in the registry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drengine.failover.options import read_options
from drengine.failover.run import Request, RequestKind, RunRecord
from drengine.failover.steps.approval import APPROVAL, Approval
from drengine.failover.steps.kinds import step_json
from drengine.failover.steps.step import PlannedStep

FORCE_STEP = "approve-force"
"""The step that asks whether a run may be forced; also what is approved before a run is resumed by force."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a run is, beyond its journal.

    Attributes:
        run: its id.
        runbook_sha256: of the text that it was begun with.
        started_by: who must not approve it.
        options: as the registry keeps them.
        force_by: who has to approve that it is forced; empty: nobody is asked.
    """

    run: str
    runbook_sha256: str
    started_by: str
    options: Mapping[str, Any] = field(default_factory=dict)
    force_by: tuple[str, ...] = ()


def subject_of(run: RunRecord, runbook_sha256: str) -> Subject:
    """What is approved of a run."""
    force_by = tuple(read_options(run.options).force_by)
    return Subject(run.id, runbook_sha256, run.started_by, run.options, force_by)


def text_sha256(text: str) -> str:
    """Of a runbook's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(subject: Subject, steps: Iterable[PlannedStep[Any]], points: Mapping[str, Any]) -> str:
    """The digest, in hex; `points` by source as far as they were chosen."""
    parts = {
        "run": subject.run,
        "runbook": subject.runbook_sha256,
        "options": dict(subject.options),
        "plan": [step_json(step) for step in steps],
        "points": dict(points),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def asked_steps(steps: Iterable[PlannedStep[Any]], subject: Subject) -> dict[str, PlannedStep[Any]]:
    """The steps that people may approve, by id."""
    asked = {step.id: step for step in steps if step.kind.asks_people}
    if subject.force_by:
        asked.setdefault(FORCE_STEP, force_step(subject.force_by))
    return asked


def force_step(by: Collection[str], needs: tuple[str, ...] = ()) -> PlannedStep[Approval]:
    """Asks whether a run may go on without fencing, or overwrite what a source wrote on its own."""
    settings = Approval(prompt="force this run", by=list(by))
    title = APPROVAL.title("", settings)
    return PlannedStep(id=FORCE_STEP, kind=APPROVAL, title=title, settings=settings, needs=needs)


def approvals_of(
    steps: Iterable[PlannedStep[Any]], requests: Iterable[Request], subject: Subject, digest: str
) -> dict[str, Request]:
    """Which step was approved, by the first who may and for this digest."""
    found: dict[str, Request] = {}
    asked = asked_steps(steps, subject)
    for each in requests:
        fits = each.kind is RequestKind.APPROVE and each.step in asked and each.digest == digest
        if fits and may_approve(asked[each.step], each.by, each.roles, subject.started_by):
            found.setdefault(each.step, each)
    return found


def may_force(by: str, force_by: Collection[str], approvals: Mapping[str, Request]) -> bool:
    """Whether this person may resume a run by force: somebody else has approved it, where the runbook asks for that."""
    given = approvals.get(FORCE_STEP)
    return not force_by or (given is not None and given.by.casefold() != by.casefold())


def may_approve(step: PlannedStep[Any], by: str, roles: Collection[str], started_by: str) -> bool:
    """Whether this person may approve this step of a run that somebody else began."""
    return isinstance(step.settings, Approval) and step.settings.allows(by, roles, started_by)
