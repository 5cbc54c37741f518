"""Two orchestrators on one Mosquitto: what one ordered before it died is not carried out again for the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.control.config import BrokerOptions
from drengine.control.dispatch import Action, Generations, Tell
from drengine.control.messages import AgentReport, Command, Verb
from drengine.failover.run import Outcome
from tests.control.site import Mosquitto, Worker, options_for, party
from tests.orchestrators.rig import Rig, until
from tests.orchestrators.test_takeover import begin, judge


class Source(Worker):
    """An agent that fences itself and takes policies, and notes what it did."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.policies: list[str] = []
        self.has = ""

    async def fence(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        return {**await self.act(command, tell), "cuts_clients": True, "generation": self.generation}

    async def policy(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        self.has = str(command.arguments["digest"])
        self.policies.append(self.has)
        return {}

    def actions(self) -> dict[Verb, Action]:
        fence = Action(self.fence, Generations.NOT_OLDER, bounded=False)
        return {**super().actions(), Verb.FENCE: fence, Verb.POLICY: Action(self.policy, Generations.ANY)}

    def report(self) -> AgentReport:
        return msgspec.structs.replace(super().report(), details={"policy": {"digest": self.has}})


@contextmanager
def there(options: BrokerOptions, source: Source) -> Iterator[None]:
    """The agent, in a thread of its own."""
    ending, loop = asyncio.Event(), asyncio.new_event_loop()

    async def live() -> None:
        async with party(options, source):
            await ending.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(live()))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


@pytest.mark.fault(50, 57)
@pytest.mark.timeout(300)
def test_an_order_is_carried_out_once_and_a_policy_told_once_whoever_dies(site: Rig, tmp_path: Path) -> None:
    broker, source = Mosquitto(tmp_path), Source(tmp_path)
    broker.start()
    try:
        with there(options_for(broker.port), source):
            extra = f'[broker]\naddress = "127.0.0.1:{broker.port}"\n'
            for name in ("one", "two"):
                site.add(name, extra=extra, places="fence:shop.result")
            site.ready()
            site.daemons[1].ask("POST", "/fleet/policy/set", {"sources": "shop", "values": {"cuts": "quiet"}})
            until(lambda: source.policies, "it is told its policy")
            run = begin(site)
            assert site.ends(run).outcome is Outcome.COMPLETED
            judge(site, run, effects=("before", "then"))
            assert site.met() == {"fence:shop.result"}, "its executor was killed when the agent had obeyed"
            assert len(source.done()) == 1, "the agent was asked twice, and fenced once"
            assert len(source.policies) == 1, "two orchestrators see the same, and one tells"
    finally:
        broker.kill()
