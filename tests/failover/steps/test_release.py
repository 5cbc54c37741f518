"""A lost source is not waited for: how it is put in charge by hand is said soon."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from drengine.control.errors import NO_ANSWER
from drengine.failover.steps.agents import AWAY_SECONDS, LOOK_SECONDS
from drengine.failover.steps.release import RELEASE
from drengine.failover.steps.step import Agents
from tests.failover.steps.context import HastyClock, context, planned

DECLARED = {"sources": {"shop": {"generation": 1, "branch": 1, "origin": 1}}}
HANDED = {"branch": 3, "generation": 3, "changed": True}


class Away:
    """A broker that sees no agent; what is sent to one is never answered."""

    def reports(self) -> dict[str, Any]:
        return {}

    def is_online(self, name: str) -> bool:
        return False

    def is_away(self, name: str) -> bool:
        return True

    async def command(self, *_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("fenced", "retryable"),
    [({"evidence": "command", "command": "pdu"}, False), ({"evidence": "agent", "agent": "fenced"}, True)],
    ids=["it was lost before the run", "it answered in the run"],
)
async def test_an_agent_that_is_away_is_waited_for_as_long_as_a_restart_takes(
    fenced: dict[str, Any], retryable: bool
) -> None:
    clock = HastyClock()
    results = {"declare": DECLARED, "fence:shop": fenced, "hand-back:shop": HANDED}
    given = context(results=results, clock=clock)
    given = replace(given, site=replace(given.site, agents=cast(Agents, Away())))
    step = replace(planned(RELEASE, {"handed": "hand-back:shop"}), source="shop")
    ended = await RELEASE.act(step, given)
    assert (ended.ok, ended.code, ended.retryable) == (False, NO_ANSWER.id, retryable)
    assert "on shop: drengine-agent release --generation 3 --branch 3; then: drengine run resume run-1" in ended.message
    assert clock.slept <= AWAY_SECONDS + 2 * LOOK_SECONDS
