"""How long a fence waits for an agent: longer where nobody else could prove that the source is off."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from drengine.control.errors import NO_ANSWER
from drengine.failover.steps.fence import ANSWER_SECONDS, FENCE, ONLY_WAY_SECONDS
from drengine.failover.steps.step import Agents
from drengine.model.errors import DrengineError
from tests.failover.steps.context import context, planned

DECLARED = {"declare": {"sources": {"shop": {"generation": 1, "branch": 1, "origin": 1}}}}


class Silent:
    """A broker on which the agent of the source is connected, and says nothing."""

    def __init__(self, details: dict[str, Any]) -> None:
        self.waited: list[float] = []
        self._reports = {"shop": SimpleNamespace(details=details)}

    def reports(self) -> dict[str, Any]:
        return self._reports

    def is_online(self, name: str) -> bool:
        return name == "shop"

    def report_age_seconds(self, name: str) -> float | None:
        return 0.0 if name == "shop" else None

    async def command(self, *_: Any, timeout_seconds: float, **__: Any) -> Any:
        self.waited.append(timeout_seconds)
        await asyncio.sleep(0)
        raise DrengineError(NO_ANSWER, "shop did not answer")


@pytest.mark.parametrize(
    ("settings", "details", "forced_by", "seconds"),
    [
        ({}, {}, "", ONLY_WAY_SECONDS),
        ({}, {"lease_seconds": 0}, "", ONLY_WAY_SECONDS),
        ({}, {"lease_seconds": 1}, "", ANSWER_SECONDS),
        ({"command": ["true"], "command_tries": 1, "command_seconds": 5}, {}, "", ANSWER_SECONDS),
        ({}, {}, "ann", ANSWER_SECONDS),
    ],
    ids=["nothing else", "no lease", "a lease", "a command", "forced"],
)
async def test_an_agents_answer_is_waited_for_longer_where_it_is_the_only_evidence(
    settings: dict[str, Any], details: dict[str, Any], forced_by: str, seconds: float
) -> None:
    agents = Silent(details)
    given = context(results=DECLARED, forced_by=forced_by)
    given = replace(given, site=replace(given.site, agents=cast(Agents, agents)))
    await FENCE.act(replace(planned(FENCE, settings), source="shop"), given)
    assert agents.waited == [seconds]
    assert ANSWER_SECONDS < ONLY_WAY_SECONDS < FENCE.read_settings(settings).seconds_max
