"""Bringing what was decided to the agents: each says in its reports which policy it has, and is ordered another one.

So an agent that was away learns of it when it comes back, and nobody keeps an account of who was told.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class _Due:
    """An agent has another policy than the one that holds."""

    report: AgentReport
    settings: dict[str, str]
    digest: str


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
            which = due.report.name, due.digest
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
        has = report.details.get("policy")
        if report.kind is not PartyKind.AGENT or not isinstance(has, dict) or not parts.agents.is_online(name):
            continue
        settings = told_to(decided(policy.rules, name))
        digest = digest_of(settings)
        if has.get("digest") != digest:
            yield _Due(report, settings, digest)


async def _tell(parts: Parts, due: _Due) -> float:
    """How long to wait before it is told the same again, if its reports still say another policy."""
    source = due.report.name
    try:
        answer = await parts.agents.command(
            source,
            Verb.POLICY,
            {"settings": due.settings, "digest": due.digest},
            generation=due.report.generation,
            id=f"policy.{source}.{due.digest or 'none'}.{secrets.token_hex(4)}",
            timeout_seconds=ANSWER_SECONDS,
        )
    except DrengineError as error:
        log.warning("%s was not told its policy: %s", source, error.message)
        return AGAIN_SECONDS
    if answer.ok:
        return ANSWER_SECONDS
    log.warning("%s does not take its policy (%s): %s", source, answer.code, answer.message)
    return REFUSED_SECONDS
