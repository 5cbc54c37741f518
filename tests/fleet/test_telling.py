"""Agents are told the policy that holds: once, again when it changes, and rarely where they do not take it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from drengine.control.agents import NoAgents
from drengine.control.messages import AgentReport, Answer, PartyKind, Verb
from drengine.failover.config import OrchestratorConfig
from drengine.failover.duties import Duty
from drengine.failover.registry import Registry
from drengine.fleet.look import Parts
from drengine.fleet.telling import AGAIN_SECONDS, LOOK_SECONDS, REFUSED_SECONDS, _keep
from drengine.policy.kept import PolicyFile
from tests.clock import ManualClock


class Site(NoAgents):
    """Agents by name, each with the digest that it has; `unwilling` ones refuse."""

    def __init__(self, *names: str, unwilling: tuple[str, ...] = ()) -> None:
        self.has = dict.fromkeys(names, "")
        self.unwilling = unwilling
        self.online = set(names)
        self.told: list[tuple[str, dict[str, str]]] = []

    def reports(self) -> dict[str, AgentReport]:
        return {
            name: AgentReport(
                name=name, kind=PartyKind.AGENT, state="CONTINUOUS", reason="none", generation=1, fenced=False,
                serving=True, lag_seconds=0.0, backlog_bytes=0, at_ns=0, sequence=0,
                details={"policy": {"digest": has}},
            )
            for name, has in self.has.items()
        }  # fmt: skip

    def is_online(self, name: str) -> bool:
        return name in self.online

    async def command(self, name: str, verb: Verb, arguments: Any, **more: Any) -> Answer:
        assert verb is Verb.POLICY
        self.told.append((name, arguments["settings"]))
        if name in self.unwilling:
            return Answer(id=more["id"], done=True, ok=False, code="order-not-allowed", message="the verb policy")
        self.has[name] = arguments["digest"]
        return Answer(id=more["id"], done=True, ok=True)


def decide(store: Path, **rules: dict[str, str]) -> None:
    file = PolicyFile(store)
    with file.changing() as policy:
        file.keep(msgspec.structs.replace(policy, version=policy.version + 1, rules=rules))


async def passed(clock: ManualClock, seconds: float) -> None:
    """Let the time pass, a look at a time, and what it begins be through."""
    for _ in range(round(seconds / LOOK_SECONDS)):
        clock.advance(LOOK_SECONDS)
        for _ in range(20):
            await asyncio.sleep(0.001)


async def test_each_agent_is_told_what_concerns_it_once_and_again_when_that_changes(tmp_path: Path) -> None:
    clock, site = ManualClock(), Site("shop", "web", "no", unwilling=("no",))
    site.online.discard("web")
    (tmp_path / "store").mkdir()
    config = OrchestratorConfig(store=tmp_path / "store", state=tmp_path / "state")
    registry = Registry.open(config.registry_url, clock=clock)
    duty = Duty(registry, clock, "policies", owner="one", seconds=15.0)
    assert await duty.take()
    keeping = asyncio.create_task(_keep(Parts(config, clock, None, None, site), duty))
    await passed(clock, 3)
    assert site.told == [], "nothing is decided, and they have nothing"
    decide(tmp_path / "store", **{"shop": {"bandwidth": "1MiB/s", "ring": "x"}, "*": {"cuts": "quiet"}})
    await passed(clock, 5)
    wanted = {"bandwidth": "1MiB/s", "cuts": "quiet"}
    assert sorted(site.told) == [("no", {"cuts": "quiet"}), ("shop", wanted)]
    await passed(clock, AGAIN_SECONDS * 2)
    assert len(site.told) == 2, "who refused is not asked all the time"
    site.online.add("web")
    await passed(clock, 3)
    assert site.told[2:] == [("web", {"cuts": "quiet"})], "who was away learns of it"
    decide(tmp_path / "store", shop={"bandwidth": "1MiB/s"}, no={"cuts": "auto"})
    await passed(clock, 3)
    assert sorted(site.told[3:]) == [("no", {"cuts": "auto"}), ("shop", {"bandwidth": "1MiB/s"}), ("web", {})]
    del site.told[:]
    await passed(clock, REFUSED_SECONDS + 5)
    assert site.told == [("no", {"cuts": "auto"})], "and now and then once more"
    (tmp_path / "store" / "policy.json").write_text("{")
    await passed(clock, 3)
    assert not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    registry.close()
