"""What a run needs beside machines: approvers, secrets, a drill that proved it, sources that no other run holds."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from croniter import croniter

from drengine.config import parse_duration
from drengine.failover.preflight.check import Check, Look, Scene, apart
from drengine.failover.readiness import Checked, Severity
from drengine.failover.run import Outcome, RunState
from drengine.failover.runbook.values import Mode
from drengine.failover.steps.approval import APPROVAL, Approval
from drengine.failover.steps.step import PlannedStep
from drengine.failover.steps.texts import secret_of
from drengine.model.errors import DrengineError
from drengine.people.roles import TABLE, Action, Person, Role
from drengine.redaction import references_in
from drengine.terminal import human_duration

DRILLS_READ_MAX = 100

APPROVER = Check(
    "approver",
    "somebody may approve each step that asks for it, and that is not who began the run",
    "Give an account the role approver (`drengine user role NAME`), or name others in the step's `by`.",
)
REFERENCE = Check(
    "reference",
    "each ${env:...}, ${file:...} and ${credential:...} of the runbook stands for something here",
    "Give it to each process that executes the run, or mend its name in the runbook.",
)
DRILL = Check(
    "drill",
    "the last drill passed, and the last one that passed is younger than `objectives: drill`",
    "`drengine drill RUNBOOK`; `drengine reports list` tells of earlier ones.",
    Severity.WARNS,
)
SCHEDULE = Check(
    "schedule",
    "the runbook's schedule drills as often as `objectives: drill` promises, and the orchestrator knows it",
    "Drill more often, or promise less; a runbook is kept when it is run, or by PUT /runbooks/NAME.",
    Severity.WARNS,
)
FREE = Check(
    "sources-free",
    "no other run holds a source of the runbook",
    "`drengine runs` lists them: end that one, or go on with it.",
    vital=True,
)


async def look_for_approvers(scene: Scene) -> list[Checked]:
    """Whether each step that asks can be answered."""
    asking = [step for step in scene.steps if step.kind is APPROVAL and isinstance(step.settings, Approval)]
    if not asking:
        return []
    accounts = await apart(scene.door.accounts.all)
    people = [Person(each.name, "", frozenset(each.roles)) for each in accounts]
    people.append(Person("root", "unix:0", frozenset({Role.ADMIN})))
    return [_approvable(scene, step, people) for step in asking]


def _approvable(scene: Scene, step: PlannedStep[Approval], people: list[Person]) -> Checked:
    started_by = scene.case.started_by
    beginning = Action.DRILL if scene.case.mode is Mode.DRILL else Action.RECOVER
    beginners = [started_by] if started_by else [each.name for each in people if each.roles & TABLE[beginning]]
    approvers = {
        each.name
        for each in people
        for beginner in beginners
        if each.roles & TABLE[Action.APPROVE] and step.settings.allows(each.name, each.roles, beginner)
    }
    seen = f"{', '.join(sorted(approvers)) or 'nobody'} may approve {step.settings.prompt!r}"
    elsewhere = bool(scene.config.oidc.issuer)
    if elsewhere and not approvers:
        seen += " of those known here; whom the provider knows is not known before"
    return APPROVER.found(step.id, seen=seen, fault="" if approvers or elsewhere else seen)


async def look_for_secrets(scene: Scene) -> list[Checked]:
    """Whether references stand for something."""

    def look(way: str, what: str) -> Checked:
        try:
            secret_of(way, what)
        except DrengineError as error:
            return REFERENCE.found(f"{way}:{what}", fault=error.message, hint=error.hint)
        return REFERENCE.found(f"{way}:{what}", seen="it is there")

    wanted = sorted(set(references_in(msgspec.to_builtins(scene.case.runbook))))
    return await apart(lambda: [look(way, what) for way, what in wanted])


async def look_at_drills(scene: Scene) -> list[Checked]:
    """Whether a drill has proved it, and lately."""
    if scene.case.mode not in (Mode.FAILOVER, Mode.MIGRATION):
        return []
    book, now_ns = scene.case.runbook, scene.site.clock.now_ns()
    runs = await apart(lambda: scene.registry.runs(mode=Mode.DRILL, runbook=book.name, limit=DRILLS_READ_MAX))
    ended = [run for run in runs if run.state is RunState.FINISHED and run.outcome is not Outcome.ABORTED]
    passed = next((run for run in ended if run.outcome is Outcome.COMPLETED), None)
    if passed is None:
        return [DRILL.found(fault="no drill of this runbook has passed")]
    age, limit = (now_ns - passed.finished_ns) / 1e9, parse_duration(book.objectives.drill)
    seen = f"the last drill that passed, {passed.id}, ended {human_duration(age)} ago"
    if ended[0] is not passed:
        return [DRILL.found(fault=f"the last drill, {ended[0].id}, failed; {seen}")]
    return [DRILL.found(seen=seen, fault=f"{seen}; {human_duration(limit)} are promised" if age > limit else "")]


async def look_at_schedule(scene: Scene) -> list[Checked]:
    """Whether drills by themselves come often enough, and at all."""
    book = scene.case.runbook
    if not book.schedule:
        return []
    now = datetime.fromtimestamp(scene.site.clock.now_ns() / 1e9, UTC)
    moments = croniter(book.schedule, now)
    first = moments.get_next(float)
    gap, limit = moments.get_next(float) - first, parse_duration(book.objectives.drill)
    seen = f"a drill every {human_duration(gap)}"
    fault = f"{seen}, and {human_duration(limit)} are promised" if gap > limit else ""
    kept = await apart(lambda: [each.name for each in scene.registry.runbooks()])
    if book.name not in kept:
        fault = "the orchestrator does not know this runbook yet, so it drills nothing"
    return [SCHEDULE.found(seen=seen, fault=fault)]


async def look_at_runs(scene: Scene) -> list[Checked]:
    """Whether the sources are free."""
    runs = await apart(lambda: scene.registry.runs(unfinished=True))
    holding = [run for run in runs if run.id != scene.case.run and set(run.sources) & set(scene.sources)]
    told = ", ".join(f"{run.id} ({run.mode.value}, {run.state.value})" for run in holding)
    return [FREE.found(seen="no other run", fault=f"held by {told}" if holding else "")]


LOOKS = (
    Look((APPROVER,), look_for_approvers),
    Look((REFERENCE,), look_for_secrets),
    Look((DRILL,), look_at_drills),
    Look((SCHEDULE,), look_at_schedule),
    Look((FREE,), look_at_runs),
)
