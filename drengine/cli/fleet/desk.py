"""Where orders about the fleet are given: in this process, or to an orchestrator that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from drengine.cli.acting import acting_person, place_of, running_door, token_for
from drengine.cli.run_options import LookOptions
from drengine.console.client import Client
from drengine.console.fleet_client import RemoteFleet
from drengine.failover.config import load_orchestrator_config
from drengine.fleet.orders import FleetOrders, open_fleet
from drengine.fleet.telling import tell_policies

T = TypeVar("T")
Desk = FleetOrders | RemoteFleet


def ask_fleet(options: LookOptions, question: Callable[[Desk], T], *, decides: bool = False) -> T:
    """Ask or order one thing. What is decided for agents is told them from here where no orchestrator runs."""

    async def run() -> T:
        address, place = options.url, options.url
        if not address:
            loaded = load_orchestrator_config(options.config, options.given())
            address, place = running_door(loaded.socket_path), place_of(loaded.state)
        if address:
            remote = RemoteFleet(Client(address, token=token_for(place), cacert=options.cacert))
            return await asyncio.to_thread(question, remote)
        async with open_fleet(loaded, partial(acting_person, loaded.state)) as opened:
            answer = await asyncio.to_thread(question, opened)
            if decides:
                await tell_policies(opened.parts)
            return answer

    return asyncio.run(run())
