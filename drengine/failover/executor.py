"""Carries out a run: observes, asks `decide`, acts, and journals each intent before and each result after.

One executor at a time has a run, by a lease; every journal entry carries the lease's token, so one that was paused past
its lease can write nothing more, and a promotion asks for the lease inside the store's own transaction (`permit`).
A killed executor leaves the journal; the next one folds it, asks the handlers of interrupted steps whether they got
through, and goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from drengine.failover.approvals import Subject, may_force, subject_of
from drengine.failover.decide import Action, Decision, Reason, decide
from drengine.failover.errors import RUN_FAILED
from drengine.failover.options import read_options
from drengine.failover.plan import plan, plan_rollback
from drengine.failover.registry.errors import LEASE_LOST
from drengine.failover.registry.values import Unheld
from drengine.failover.run import (
    Event,
    JournalEntry,
    Lease,
    Outcome,
    Request,
    RequestKind,
    RunRecord,
    RunState,
    Status,
    run_lease,
)
from drengine.failover.runbook.values import Runbook
from drengine.failover.snapshot import (
    ABORT,
    FINISHED,
    PLANNED,
    RESUMED,
    ROLLBACK,
    STOPPED,
    TAKEN_UP,
    Snapshot,
    StepState,
    observe,
    plan_payload,
)
from drengine.failover.standing import stopped_agents
from drengine.failover.steps.kinds import StepKinds, step_kinds
from drengine.failover.steps.step import PlannedStep, Site, StepContext, StepResult
from drengine.failover.witness import Witness
from drengine.model.errors import DrengineError
from drengine.redaction import redacted, secret_values, without_secrets

log = logging.getLogger("drengine.failover")

POLL_SECONDS = 0.5
"""How often people's requests are looked for while nothing else happens."""

RENEWALS = 4
"""In the time that a lease lasts."""
HELD_SHARE = 0.7
"""Of a lease's time since it was last renewed, after which its holder gives up what is under way, so that this is over
before another may begin.
"""
GRACE_SECONDS = 5.0
"""Beyond a step's own time limit: a handler that keeps its limit itself ends first."""

PROGRESS_SECONDS = 5.0
"""Between two words of a step's progress in the journal."""

OUTPUT_CHARACTERS_MAX = 8192
FORCE = "force"
"""In the note of a resume request: go on without fencing."""
DESPITE = "despite:"
"""Begins the words of that note which name checks of the preflight past which the run goes on."""

T = TypeVar("T")


def resume_note(force: bool, despite: Sequence[str]) -> str:
    """The note of a request to resume."""
    return " ".join([*([FORCE] if force else []), *(f"{DESPITE}{each}" for each in despite)])


def despite_in(words: Sequence[str]) -> list[str]:
    """The checks that the words of such a note name."""
    return [word.removeprefix(DESPITE) for word in words if word.startswith(DESPITE)]


class RunKeeper(Protocol):
    """What the executor asks of the registry."""

    def acquire_lease(self, name: str, owner: str, seconds: float, *, after: int | None = None) -> Lease:
        """Become its holder, or raise LEASE_HELD; `after`: only if this is the newest token still."""
        ...

    def renew_lease(self, lease: Lease, seconds: float) -> Lease:
        """Hold it longer, or raise LEASE_LOST."""
        ...

    def release_lease(self, lease: Lease) -> None:
        """Let it go; no error when it is lost."""
        ...

    def hand_over_lease(self, lease: Lease) -> None:
        """End its time, so that another executor takes the run up."""
        ...

    def run(self, id: str) -> RunRecord:
        """One run."""
        ...

    def update_run(
        self,
        id: str,
        *,
        token: int,
        state: RunState | None = None,
        outcome: Outcome | None = None,
        reason: str | None = None,
        finished_ns: int | None = None,
    ) -> None:
        """Change what the list of runs says, or raise LEASE_LOST."""
        ...

    def leave_run(
        self,
        lease: Lease,
        id: str,
        *,
        seen: int,
        state: RunState,
        outcome: Outcome,
        reason: str,
        finished_ns: int = 0,
        entry: JournalEntry | None = None,
    ) -> bool:
        """Change that and let the lease go in one transaction; False when somebody asked something behind `seen`."""
        ...

    def append(self, run: str, token: int, entry: JournalEntry) -> int:
        """Append to a run's journal, or raise LEASE_LOST; the entry's number."""
        ...

    def entries(self, run: str, after: int = 0) -> list[JournalEntry]:
        """A run's journal behind a number."""
        ...

    def requests(self, run: str, after: int = 0) -> list[Request]:
        """What people asked of a run, behind a number."""
        ...


