"""Where orders are given: in this process, or to an orchestrator that runs.

It needs a database, numpy and an HTTP client: commands import it when they have been understood (carrying.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from drengine.cli.acting import acting_person, place_of, running_door, token_for
from drengine.cli.run_options import LookOptions, PlanOptions
from drengine.cli.under_way import UnderWay
from drengine.console.client import Client, RemoteOrders
from drengine.failover.config import load_orchestrator_config
from drengine.failover.orders import Orders, open_orders
from drengine.process.signals import ask_on_signals
from drengine.terminal import note

T = TypeVar("T")
Desk = Orders | RemoteOrders


def at_desk(
    options: LookOptions | PlanOptions,
    work: Callable[[Desk], Awaitable[T]],
    *,
    here: bool = False,
    under_way: UnderWay,
) -> T:
    """Do the work with the orchestrator that is named, or that runs here; otherwise with an engine opened for it.

    An interrupt ends it as soon as what can't be left alone is through; a second one at once. The run's journal knows
    how far it is in either case.
    """

    async def run() -> T:
        address = options.url
        if not address:
            loaded = load_orchestrator_config(options.config, options.given())
            address = "" if here else running_door(loaded.socket_path)
        _end_on_signals(asyncio.current_task(), under_way, elsewhere=bool(address))
        if address:
            place = address if options.url else place_of(loaded.state)
            return await work(RemoteOrders(Client(address, token=token_for(place), cacert=options.cacert)))
        async with open_orders(loaded, partial(acting_person, loaded.state)) as opened:
            return await work(opened)

    try:
        return asyncio.run(run())
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error


def _end_on_signals(task: asyncio.Task[Any] | None, under_way: UnderWay, *, elsewhere: bool) -> None:
    def end() -> None:
        note(_farewell(under_way.run, elsewhere=elsewhere))
        if task is not None:
            task.cancel()

    with suppress(ValueError, RuntimeError):  # not the main thread
        ask_on_signals(end, insist=True)


def _farewell(run: str, *, elsewhere: bool) -> str:
    """What becomes of a run when its command is interrupted, and what to type then."""
    if not run:
        return "ending; no run was begun"
    if elsewhere:
        return f"the orchestrator goes on: drengine run show {run}; to end the run: drengine abort {run}"
    return f"ending; to go on: drengine run resume {run}; to end it where it is: drengine abort {run}. Again: at once"
