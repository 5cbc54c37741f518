"""Where orders about the fleet are given: in this process, or to an orchestrator that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from drengine.cli.acting import acting_person, place_of, running_door, token_for
from drengine.cli.run_options import LookOptions
from drengine.console.client import Client
from drengine.console.fleet_client import RemoteFleet
from drengine.failover.config import load_orchestrator_config
from drengine.fleet.answers import RolloutAnswer
from drengine.fleet.orders import FleetOrders, open_fleet
from drengine.fleet.rollout import Executor, duty_of, rollout_answer
from drengine.fleet.telling import tell_policies

LOOK_SECONDS = 0.5
T = TypeVar("T")
Desk = FleetOrders | RemoteFleet


def ask_fleet(options: LookOptions, question: Callable[[Desk], T], *, decides: bool = False) -> T:
    """Ask or order one thing. What is decided for agents is told them from here where no orchestrator runs."""

    async def work(desk: Desk) -> T:
        answer = await asyncio.to_thread(question, desk)
        if decides and isinstance(desk, FleetOrders):
            await tell_policies(desk.parts)
        return answer

    return _at_desk(options, work)


def carry_rollout(
    options: LookOptions,
    order: Callable[[Desk], RolloutAnswer],
    *,
    carry: bool,
    watch: Callable[[RolloutAnswer], object],
) -> RolloutAnswer:
    """Order something of an upgrade, and with `carry` see it to its end: here, or where an orchestrator does it.

    An interrupt ends only the looking on where an orchestrator does it; otherwise what was not ordered yet waits for
    `--resume`.
    """

    async def work(desk: Desk) -> RolloutAnswer:
        rollout = await asyncio.to_thread(order, desk)
        if not carry:
            return rollout
        if isinstance(desk, FleetOrders):
            return rollout_answer(await Executor(desk.parts, duty_of(desk.parts), watch).run())
        while rollout.state == "running":
            watch(rollout)
            await asyncio.sleep(LOOK_SECONDS)
            rollout = await asyncio.to_thread(desk.rollout)
        watch(rollout)
        return rollout

    return _at_desk(options, work)


def _at_desk(options: LookOptions, work: Callable[[Desk], Awaitable[T]]) -> T:
    async def run() -> T:
        address, place = options.url, options.url
        if not address:
            loaded = load_orchestrator_config(options.config, options.given())
            address, place = running_door(loaded.socket_path), place_of(loaded.state)
        if address:
            return await work(RemoteFleet(Client(address, token=token_for(place), cacert=options.cacert)))
        async with open_fleet(loaded, partial(acting_person, loaded.state)) as opened:
            return await work(opened)

    return asyncio.run(run())