Watcher = Callable[[RunRecord, Snapshot, Decision], None]


class _Abandoned(Exception):
    """The run was aborted while the step was under way."""


class Executor:
    """Executes one run in this process."""

    def __init__(
        self,
        registry: RunKeeper,
        site: Site,
        runbook: Runbook,
        *,
        owner: str,
        runbook_sha256: str = "",
        kinds: StepKinds | None = None,
        lease_seconds: float = 15.0,
        watch: Watcher = lambda run, snapshot, decision: None,
        poll_seconds: float = POLL_SECONDS,
        witness: Witness | None = None,
        hands_over: bool = False,
    ) -> None:
        """`hands_over`: if it is ended before its run is, another one takes that up; otherwise a person resumes it."""
        self._registry = registry
        self._hands_over = hands_over
        self._site = site
        self._kinds = step_kinds() if kinds is None else kinds
        self._runbook = runbook
        self._secrets = secret_values(msgspec.to_builtins(runbook))
        self._owner = owner
        self._runbook_sha256 = runbook_sha256
        self._lease_seconds = lease_seconds
        self._watch = watch
        self._poll_seconds = poll_seconds
        self._witness = witness or Witness()
        self._entries: list[JournalEntry] = []
        self._requests: list[Request] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._telling: list[asyncio.Task[None]] = []
        self._abandoned = asyncio.Event()
        self._holding = asyncio.Lock()  # the lease is renewed, or let go
        self._left = False
        self._held_at = 0.0  # monotonic moment at which the lease was last asked for and got
        self._lease: Lease
        self._run: RunRecord
        self._subject: Subject
        self._last: Snapshot

    async def execute(
        self, run: str, *, wait: bool = True, patience_seconds: float = 0.0, unheld: Unheld | None = None
    ) -> RunRecord:
        """Work on a run until it is finished, stopped, or (unless `wait`) only waits for people.

        Args:
            run: which.
            wait: for approvals.
            patience_seconds: how long to wait for the lease of an executor that may be dead.
            unheld: what was seen when nobody executed it; LEASE_HELD when somebody has done so since.

        Raises:
            DrengineError: LEASE_HELD, LEASE_LOST, UNKNOWN_RUN; those of the registry.
        """
        self._lease = await self._insist(patience_seconds, self._acquire, run, unheld.token if unheld else None)
        working = asyncio.create_task(self._work(run, wait, unheld.owner if unheld else ""))
        keeping = asyncio.create_task(self._keep_lease())
        over = self._registry.release_lease
        try:
            await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if keeping.done() and not working.done() and not self._left:
                await _cancelled(working)
                keeping.result()
            return await working
        except asyncio.CancelledError:
            over = self._registry.hand_over_lease if self._hands_over else over
            raise
        except DrengineError as error:
            is_lost = error.kind is LEASE_LOST or error.kind.retryable
            over = self._registry.hand_over_lease if self._hands_over and is_lost else over
            raise
        finally:
            await _cancelled(working, keeping, *self._tasks.values(), *self._telling)
            with suppress(DrengineError):  # the registry is away; the lease ends by itself
                await asyncio.to_thread(over, self._lease)

    def _acquire(self, run: str, after: int | None) -> Lease:
        self._held_at = self._site.clock.monotonic()
        return self._registry.acquire_lease(run_lease(run), self._owner, self._lease_seconds, after=after)

    async def _work(self, run: str, wait: bool, died: str) -> RunRecord:
        self._run = await asyncio.to_thread(self._registry.run, run)
        self._subject = subject_of(self._run, self._runbook_sha256)
        self._entries = await asyncio.to_thread(self._registry.entries, run)
        if not self._entries:
            steps = plan(self._run.mode, self._runbook, self._run.options)
            await self._note(plan_payload(steps, PLANNED, owner=self._owner))
        else:
            # Whatever an earlier holder of the lease still had under way at the store has happened or never will.
            await asyncio.to_thread(self._site.store.settle)
        snapshot = await self._observe()
        if self._run.state is RunState.FINISHED and not snapshot.reopened:
            return self._run
        # First: whoever looks on takes a run that stopped, and of which nothing is asked any more, for ended.
        await self._set(RunState.RUNNING, Outcome.NONE, "")
        if died:
            await self._note({"decision": TAKEN_UP, "owner": self._owner, "from": died})
        if snapshot.resumed_by and not (snapshot.aborted_by or snapshot.rollback_by):
            asked = [each for each in self._requests if each.kind is RequestKind.RESUME][-1]
            resumed = {"decision": RESUMED, "by": asked.by, "step": asked.step, "request": snapshot.newest_request}
            words = asked.note.split()
            forced = FORCE in words and may_force(asked.by, self._subject.force_by, snapshot.approvals)
            await self._note({**resumed, "force": forced, "despite": despite_in(words)})
        while True:
            self._last = snapshot = await self._observe()
            decision = decide(self._run.mode, snapshot)
            self._watch(self._run, snapshot, decision)
            if await self._act(decision, snapshot, wait):
                return self._run

    async def _act(self, decision: Decision, snapshot: Snapshot, wait: bool) -> bool:
        """Carry out a decision; whether this executor is through with the run."""
        match decision.action:
            case Action.START:
                await self._set(RunState.RUNNING, Outcome.NONE, decision.reason)
                for id in decision.steps:
                    await self._begin(snapshot.state(id), snapshot)
            case Action.WAIT:
                asked = decision.reason is Reason.APPROVAL_NEEDED
                if asked and not wait:
                    return await self._leave(snapshot, RunState.WAITING, decision)
                await self._set(RunState.WAITING if asked else RunState.RUNNING, Outcome.NONE, decision.reason)
                if snapshot.rollback_by and not snapshot.rolling_back:
                    self._abandoned.set()
                await self._pause(decision.wake_ns)
            case Action.ABORT:
                await self._note({"decision": ABORT, "by": snapshot.aborted_by, "request": snapshot.newest_request})
                self._abandoned.set()
            case Action.ROLL_BACK:
                self._abandoned = asyncio.Event()
                begun = [each.step.id for each in snapshot.steps if each.begun]
                stopped = stopped_agents(snapshot)
                steps = plan_rollback(self._run.mode, self._runbook, self._run.options, begun, stopped)
                more = {"by": snapshot.rollback_by, "request": snapshot.newest_request, "cause": decision.cause}
                await self._note(plan_payload(steps, ROLLBACK, reason=decision.reason.value, **more))
            case Action.STOP:
                return await self._leave(snapshot, RunState.STOPPED, decision)
            case Action.FINISH:
                return await self._leave(snapshot, RunState.FINISHED, decision)
        return False

    async def _begin(self, state: StepState, snapshot: Snapshot) -> None:
        """Note the intent, then work on the step in a task of its own."""
        again = state.status in (Status.INTERRUPTED, Status.WAITING)
        attempt = state.attempt if again else state.attempt + 1
        if state.status is not Status.WAITING:
            intent = {"kind": state.step.kind.name, "owner": self._owner, "again": again}
            await self._append(JournalEntry(state.step.id, Event.INTENT, attempt, self._now_ns(), intent))
        step = state.step
        context = StepContext(
            run=self._run.id,
            mode=self._run.mode,
            runbook=self._runbook,
            site=self._site,
            results=snapshot.results,
            attempt=attempt,
            options=read_options(self._run.options),
            approvals=snapshot.approvals,
            say=self._sayer(step, attempt),
            permit=self._permit,
            started_by=self._run.started_by,
            forced_by=self._forced_by(snapshot),
            despite=snapshot.despite,
            again=again,
        )
        looking = again or attempt > 1
        self._tasks[step.id] = asyncio.create_task(self._carry_out(step, context, looking), name=step.id)

    async def _carry_out(self, step: PlannedStep[Any], context: StepContext, looking: bool) -> None:
        began = self._site.clock.monotonic()
        result = await self._result(step, context, looking)
        payload = {
            "ok": result.ok,
            "message": self._shown(result.message),
            "code": result.code,
            "waiting": result.waiting,
            "data": self._kept(msgspec.to_builtins(result.data) if result.data is not None else {}),
            "output": self._shown(result.output)[-OUTPUT_CHARACTERS_MAX:],
            "retryable": result.retryable,
            "seconds": round(self._site.clock.monotonic() - began, 6),
        }
        await self._append(JournalEntry(step.id, Event.RESULT, context.attempt, self._now_ns(), payload))
        if step.kind.acts and not result.waiting:
            code = "" if result.ok else result.code or RUN_FAILED.id
            told = {"message": payload["message"], "attempt": context.attempt}
            await asyncio.to_thread(self._witness.acted, self._run.id, step.id, step.kind.name, code, told)

    async def _result(self, step: PlannedStep[Any], context: StepContext, looking: bool) -> StepResult[Any]:
        """What the handler found or did; every failure is a result. `looking`: an earlier try may have got through."""

        async def check_then_act() -> StepResult[Any]:
            found = await step.kind.check(step, context) if looking else None
            return found or await step.kind.act(step, context)

        try:
            return await self._within(check_then_act(), step.timeout_seconds + GRACE_SECONDS, step.cleanup)
        except _Abandoned:
            return StepResult(False, "aborted", ABORT, retryable=False)
        except TimeoutError:
            return StepResult(False, f"took longer than {step.timeout_seconds:g} s", "timeout")
        except DrengineError as error:
            return StepResult(False, error.message, error.kind.id, retryable=error.kind.retryable)
        except Exception as error:
            log.exception("a step failed unexpectedly", extra={"step": step.id, "run": context.run})
            return StepResult(False, f"{type(error).__name__}: {error}", "internal", retryable=False)

    async def _within(self, work: Awaitable[StepResult[Any]], seconds: float, cleanup: bool) -> StepResult[Any]:
        """The work's result, unless its time is up or the run is aborted before."""
        working = asyncio.ensure_future(work)
        limit = asyncio.ensure_future(self._site.clock.sleep(seconds))
        ended = {limit} if cleanup else {limit, asyncio.ensure_future(self._abandoned.wait())}
        try:
            await asyncio.wait({working, *ended}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            await _cancelled(working)
            raise TimeoutError if limit.done() else _Abandoned
        finally:
            await _cancelled(working, *ended)

    def _sayer(self, step: PlannedStep[Any], attempt: int) -> Callable[[str], None]:
        """A step's words for people: shown now, from any thread; now and then noted for those who look elsewhere."""
        loop, clock = asyncio.get_running_loop(), self._site.clock
        noted = clock.monotonic()

        def show(text: str) -> None:
            nonlocal noted
            states = (replace(each, message=text) if each.step.id == step.id else each for each in self._last.steps)
            self._last = replace(self._last, steps=tuple(states))
            self._watch(self._run, self._last, Decision(Action.WAIT, Reason.STEPS_RUNNING))

            if clock.monotonic() - noted >= PROGRESS_SECONDS:
                noted = clock.monotonic()
                self._telling = [task for task in self._telling if not task.done()]
                self._telling.append(asyncio.create_task(self._keep_progress(step.id, attempt, text)))

        def say(text: str) -> None:
            with suppress(RuntimeError):  # the loop has gone, and with it whoever would read this
                loop.call_soon_threadsafe(show, self._shown(text))

        return say

    async def _keep_progress(self, step: str, attempt: int, text: str) -> None:
        with suppress(DrengineError):  # it is only a word; whoever lost the lease learns it from what matters
            await self._append(JournalEntry(step, Event.PROGRESS, attempt, self._now_ns(), {"message": text}))

    def _shown(self, text: str) -> str:
        """A step's words, fit for the registry and for people."""
        return without_secrets(text, self._secrets)

    def _kept(self, data: dict[str, Any]) -> dict[str, Any]:
        """A step's result, fit for the registry: `details` are what drivers and hosts say; names and ids stay."""
        return {**data, "details": redacted(data["details"], self._secrets)} if "details" in data else data

    def _permit(self) -> None:
        """Raises LEASE_LOST when another executor has the run: called inside the store's transaction."""
        self._registry.renew_lease(self._lease, self._lease_seconds)

    def _forced_by(self, snapshot: Snapshot) -> str:
        return snapshot.forced_by or (self._run.started_by if read_options(self._run.options).force else "")

    async def _observe(self) -> Snapshot:
        newest = self._requests[-1].seq if self._requests else 0
        self._requests += await asyncio.to_thread(self._registry.requests, self._run.id, newest)
        self._tasks = {id: task for id, task in self._tasks.items() if not self._collect(task)}
        return observe(self._entries, self._requests, self._tasks, self._now_ns(), self._kinds, self._subject)

    @staticmethod
    def _collect(task: asyncio.Task[None]) -> bool:
        """Whether a task has ended; what it raised (a lost lease) ends the executor."""
        if task.done() and not task.cancelled():
            task.result()
        return task.done()

    async def _pause(self, wake_ns: int) -> None:
        seconds = self._poll_seconds
        if wake_ns:
            seconds = min(seconds, max(0.0, (wake_ns - self._now_ns()) / 1e9))
        sleeping = asyncio.ensure_future(self._site.clock.sleep(seconds))
        try:
            await asyncio.wait({sleeping, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(sleeping)

    async def _keep_lease(self) -> None:
        """Renew it in good time; ends by failing, or when the run was left.

        By our own clock it is lost before it is over at the registry: whoever can't renew it, because the registry is
        away or does not answer, has given everything up when another one begins.
        """
        clock = self._site.clock
        while True:
            await clock.sleep(self._lease_seconds / RENEWALS)
            async with self._holding:
                if self._left:
                    return
                asked_at = clock.monotonic()
                left = max(self._held_at + HELD_SHARE * self._lease_seconds - asked_at, self._poll_seconds)
                if asked_at >= self._held_at + self._lease_seconds:
                    log.warning("slept past the lease", extra={"lease": self._lease.name})
                self._lease = await self._renewed(left)
                self._held_at = asked_at

    async def _renewed(self, seconds: float) -> Lease:
        """The lease, renewed within so long; LEASE_LOST when the registry does not answer in time."""
        renew = partial(self._registry.renew_lease, self._lease, self._lease_seconds)
        renewing = asyncio.ensure_future(self._insist(seconds, renew))
        limit = asyncio.ensure_future(self._site.clock.sleep(seconds + self._poll_seconds))
        try:
            await asyncio.wait({renewing, limit}, return_when=asyncio.FIRST_COMPLETED)
            if renewing.done():
                return renewing.result()
            message = f"{self._lease.name}: the registry does not answer, so the lease could not be renewed in time"
            raise DrengineError(LEASE_LOST, message)
        finally:
            for each in (renewing, limit):
                each.cancel()  # what waits in a thread for a server that is gone ends by itself

    async def _note(self, payload: Mapping[str, Any]) -> None:
        await self._append(JournalEntry("", Event.DECISION, 0, self._now_ns(), payload))

    async def _append(self, entry: JournalEntry) -> None:
        seq = await self._insist(self._lease_seconds, self._registry.append, self._run.id, self._lease.token, entry)
        self._entries.append(replace(entry, seq=seq))

    async def _insist(self, seconds: float, ask: Callable[..., T], *arguments: Any) -> T:
        """Ask the registry again for so long while it is away for a moment, or somebody's lease is not over.

        An entry that was written although the answer got lost is then written twice: it says the same twice.
        """
        until = self._site.clock.monotonic() + seconds
        while True:
            try:
                return await asyncio.to_thread(ask, *arguments)
            except DrengineError as error:
                if not error.kind.retryable or self._site.clock.monotonic() >= until:
                    raise
                log.info("asking the registry again: %s", error.message)
            await self._site.clock.sleep(self._poll_seconds)

    async def _set(self, state: RunState, outcome: Outcome, reason: str) -> None:
        if (self._run.state, self._run.outcome, self._run.reason) == (state, outcome, reason):
            return
        if state is self._run.state is RunState.RUNNING:
            return  # why it runs is in the journal; the list need not follow every step
        changed: dict[str, Any] = {"state": state, "outcome": outcome, "reason": reason, "finished_ns": 0}
        change = partial(self._registry.update_run, self._run.id, token=self._lease.token, **changed)
        await asyncio.to_thread(change)
        self._run = replace(self._run, **changed)

    async def _leave(self, snapshot: Snapshot, state: RunState, decision: Decision) -> bool:
        """Leave the run in that state and let the lease go; False when somebody has asked something meanwhile.

        Deciding and letting go are one transaction. So whoever asks something is heeded by this executor, or finds
        the lease free.
        """
        finished = state is RunState.FINISHED
        now_ns = self._now_ns()
        changed: dict[str, Any] = {"state": state, "outcome": decision.outcome, "reason": decision.reason.value}
        changed["finished_ns"] = now_ns if finished else 0
        entry = None
        if state is not RunState.WAITING:
            what = {"decision": FINISHED if finished else STOPPED, "cause": decision.cause}
            told = {"outcome": decision.outcome.value, "reason": decision.reason.value}
            entry = JournalEntry("", Event.DECISION, 0, now_ns, what | told)
        seen = snapshot.newest_request
        ask = partial(self._registry.leave_run, self._lease, self._run.id, seen=seen, entry=entry, **changed)
        async with self._holding:
            self._left = await self._insist(self._lease_seconds, ask)
        if not self._left:
            return False
        self._run = replace(self._run, **changed)
        if entry is not None:
            self._watch(self._run, snapshot, decision)
        return True

    def _now_ns(self) -> int:
        return self._site.clock.now_ns()


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """End tasks and wait until they are; what they raise is ignored."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
