"""Bringing what was decided to the agents: each says in its reports which policy it has, and is ordered another one;
and the agent of a source's old host, which may have been off for a year, is told that the source lives elsewhere.

So an agent that was away learns of it when it comes back, and nobody keeps an account of who was told.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from drengine.control.messages import AgentReport, PartyKind, Verb
from drengine.failover.daemon import Orchestrator
from drengine.failover.duties import Duty
from drengine.fleet.look import Parts
from drengine.model.errors import DrengineError
from drengine.policy.kept import PolicyFile
from drengine.policy.settings import decided
from drengine.policy.told import digest_of, told_to

log = logging.getLogger("drengine.orchestrator")

LOOK_SECONDS = 1.0
ANSWER_SECONDS = 10.0
AGAIN_SECONDS, REFUSED_SECONDS = 30.0, 600.0
"""After an agent did not answer, and after one does not take this very policy."""
AT_ONCE = 16
FENCED_KNOWING = ("moved", "spare", "settled")
"""Why agents are fenced that need not be told that a source has moved."""


@dataclass(frozen=True, slots=True)
class _Due:
    """An agent has another policy than the one that holds, or does not know that its source has moved.

    Attributes:
        report: its newest.
        verb, arguments: what it is told by.
        what: tells this from what it was told before.
        about: for the log.
    """

    report: AgentReport
    verb: Verb
    arguments: dict[str, Any]
    what: str
    about: str = "its policy"


async def tell_policies(parts: Parts) -> None:
    """Tell each agent that is there and has another policy; what goes wrong is logged."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def tell(due: _Due) -> None:
        async with turns:
            await _tell(parts, due)

    await asyncio.gather(*(tell(due) for due in await asyncio.to_thread(lambda: list(_all_due(parts)))))


@asynccontextmanager
async def keep_policies(orchestrator: Orchestrator) -> AsyncIterator[None]:
    """Have every agent go by the policy that holds, until left."""
    engine = orchestrator.engine
    parts = Parts(engine.config, engine.site.clock, engine.site.store, engine.registry, engine.agents)
    duty = orchestrator.duty("policies")
    keeping = asyncio.create_task(_keep(parts, duty))
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await duty.leave()


async def _keep(parts: Parts, duty: Duty) -> None:
    telling: dict[tuple[str, str], asyncio.Task[float]] = {}
    again_at: dict[tuple[str, str], float] = {}
    failed = ""
    while True:
        await parts.clock.sleep(LOOK_SECONDS)
        now = parts.clock.monotonic()
        for which in [which for which, task in telling.items() if task.done()]:
            again_at[which] = now + telling.pop(which).result()
        if not await duty.take():
            continue
        try:
            all_due, failed = await asyncio.to_thread(lambda: list(_all_due(parts))), ""
        except DrengineError as error:
            if failed != error.message:
                log.error("agents are not told the policy: %s", error.message)  # noqa: TRY400 - the line says all
            failed, all_due = error.message, []
        except Exception:  # what one agent says must not keep the others from being told
            log.exception("agents are not told the policy")
            all_due = []
        for due in all_due:
            which = due.report.name, due.what
            if which not in telling and len(telling) < AT_ONCE and now >= again_at.get(which, 0.0):
                telling[which] = asyncio.create_task(_tell(parts, due))
        again_at = {which: at for which, at in again_at.items() if at > now}


def _all_due(parts: Parts) -> Iterator[_Due]:
    """Agents that are there and say that they have another policy. Those of older versions say nothing.

    Raises:
        DrengineError: POLICY_UNUSABLE.
    """
    policy = PolicyFile(parts.config.store).read()
    for name, report in list(parts.agents.reports().items()):
        if report.kind is not PartyKind.AGENT or not parts.agents.is_online(name):
            continue
        if moved := _moved(parts, report):
            yield moved
            continue
        has, home_of = report.details.get("policy"), report.details.get("home_of")
        if not isinstance(has, dict):
            continue
        settings = told_to(decided(policy.rules, home_of if home_of and isinstance(home_of, str) else name))
        digest = digest_of(settings)
        if has.get("digest") != digest:
            yield _Due(report, Verb.POLICY, {"settings": settings, "digest": digest}, digest or "none")


def _moved(parts: Parts, report: AgentReport) -> _Due | None:
    """For an agent that is fenced, so that it does not ask the target, and whose source lives elsewhere by now.

    Raises:
        DrengineError: the store's.
    """
    store, source = parts.store, report.details.get("home_of") or report.name
    if store is None or not report.fenced or report.details.get("fence_reason") in FENCED_KNOWING:
        return None
    if not isinstance(source, str) or report.name not in store.home(source).former:
        return None
    generation = store.source(source).generation
    arguments = {"generation": generation, "moved": True}
    return _Due(report, Verb.FENCE, arguments, f"moved.{generation}", "that its source has moved")


async def _tell(parts: Parts, due: _Due) -> float:
    """How long to wait before it is told the same again, if its reports still say another policy."""
    name = due.report.name
    try:
        answer = await parts.agents.command(
            name,
            due.verb,
            due.arguments,
            generation=due.report.generation,
            id=f"{due.verb}.{name}.{due.what}.{secrets.token_hex(4)}",
            timeout_seconds=ANSWER_SECONDS,
        )
    except DrengineError as error:
        log.warning("%s was not told %s: %s", name, due.about, error.message)
        return AGAIN_SECONDS
    if answer.ok:
        return ANSWER_SECONDS
    log.warning("%s does not take it, %s (%s): %s", name, due.about, answer.code, answer.message)
    return REFUSED_SECONDS
