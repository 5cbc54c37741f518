"""Commands of a step to agents: that of its source, and those of recovery hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from drengine.control.errors import NO_ANSWER
from drengine.control.messages import Answer, Verb
from drengine.failover.drivers.driver import HostOrder
from drengine.failover.steps.approval import Approved
from drengine.failover.steps.declare import declared, home_of
from drengine.failover.steps.step import Agents, PlannedStep, StepContext, StepResult
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError

AWAY_SECONDS = 15.0
"""A recovery host or an agent that is restarted is back sooner; one that stays away longer is not waited for."""
LOOK_SECONDS = 0.5


async def order_agent(
    step: PlannedStep[Any],
    context: StepContext,
    verb: Verb,
    arguments: Mapping[str, Any],
    *,
    generation: int | None = None,
    timeout_seconds: float | None = None,
    part: str = "",
    host: str = "",
) -> Answer:
    """Order the source's agent to do something, and wait for its answer.

    The command's id is that of the try, so a try that was interrupted asks for the answer to the same command.

    Args:
        step, context: on whose behalf.
        verb, arguments: what it is to do.
        generation: under which this was decided; by default the one that the agent was last heard to be at.
        timeout_seconds: how long the command holds; by default as long as the step may take.
        part: tells several commands of one try apart.
        host: the agent; by default that of the host where the source lives.

    Raises:
        DrengineError: BROKER_UNREACHABLE, NO_ANSWER; LEASE_LOST before anything is sent.
    """

    def progress(answer: Answer) -> None:
        context.say(answer.message or ", ".join(f"{key} {value}" for key, value in answer.result.items()))

    await asyncio.to_thread(context.permit)
    host = host or home_of(step, context)
    return await context.site.agents.command(
        host,
        verb,
        arguments,
        generation=_agent_generation(step, context, host) if generation is None else generation,
        id=f"{context.run}.{step.id}.{context.attempt}{part}",
        timeout_seconds=step.timeout_seconds if timeout_seconds is None else timeout_seconds,
        progress=progress,
        run=context.run,
        approver=_approver(context),
    )


def host_order(step: PlannedStep[Any], context: StepContext, host: str, loop: asyncio.AbstractEventLoop) -> HostOrder:
    """What a launch driver, in its thread, tells a recovery host by. `loop` is the one to which the agents belong.

    Hosts have no generation: the store refuses whoever writes a branch under a stale one.
    """

    def order(
        verb: Verb, arguments: Mapping[str, Any], timeout_seconds: float, progress: Callable[[str], None]
    ) -> Answer:
        answer = context.site.agents.command(
            host,
            verb,
            arguments,
            generation=0,
            id=f"{context.run}.{step.id}.{context.attempt}.{verb}",
            timeout_seconds=timeout_seconds,
            progress=lambda answer: progress(answer.message or str(answer.result.get("message", ""))),
            run=context.run,
            approver=_approver(context),
        )
        waiting = while_there(answer, host, context.site.agents, context.site.clock)
        return asyncio.run_coroutine_threadsafe(waiting, loop).result()

    return order


async def while_there(
    asking: Awaitable[Answer], host: str, agents: Agents, clock: Clock, *, away_seconds: float = AWAY_SECONDS
) -> Answer:
    """The answer of a host or an agent, waited for as long as the broker sees it, or nobody sees the broker.

    Raises:
        DrengineError: NO_ANSWER, it has been away for `away_seconds`; and whatever asking raises.
    """
    answering = asyncio.ensure_future(asking)
    there_at = clock.monotonic()
    try:
        while not answering.done():
            looking = asyncio.ensure_future(clock.sleep(LOOK_SECONDS))
            await asyncio.wait({answering, looking}, return_when=asyncio.FIRST_COMPLETED)
            looking.cancel()
            there_at = there_at if agents.is_away(host) else clock.monotonic()
            if not answering.done() and clock.monotonic() - there_at >= away_seconds:
                raise DrengineError(NO_ANSWER, f"{host} has not been connected with the broker for {away_seconds:g} s")
        return answering.result()
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


def refused(answer: Answer) -> StepResult[Any]:
    """What a failed answer means for the step."""
    return StepResult(False, answer.message or answer.code, answer.code)


def _approver(context: StepContext) -> str:
    """Who approved a step of the run, and did not start it; empty: nobody. An approval that was heeded is a result."""
    approved = (result.by for result in context.results.values() if isinstance(result, Approved))
    return next((who for who in approved if who != context.started_by), "")


def _agent_generation(step: PlannedStep[Any], context: StepContext, host: str) -> int:
    """The generation that this agent was last heard to be at; the one that was declared if it was not heard."""
    report = context.site.agents.reports().get(host)
    return report.generation if report else declared(step, context).generation
