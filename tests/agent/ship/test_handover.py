"""The end of a session lets all go that wait to hand something over."""

from __future__ import annotations

import asyncio

import pytest

from drengine_agent.ship.handover import PERMITS, Handover, Stopped


async def test_all_that_wait_for_a_place_are_let_go_at_the_end_and_so_are_those_that_come_later() -> None:
    handover = Handover[int](lambda: False)
    for _ in range(PERMITS):
        handover.acquire()
    waiting = [asyncio.create_task(asyncio.to_thread(handover.acquire)) for _ in range(5)]
    await asyncio.sleep(0)
    handover.stop()
    for each in waiting:
        with pytest.raises(Stopped):
            await asyncio.wait_for(each, 10)
    with pytest.raises(Stopped):
        handover.acquire()
