"""What people and programs may order and ask: each is decided here, once, whoever asks and by whichever way.

The command line and REST parse what was asked, call an order, and give its answer. An order checks everything before
it notes anything, so that nobody waits for something that can't happen. Orders that begin or change a run return its
record: whoever gave the order carries it out, or sees that somebody does.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from drengine.failover.advice import NO_WAY_BACK
from drengine.failover.answers import (
    Party,
    Plan,
    Run,
    RunDetail,
    Saved,
    Validation,
    entry_answer,
    party_answer,
    request_answer,
    run_answer,
    run_detail,
    validation,
)
from drengine.failover.approvals import asked_steps, may_approve, may_force
from drengine.failover.conditions import check_commit, check_rollback, require_first
from drengine.failover.config import OrchestratorConfig
from drengine.failover.drivers.hydrated import current_hydration
from drengine.failover.engine import Engine, open_engine
from drengine.failover.errors import (
    APPROVAL_NEEDED,
    APPROVAL_STALE,
    BAD_APPROVAL,
    NOT_READY,
    NOT_STARTED,
    RUN_ABORTED,
    RUN_FAILED,
    RUN_STATE,
    RUN_WAITING,
    SELF_APPROVAL,
    UNFENCED,
    WOULD_LOSE,
    naming_run,
)
from drengine.failover.executor import Watcher, resume_note
from drengine.failover.moving import read_onto
from drengine.failover.options import RunOptions, read_options
from drengine.failover.preflight.examine import require_despite
from drengine.failover.preview import Loss, losses, preview
from drengine.failover.readiness import Readiness
from drengine.failover.reading.reader import Examined, RunbookError, examine
from drengine.failover.registry.errors import LEASE_HELD
from drengine.failover.replan import replan
from drengine.failover.run import (
    COMMITTED,
    Event,
    JournalEntry,
    Outcome,
    Request,
    RequestKind,
    RunRecord,
    RunState,
    Status,
    run_lease,
)
from drengine.failover.runbook.errors import BAD_RUNBOOK, UNKNOWN_RUNBOOK
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.snapshot import REPLANNED, Snapshot, StepState, plan_payload
from drengine.failover.steps.approval import APPROVAL
from drengine.failover.steps.launch import LAUNCH
from drengine.failover.steps.step import PlannedStep
from drengine.failover.steps.texts import check_secrets
from drengine.model.errors import DrengineError
from drengine.people.door import Door
from drengine.people.roles import NOBODY, Action, Person, permit
from drengine.terminal import human_time

P = ParamSpec("P")
T = TypeVar("T")


def _of_run(order: Callable[Concatenate[Orders, str, P], T]) -> Callable[Concatenate[Orders, str, P], T]:
    """For what is ordered or asked of one run: `last` is the newest one, and a refusal's hint names the run itself."""

    @functools.wraps(order)
    def ordered(self: Orders, id: str, /, *given: P.args, **named: P.kwargs) -> T:
        id = self.named(id)
        try:
            return order(self, id, *given, **named)
        except DrengineError as error:
            raise naming_run(error, id) from error

    return ordered


def _told_if_refused(did: str) -> Callable[[Callable[Concatenate[Orders, P], T]], Callable[Concatenate[Orders, P], T]]:
    """For an order: the audit log tells of it also when it is refused."""

    def decorate(order: Callable[Concatenate[Orders, P], T]) -> Callable[Concatenate[Orders, P], T]:
        @functools.wraps(order)
        def ordered(self: Orders, /, *given: P.args, **named: P.kwargs) -> T:
            try:
                return order(self, *given, **named)
            except DrengineError as error:
                subject = next((str(each) for each in given if not isinstance(each, Mode)), "")
                self.engine.registry.witness.refused(self.who, did, subject, error)
                raise

        return ordered

    return decorate


