"""What the checks HTTP, TCP and SQL share: each asks again until it passes or its time is up.

Whoever is asked may be hostile, so the time is for the whole answer: when it is up, what is asked is cut off, and its
thread, if even that does not end it, is left behind without holding up anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from drengine.control.probes import Mismatch, Seen
from drengine.failover.steps.errors import CHECK_FAILED
from drengine.failover.steps.inside import check_inside
from drengine.failover.steps.step import ActionKind, PlannedStep, StepContext, StepResult
from drengine.failover.steps.texts import filled, launched_details
from drengine.redaction import without_secrets
from drengine.transport.web import Deadline

TRY_SECONDS_MIN, TRY_SECONDS_MAX = 1.0, 10.0
SHOWN_CHARACTERS_MAX = 400

C = TypeVar("C", bound=msgspec.Struct)


class Checked(msgspec.Struct, frozen=True):
    """How often it was asked."""

    tries: int = 0


class Check(ActionKind[C, Checked]):
    """Asks until the answer fits, and says what it saw last. A check is about now: an earlier one proves nothing."""

    estimate_seconds = 2.0
    acts = False
    ends_outage = True
    checks = True

    async def act(self, step: PlannedStep[C], context: StepContext) -> StepResult[Checked]:
        clock = context.site.clock
        written = msgspec.to_builtins(step.settings)
        settings = msgspec.convert(_filled(written, launched_details(context)), self.settings_type)
        until = clock.monotonic() + step.timeout_seconds
        tries = 0
        while True:
            tries += 1
            left = until - clock.monotonic()
            try:
                seconds = max(TRY_SECONDS_MIN, min(left, TRY_SECONDS_MAX))
                if step.inside:
                    seen = await self._ask_inside(settings, seconds, step, context, f".{tries}")
                else:
                    seen = await self._ask_in_time(settings, seconds)
                output = without_secrets(seen.output)
                return StepResult(True, without_secrets(seen.text), data=Checked(tries), output=output)
            except Exception as error:  # noqa: BLE001 - whatever a driver or library raises is an answer that did not fit
                last = without_secrets(f"{_shown(error)}")[:SHOWN_CHARACTERS_MAX]
            if clock.monotonic() + step.every_seconds >= until:
                return StepResult(
                    False, f"{self.name} check: {last}", CHECK_FAILED.id, data=Checked(tries), output=last
                )
            context.say(f"{step.title}: {last}")
            await clock.sleep(step.every_seconds)

    async def _ask_inside(
        self, settings: C, seconds: float, step: PlannedStep[C], context: StepContext, part: str
    ) -> Seen:
        asked = {self.name: msgspec.to_builtins(settings)}
        answer = await check_inside(step, context, asked, seconds, part=part)
        if not answer.ok:
            raise Mismatch(answer.message or answer.code)
        return Seen(str(answer.result.get("seen", "")), str(answer.result.get("output", "")))

    async def _ask_in_time(self, settings: C, seconds: float) -> Seen:
        loop, deadline = asyncio.get_running_loop(), Deadline(seconds)
        answered: asyncio.Future[Seen] = loop.create_future()

        def settle(seen: Seen, error: BaseException | None) -> None:
            if not answered.done():
                answered.set_result(seen) if error is None else answered.set_exception(error)

        def ask() -> None:
            seen, failure = Seen(""), None
            try:
                seen = self.ask(settings, deadline)
            except BaseException as error:  # noqa: BLE001 - it is raised in the task
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, seen, failure)

        threading.Thread(target=ask, name=f"check-{self.name}", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                return await answered
        except TimeoutError:
            raise TimeoutError(f"there was no whole answer within {seconds:.1f} s") from None
        finally:
            deadline.cut()

    @abstractmethod
    def ask(self, settings: C, deadline: Deadline) -> Seen:
        """Ask once; what was seen. Raises whatever says that it did not pass. Runs in a thread of its own."""


def _filled(value: Any, details: Mapping[str, Mapping[str, Any]]) -> Any:
    if isinstance(value, str):
        return filled(value, details)
    if isinstance(value, Mapping):
        return {key: _filled(each, details) for key, each in value.items()}
    return value


def _shown(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__
