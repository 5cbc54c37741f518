"""Carrying out commands: each once, in time, under the generation that it was decided for, and answered.

What arrives may be retained, queued, delayed, duplicated or replayed (fault 50). The rules, in this order:

0. One that this party does not take (see `gate`) is refused.
1. A retained command is ignored: commands never are.
2. A known id is not carried out again: a command under way shows its progress, an answered one gets its answer again.
3. One that is too late, or whose id may have been forgotten, is ignored.
4. One of another generation is refused; an older one was decided before this party changed sides.
5. Whatever else: it is carried out, and the answer is remembered before it is sent.

What is ignored is counted by reason and not answered. What is refused is answered too, now and then: each answer
names the bytes that it answers, so that to a stale or altered copy is none to a fresh order of the same id. Who waits
asks again, so a lost answer is only late.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from drengine.control.command_log import ANSWER_BYTES_MAX as REMEMBERED_BYTES_MAX
from drengine.control.command_log import CommandLog
from drengine.control.errors import COMMAND_DROPPED
from drengine.control.gate import Admitted, Gate, digest
from drengine.control.messages import Answer, Command, Verb
from drengine.control.refusals import REFUSALS, OrderRefusedError
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError, ErrorKind

log = logging.getLogger("drengine.control")

ANSWER_BYTES_MAX = 96 << 10
MESSAGE_LENGTH_MAX = 2000
RUNNING_MAX = 32
HORIZON_SECONDS = 7 * 86400.0
PROGRESS_SECONDS = 1.0
REFUSAL_SECONDS = 1.0
"""Between two answers to orders that are refused for the same reason: anybody may send some."""
LOG_SECONDS = 10.0

Tell = Callable[[Mapping[str, Any]], None]
"""Says how far a command has come; may be called as often as one likes."""


class Generations(enum.Enum):
    """Which generation a command must have been decided under, compared with the party's own."""

    EQUAL = "equal"
    NOT_OLDER = "not-older"
    ANY = "any"


class Ignored(enum.StrEnum):
    """Why a command was not looked at any further; label of a metric."""

    MALFORMED = "malformed"
    RETAINED = "retained"
    EXPIRED = "expired"
    FORGOTTEN = "forgotten"
    TOO_FAR = "too-far"
    GENERATION = "generation"
    DUPLICATE = "duplicate"
    BUSY = "busy"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Action:
    """How a verb is carried out.

    Attributes:
        act: does it and returns the result; raises DrengineError, or ValueError for arguments that are wrong.
        generations: which generations it may come from.
        repeatable: carried out again after an interruption it does nothing twice; otherwise it is noted durably
            before, and an interrupted one is answered with COMMAND_DROPPED.
        bounded: it is given up when its time is over.
        remembered: its answer is kept; otherwise (it only looks) a repeated id is answered afresh.
    """

    act: Callable[[Command, Tell], Awaitable[Mapping[str, Any]]]
    generations: Generations = Generations.EQUAL
    repeatable: bool = True
    bounded: bool = True
    remembered: bool = True


@dataclass(slots=True)
class _Running:
    """A command under way; `order` is the message that asked for it last."""

    deadline: float
    order: str = ""
    last_told: Answer | None = None
    told_at: float = field(default=-PROGRESS_SECONDS)
    task: asyncio.Task[None] | None = None