@dataclass(frozen=True, slots=True)
class Orders:
    """Orders and questions about runs and runbooks, to one engine, by one person, whose roles are asked first.

    Attributes:
        who: as proved; NOBODY may order nothing.
    """

    engine: Engine
    who: Person = NOBODY

    # ---- orders ----------------------------------------------------------------------------------------------

    @_told_if_refused("run.begin")
    def begin(
        self,
        mode: Mode,
        runbook: Path | str,
        *,
        point: str = "",
        force: bool = False,
        hold: bool = False,
        discard_divergent: bool = False,
        again: bool = False,
        despite: Sequence[str] = (),
        onto: Sequence[str] = (),
        disks: Sequence[str] = (),
    ) -> RunRecord:
        """Begin a run; nothing is done before it is executed.

        Args:
            mode: what it is for.
            runbook: its file, or the name under which it was kept.
            point: `latest`, a time, a point's id or its label; empty: as the runbook says.
            force: go on although a source can't be fenced.
            hold: keep what a drill launched until somebody approves its end.
            discard_divergent: on the way home, do not keep what a source wrote on its own.
            again: fail over although sources run here already; what runs is stopped and started again.
            despite: checks past which it goes on although they do not pass.
            onto, disks: on the way home, hosts that become the homes of sources, see `read_onto`.

        Raises:
            DrengineError: NOT_PERMITTED; UNKNOWN_CHECK, BAD_ONTO; BAD_RUNBOOK, UNKNOWN_RUNBOOK, UNKNOWN_SOURCE;
                RUN_STATE where there is no way home or none is needed; FAILED_OVER_ALREADY; RUN_ACTIVE when an
                unfinished run holds one of the sources.
        """
        permit(self.who, _action(mode))
        if force or discard_divergent or despite:
            permit(self.who, Action.FORCE)
        require_despite(despite)
        if isinstance(runbook, Path) and not self._is_kept(*self.engine.read_runbook(runbook)):
            permit(self.who, Action.WRITE_RUNBOOKS)
        options = RunOptions(
            point=point,
            force=force,
            hold=hold,
            discard_divergent=discard_divergent,
            despite=list(despite),
            onto=read_onto(mode, self.engine.read_runbook(runbook)[0], onto, disks) if onto or disks else {},
        )
        if mode is Mode.FAILOVER and not again:
            require_first(self.engine, self.engine.read_runbook(runbook)[0])
        book, version = self.engine.load_runbook(runbook)
        return self.engine.create_run(mode, book, version, self.who, options)

    @_of_run
    @_told_if_refused("run.approve")
    def approve(self, id: str, *, step: str = "", note: str = "", digest: str = "") -> Request:
        """Approve a step, by default the one that is waiting.

        Args:
            id, note: in which run, and why.
            step: which; `approve-force` also before a run that is blocked is resumed by force.
            digest: what he has seen, `RunDetail.digest`; empty: whatever it is now.

        Raises:
            DrengineError: NOT_PERMITTED, UNKNOWN_RUN; BAD_APPROVAL when he may not, or nothing such is waiting;
                SELF_APPROVAL, APPROVAL_STALE.
        """
        permit(self.who, Action.APPROVE)
        run, snapshot, subject = self.engine.look(id)
        waiting = [each.step for each in snapshot.steps if each.step.kind is APPROVAL and each.status is Status.WAITING]
        open_ = [each for each in waiting if each.id not in snapshot.approvals]
        asked = asked_steps([each.step for each in snapshot.steps], subject)
        wanted = [asked[step]] if step in asked else [] if step else open_
        if len(wanted) != 1:
            known = ", ".join(each.id for each in open_) or "none"
            raise DrengineError(
                BAD_APPROVAL, f"{step or 'exactly one step'} does not wait for approval; waiting: {known}"
            )
        _check_approver(wanted[0], run, self.who)
        if digest and digest != snapshot.digest:
            message = f"what would be carried out now is not what has the digest {digest[:16]!r}..."
            raise DrengineError(APPROVAL_STALE, message)
        made = self.engine.registry.request(
            id, RequestKind.APPROVE, wanted[0].id, self.who, note, digest=snapshot.digest
        )
        return request_answer(made)

    @_of_run
    @_told_if_refused("run.abort")
    def abort(self, id: str, *, note: str = "") -> RunRecord:
        """End a run where it is.

        Raises:
            DrengineError: UNKNOWN_RUN; RUN_STATE when it is finished or is being rolled back.
        """
        run, snapshot = self._look_as(id)
        if run.state is RunState.FINISHED:
            raise DrengineError(RUN_STATE, f"run {id} is {run.state.value} ({run.outcome.value}): nothing to abort")
        if snapshot.rolling_back:
            raise DrengineError(RUN_STATE, f"run {id} is being rolled back; a rollback is not left half done")
        self.engine.registry.request(id, RequestKind.ABORT, "", self.who, note)
        return run

    @_of_run
    @_told_if_refused("run.resume")
    def resume(
        self, id: str, *, force: bool = False, done: str = "", runbook: Path | str = "", despite: Sequence[str] = ()
    ) -> RunRecord:
        """Go on with a run: one that stopped tries again what failed.

        Args:
            id: of the run.
            force: go on without fencing.
            done: id of a failed step that was done by hand.
            runbook: a changed one, its file or its name; what is done stays done.
            despite: checks past which it goes on although they do not pass.

        Raises:
            DrengineError: NOT_PERMITTED, UNKNOWN_CHECK, UNKNOWN_RUN; RUN_STATE when it is finished, or the step is none
                that could be done by hand; APPROVAL_NEEDED; BAD_RUNBOOK, RUNBOOK_UNFIT.
        """
        run, snapshot = self._look_as(id)
        if run.state is RunState.FINISHED:
            raise DrengineError(RUN_STATE, f"run {id} is finished ({run.outcome.value}): there is nothing to resume")
        if done:
            failed = [each.step for each in snapshot.steps if each.status is Status.FAILED]
            by_hand = [step.id for step in failed if step.kind.by_hand]
            if done not in by_hand:
                known = ", ".join(by_hand) or "none"
                raise DrengineError(RUN_STATE, f"{done!r} can't be called done; failed steps that can: {known}")
        if despite:
            permit(self.who, Action.FORCE)
            require_despite(despite)
        if force:
            permit(self.who, Action.FORCE)
            force_by = read_options(run.options).force_by
            if not may_force(self.who.name, force_by, snapshot.approvals):
                message = f"run {id} is not forced before somebody else has approved it: {' or '.join(force_by)}"
                raise DrengineError(APPROVAL_NEEDED, message)
        if runbook:
            run = self._replan(run, runbook)
        if run.state is RunState.STOPPED:
            self.engine.registry.request(id, RequestKind.RESUME, done, self.who, resume_note(force, despite))
        return run

    def _replan(self, run: RunRecord, runbook: Path | str) -> RunRecord:
        """Give a stopped run a changed runbook; see `replan`. Who did is kept before anything changes."""
        registry, id = self.engine.registry, run.id
        if run.state is not RunState.STOPPED:
            raise DrengineError(
                RUN_STATE, f"run {id} is {run.state.value}: only one that stopped takes a changed runbook"
            )
        book, text = self.engine.read_runbook(runbook)
        if isinstance(runbook, Path) and not self._is_kept(book, text):
            permit(self.who, Action.WRITE_RUNBOOKS)
        examined = self._examined(text)
        if examined.runbook is None:
            raise RunbookError(str(runbook), examined.findings)
        check_secrets(book)
        lease = registry.acquire_lease(run_lease(id), self.engine.owner, self.engine.config.lease)
        try:
            run, snapshot, _ = self.engine.look(id)  # nobody goes on with it now
            steps = replan(run, book, snapshot)
            version = registry.save_runbook(book.name, text)
            registry.request(id, RequestKind.REPLAN, "", self.who, f"runbook {version}, before it {run.version}")
            payload = plan_payload(steps, REPLANNED, by=self.who.name, version=version, formerly=run.version)
            entry = JournalEntry("", Event.DECISION, 0, self.engine.site.clock.now_ns(), payload)
            registry.replan_run(id, token=lease.token, version=version, entry=entry)
        finally:
            registry.release_lease(lease)
        return registry.run(id)

    @_of_run
    @_told_if_refused("run.rollback")
    def rollback(self, id: str, *, yes: bool = False, note: str = "") -> RunRecord:
        """Undo everything that a run did.

        Args:
            id, note: which run, and why.
            yes: go on although what was written on the recovered side stays behind on its branch.

        Raises:
            DrengineError: UNKNOWN_RUN; RUN_STATE when it can't be rolled back; WOULD_LOSE.
        """
        run, snapshot = self._look_as(id)
        check_rollback(self.engine, run, snapshot)
        lost = losses(self.engine, run)
        if lost and not yes:
            raise DrengineError(WOULD_LOSE, "; ".join(map(told_loss, lost)))
        self.engine.registry.request(id, RequestKind.ROLLBACK, "", self.who, note)
        return run

    @_of_run
    @_told_if_refused("run.commit")
    def commit(self, id: str, *, note: str = "") -> RunDetail:
        """Accept a failover: it can't be rolled back any more, only failed back.

        Raises:
            DrengineError: UNKNOWN_RUN, LEASE_HELD; RUN_STATE unless it is a failover that was completed.
        """
        registry = self.engine.registry
        permit(self.who, Action.RECOVER)
        check_commit(self.engine, id)
        lease = registry.acquire_lease(run_lease(id), self.engine.owner, self.engine.config.lease)
        try:
            check_commit(self.engine, id)  # nobody can begin a rollback now
            registry.request(id, RequestKind.COMMIT, "", self.who, note)
            registry.update_run(id, token=lease.token, reason=COMMITTED)
        finally:
            registry.release_lease(lease)
        return self.show(id)

    @_told_if_refused("runbook.keep")
    def keep(self, name: str, text: str) -> Saved:
        """Keep a runbook under its name; refused when it could not be run.

        Raises:
            DrengineError: NOT_PERMITTED, BAD_RUNBOOK.
        """
        permit(self.who, Action.WRITE_RUNBOOKS)
        examined = self._examined(text)
        if examined.runbook is None:
            raise RunbookError(name, examined.findings)
        if examined.runbook.name != name:
            message = f"the runbook's own name is {examined.runbook.name!r}, not {name!r}"
            raise DrengineError(BAD_RUNBOOK, message, hint="Put it under its own name.")
        self.engine.registry.witness.keeping(self.who, name, text)
        version = self.engine.registry.save_runbook(name, text)
        return Saved(valid=True, findings=validation(examined).findings, name=name, version=version)

    async def carry_out(
        self, run: RunRecord, *, wait: bool = True, watch: Watcher, patient: bool = False, leave: bool = False
    ) -> RunDetail | None:
        """Carry a run out here, see `Engine.execute`.

        Returns:
            the run as it then stands; None where somebody else executes it, if it may be left to them.
        """
        try:
            await self.engine.execute(run, wait=wait, watch=watch, patient=patient)
        except DrengineError as error:
            if error.kind is not LEASE_HELD or not leave:
                raise naming_run(error, run.id) from error
            return None
        return await asyncio.to_thread(self.show, run.id)

    # ---- questions -------------------------------------------------------------------------------------------

    def named(self, id: str) -> str:
        """A run's id; that of the newest run for `last`.

        Raises:
            DrengineError: UNKNOWN_RUN, there was none yet.
        """
        return self.engine.registry.named(id)

    @_of_run
    def show(self, id: str) -> RunDetail:
        """A run with its steps, as it stands now.

        Raises:
            DrengineError: UNKNOWN_RUN.
        """
        run, snapshot, _ = self.engine.look(id)
        return run_detail(run, replace(snapshot, steps=tuple(self._now(each) for each in snapshot.steps)))

    def _now(self, state: StepState) -> StepState:
        """A launch with how far its disks are now: they go on becoming local when the step is long done."""
        instance = (state.data or {}).get("instance")
        if state.step.kind is not LAUNCH or not instance:
            return state
        now = current_hydration(self.engine.site.directory / instance)
        return replace(state, data={**state.data, "details": {**state.data["details"], **now}})

    def runs(self, **wanted: Any) -> list[Run]:
        """Runs, newest first; `wanted` narrows them down, see `Registry.runs`."""
        return [run_answer(each, self.engine.snapshot(each.id)) for each in self.engine.registry.runs(**wanted)]

    @_of_run
    def journal(self, id: str, after: int = 0) -> list[JournalEntry]:
        """What happened in a run, in order, behind that number.

        Raises:
            DrengineError: UNKNOWN_RUN.
        """
        self.engine.registry.run(id)
        return [entry_answer(each) for each in self.engine.registry.entries(id, after)]

    @_of_run
    def requests(self, id: str, after: int = 0) -> list[Request]:
        """What people asked of a run, in order, behind that number.

        Raises:
            DrengineError: UNKNOWN_RUN.
        """
        self.engine.registry.run(id)
        return [request_answer(each) for each in self.engine.registry.requests(id, after)]

    def parties(self) -> list[Party]:
        """Agents, recovery hosts and targets, as they were last heard of."""
        return [party_answer(each) for each in self.engine.registry.parties()]

    def plan(
        self, mode: Mode, runbook: Path | str, *, point: str = "", onto: Sequence[str] = (), disks: Sequence[str] = ()
    ) -> Plan:
        """What a run would do now; nothing is touched.

        Raises:
            DrengineError: as `begin`, but for RUN_ACTIVE.
        """
        book, _ = self.engine.read_runbook(runbook)
        options = RunOptions(point=point, onto=read_onto(mode, book, onto, disks))
        readiness = self.ready(mode, runbook, point=point, onto=onto, disks=disks)
        return replace(preview(self.engine, mode, book, options), checks=readiness.checks)

    def ready(
        self, mode: Mode, runbook: Path | str, *, point: str = "", onto: Sequence[str] = (), disks: Sequence[str] = ()
    ) -> Readiness:
        """Whether a run of a runbook would go through, as far as can be known before; nothing is changed.

        Not for the thread of the engine's event loop.

        Raises:
            DrengineError: BAD_RUNBOOK, UNKNOWN_RUNBOOK; BAD_ONTO.
        """
        book, _ = self.engine.read_runbook(runbook)
        options = RunOptions(point=point, onto=read_onto(mode, book, onto, disks))
        looking = self.engine.readiness(mode, book, options)
        if self.engine.loop is None:
            return asyncio.run(looking)
        return asyncio.run_coroutine_threadsafe(looking, self.engine.loop).result()

    def validate(self, text: str) -> Validation:
        """What is wrong with a runbook; nothing is kept."""
        return validation(self._examined(text))

    def giving_up(self, run: RunRecord) -> list[str]:
        """What a rollback leaves behind on the recovered side's branches, a line for each source."""
        return [told_loss(each) for each in losses(self.engine, run)]

    @staticmethod
    def failure(run: Run) -> DrengineError | None:
        """How a run ended, or why it stopped, as an error for scripts; None if it is completed."""
        if run.outcome is Outcome.COMPLETED:
            return None
        if found := next((each for each in getattr(run, "steps", ()) if each.code == NOT_READY.id), None):
            return DrengineError(NOT_READY, f"run {run.run}: {found.message}", hint=_past_preflight(run))
        kinds = {
            Outcome.BLOCKED: UNFENCED,
            Outcome.ABORTED: RUN_ABORTED,
            Outcome.NONE: RUN_WAITING,
            Outcome.HANDED_BACK: NOT_STARTED,
        }
        message = f"run {run.run} is {run.state.value}: {run.outcome.value or run.reason}".rstrip(": ")
        kind = kinds.get(run.outcome, RUN_FAILED)
        hint = _what_now(run) if kind is RUN_FAILED else kind.hint
        return naming_run(DrengineError(kind, message, hint=hint), run.run)

    def _look_as(self, id: str) -> tuple[RunRecord, Snapshot]:
        """A run that is to be changed.

        Raises:
            DrengineError: NOT_PERMITTED, UNKNOWN_RUN.
        """
        permit(self.who, Action.LOOK)
        run, snapshot, _ = self.engine.look(id)
        permit(self.who, _action(run.mode))
        return run, snapshot

    def _is_kept(self, book: Runbook, text: str) -> bool:
        """Whether this is the runbook that was kept under its name."""
        try:
            return self.engine.registry.runbook(book.name).text == text
        except DrengineError as error:
            if error.kind is not UNKNOWN_RUNBOOK:
                raise
            return False

    def _examined(self, text: str) -> Examined:
        return examine(text, drivers=self.engine.site.drivers)


def _action(mode: Mode) -> Action:
    return Action.DRILL if mode is Mode.DRILL else Action.RECOVER


def _check_approver(step: PlannedStep[Any], run: RunRecord, who: Person) -> None:
    """Raises SELF_APPROVAL, BAD_APPROVAL."""
    if may_approve(step, who.name, who.roles, run.started_by):
        return
    if may_approve(step, who.name, who.roles, ""):
        raise DrengineError(SELF_APPROVAL, f"{who} began run {run.id}: somebody else approves {step.id}")
    allowed = ", ".join(step.settings.by)
    raise DrengineError(BAD_APPROVAL, f"{who} may not approve {step.id}; {allowed} may")


def _past_preflight(run: Run) -> str:
    """What can be done about a run that was stopped before it did anything."""
    if run.state is RunState.FINISHED:
        return f"Nothing was done. Mend what blocks; `drengine ready {run.runbook}` looks again."
    again = f"`drengine run resume {run.run}`"
    return f"Nothing was done. Mend what blocks, then {again}; or, where it does not matter, with --despite CHECK."


def _what_now(run: Run) -> str:
    """What can be done about a run that failed."""
    show = f"`drengine run show {run.run}` says which step and why"
    if run.state is RunState.FINISHED:
        return f"{show}. It is over: mend that, and begin a new one."
    if run.reason in NO_WAY_BACK:
        return f"{show}; mend that, then `drengine run resume {run.run}`."
    undo = f"`drengine abort {run.run}`" if run.mode is Mode.DRILL else f"`drengine rollback {run.run}`"
    return f"{show}; then `drengine run resume {run.run}`, or {undo}."


@asynccontextmanager
async def open_orders(config: OrchestratorConfig, know: Callable[[Door], Person]) -> AsyncIterator[Orders]:
    """Orders to an engine that is opened for them, and closed in the end; see `open_engine`.

    Raises:
        DrengineError: NOT_SIGNED_IN, NOT_PERMITTED when whom `know` finds may not even look.
    """
    async with open_engine(config) as engine:
        who = await asyncio.to_thread(know, engine.door)
        permit(who, Action.LOOK)
        yield Orders(engine, who)


def told_loss(loss: Loss) -> str:
    """What a rollback gives up on one source's recovered side, for people."""
    until = f", until {human_time(loss.newest_ns)}" if loss.newest_ns else ""
    return f"{loss.source}: {loss.records} changes on the recovered side{until} (they stay on branch {loss.branch})"