class Dispatcher:
    """One party's commands."""

    def __init__(
        self,
        actions: Mapping[Verb, Action],
        log: CommandLog,
        *,
        generation: Callable[[], int],
        answer: Callable[[Answer], Awaitable[None]],
        clock: Clock,
        gate: Gate | None = None,
    ) -> None:
        """
        Args:
            actions: how each verb is carried out; others are refused.
            log: of the commands, loaded already.
            generation: the party's own, now.
            answer: sends; failures are its own affair.
            clock: the wall clock judges expiries, the monotonic one bounds what runs.
            gate: which orders are taken; all by default.
        """
        self._actions = actions
        self._log = log
        self._generation = generation
        self._answer = answer
        self._clock = clock
        self._gate = gate or Gate()
        self._running: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged_at: dict[str, float] = {}
        self._refused_at: dict[str, float] = {}
        self.ignored: Counter[str] = Counter()
        """By `Ignored` and by the codes of REFUSALS."""
        self.done: Counter[tuple[Verb, bool]] = Counter()
        """Commands carried out, by verb and whether they succeeded."""

    def receive(self, payload: bytes, *, retained: bool) -> None:
        """Take what arrived on the command topic; never raises for what a peer sent."""
        if retained:
            if payload:
                self._ignore(Ignored.RETAINED, "it was retained by the broker")
            return
        try:
            admitted = self._gate.admit(payload)
            self._take(admitted)
        except OrderRefusedError as refused:
            self._refuse(refused, payload)
        except ValueError as error:
            self._ignore(Ignored.MALFORMED, str(error))

    def _take(self, admitted: Admitted) -> None:
        command = admitted.command
        if running := self._running.get(command.id):
            self._repeat(admitted, running)
            return
        known = self._log.find(command.id)
        if known is not None and known.verb not in ("", command.verb):
            raise OrderRefusedError("order-reused", f"it was {known.verb}, now {command.verb}", id=command.id)
        if known is not None and known.answer is not None:
            self.ignored[Ignored.DUPLICATE] += 1
            self._start(self._answer(msgspec.structs.replace(known.answer, order=admitted.order)))
            return
        reason = self._unfit(command)
        if reason is not None:
            if admitted.by is not None and reason[0] in (Ignored.EXPIRED, Ignored.TOO_FAR):
                raise OrderRefusedError("order-expired", reason[1], id=command.id)
            self._ignore(*reason, command)
            return
        running = self._running[command.id] = _Running(self._deadline(command), admitted.order)
        running.task = self._start(self._carry_out(command, running, interrupted=known is not None))

    async def close(self) -> None:
        """Give up what runs; it is carried out again, or answered as interrupted, when asked for again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- judging ---------------------------------------------------------------------------------------------

    def _unfit(self, command: Command) -> tuple[Ignored, str] | None:
        now = self._clock.now_ns()
        late = (now - command.expires_ns) / 1e9
        if late >= 0:
            return Ignored.EXPIRED, f"it came {late:.1f} s too late by our clock"
        if -late > HORIZON_SECONDS:
            return Ignored.TOO_FAR, "it would hold for more than a week by our clock"
        if self._log.is_forgotten(command.expires_ns):
            return Ignored.FORGOTTEN, "it is as old as commands that are no longer remembered"
        if len(self._running) >= RUNNING_MAX:
            return Ignored.BUSY, f"{RUNNING_MAX} commands are under way"
        if not self._log.make_room(now):
            return Ignored.MEMORY, "there is no room to remember it"
        return None

    def _right_generation(self, command: Command, action: Action) -> bool:
        ours = self._generation()
        match action.generations:
            case Generations.EQUAL:
                return command.generation == ours
            case Generations.NOT_OLDER:
                return command.generation >= ours
            case Generations.ANY:
                return True

    def _ignore(self, reason: str, message: str, command: Command | None = None) -> None:
        self.ignored[str(reason)] += 1
        now = self._clock.monotonic()
        if now - self._logged_at.get(reason, -LOG_SECONDS) < LOG_SECONDS:
            return  # a flood of messages must not flood the log; the counters show it
        self._logged_at[reason] = now
        extra = {"verb": command.verb.value, "id": command.id} if command else {}
        log.warning("a command was ignored (%s): %s", str(reason), message, extra=extra)

    def _refuse(self, refused: OrderRefusedError, payload: bytes) -> None:
        """Count it, log it, and tell whoever sent exactly these bytes."""
        self._ignore(refused.code, str(refused))
        now = self._clock.monotonic()
        if refused.id and now - self._refused_at.get(refused.code, -REFUSAL_SECONDS) >= REFUSAL_SECONDS:
            self._refused_at[refused.code] = now
            self._start(self._answer(_refusal(refused.id, refused, digest(payload))))

    # ---- doing -----------------------------------------------------------------------------------------------

    def _repeat(self, admitted: Admitted, running: _Running) -> None:
        """Somebody asks again: the time may have been prolonged, and what was told last may have been lost."""
        command, running.order = admitted.command, admitted.order
        self.ignored[Ignored.DUPLICATE] += 1
        if command.expires_ns > self._clock.now_ns():
            running.deadline = max(running.deadline, self._deadline(command))
        if running.last_told is not None:
            self._start(self._answer(msgspec.structs.replace(running.last_told, order=running.order)))

    async def _carry_out(self, command: Command, running: _Running, *, interrupted: bool) -> None:
        try:
            answer = await self._result(command, running, interrupted=interrupted)
            action = self._actions.get(command.verb)
            if action and action.remembered:
                await self._remember(command, answer)
        finally:
            del self._running[command.id]
        self.done[command.verb, answer.ok] += 1
        log.info(
            "command %s: %s",
            command.verb.value,
            "done" if answer.ok else answer.message,
            extra={"id": command.id, "run": command.run},
        )
        await self._answer(msgspec.structs.replace(answer, order=running.order))

    async def _result(self, command: Command, running: _Running, *, interrupted: bool) -> Answer:
        action = self._actions.get(command.verb)
        if action is None:
            return _failed(command, COMMAND_DROPPED, f"this party does not know {command.verb.value!r}")
        if not self._right_generation(command, action):
            self.ignored[Ignored.GENERATION] += 1
            ours = self._generation()
            message = f"it was decided under generation {command.generation}, here {ours} holds"
            return _failed(command, COMMAND_DROPPED, message)
        if not action.repeatable:
            if interrupted:
                return _failed(command, COMMAND_DROPPED, "it was interrupted; whether it was done is not known")
            try:
                await self._log.begin(command)
            except OSError as error:
                return _failed(command, COMMAND_DROPPED, f"it could not be noted before being done: {error}")
        try:
            result = await self._bounded(command, action, running)
            answer = Answer(id=command.id, done=True, ok=True, result=dict(result))
            if len(msgspec.json.encode(answer)) > (REMEMBERED_BYTES_MAX if action.remembered else ANSWER_BYTES_MAX):
                return _failed(command, COMMAND_DROPPED, "it was done, but its result is too long to be sent")
        except TimeoutError:
            return _failed(command, COMMAND_DROPPED, "it was not done before its time was over")
        except OrderRefusedError as refused:
            self.ignored[refused.code] += 1
            return _refusal(command.id, refused, running.order)
        except DrengineError as error:
            return _failed(command, error.kind, error.message)
        except (ValueError, TypeError, KeyError, msgspec.MsgspecError) as error:
            return _failed(command, COMMAND_DROPPED, f"its arguments are wrong: {error}")
        except Exception as error:
            log.exception("command %s failed unexpectedly", command.verb.value)
            return _failed(command, COMMAND_DROPPED, f"{type(error).__name__}: {error}")
        return answer

    async def _bounded(self, command: Command, action: Action, running: _Running) -> Mapping[str, Any]:
        """Do it, for as long as anybody waits for it; the deadline may move while it runs."""
        doing = asyncio.ensure_future(action.act(command, lambda result: self._tell(command, running, result)))
        try:
            while action.bounded and (left := running.deadline - self._clock.monotonic()) > 0:
                sleeping = asyncio.ensure_future(self._clock.sleep(left))
                await asyncio.wait({doing, sleeping}, return_when=asyncio.FIRST_COMPLETED)
                sleeping.cancel()
                if doing.done():
                    break
            if action.bounded and not doing.done():
                raise TimeoutError
            await asyncio.wait({doing})
            if doing.cancelled():
                raise RuntimeError("it was cancelled from within")
            return doing.result()
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)

    async def _remember(self, command: Command, answer: Answer) -> None:
        try:
            await self._log.finish(command, answer)
        except OSError as error:
            # Repeatable ones may be carried out again after a restart, and the others are noted as begun.
            log.warning("the answer to a command could not be kept: %s", error, extra={"id": command.id})

    def _tell(self, command: Command, running: _Running, result: Mapping[str, Any]) -> None:
        running.last_told = Answer(id=command.id, done=False, ok=True, result=dict(result), order=running.order)
        now = self._clock.monotonic()
        if now - running.told_at >= PROGRESS_SECONDS:
            running.told_at = now
            self._start(self._answer(running.last_told))

    def _deadline(self, command: Command) -> float:
        return self._clock.monotonic() + (command.expires_ns - self._clock.now_ns()) / 1e9

    def _start(self, doing: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _failed(command: Command, kind: ErrorKind, message: str) -> Answer:
    return Answer(id=command.id, done=True, ok=False, code=kind.id, message=message[:MESSAGE_LENGTH_MAX])


def _refusal(id: str, refused: OrderRefusedError, order: str) -> Answer:
    said = f"{refused}. {REFUSALS[refused.code].hint}"
    return Answer(id=id, done=True, ok=False, code=refused.code, message=said[:MESSAGE_LENGTH_MAX], order=order)
