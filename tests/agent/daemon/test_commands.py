"""Commands that a run has executed on a source: only those that the host's own file names, each ended in its time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from drengine.control.messages import Command, Verb
from drengine.control.refusals import OrderRefusedError
from drengine.model.errors import DrengineError
from drengine_agent.config import AllowOptions
from drengine_agent.daemon.commands import run_ordered


def order(*argv: str, **more: Any) -> Command:
    arguments = {"command": list(argv), **more}
    return Command(id="1", verb=Verb.RUN, generation=1, expires_ns=2**62, arguments=arguments, run="r1")


async def test_a_command_of_the_list_runs_and_its_words_are_told() -> None:
    told = await run_ordered(order("sh", "-c", "echo $DRENGINE_RUN $DRENGINE_SOURCE"), "shop", ["sh -c ..."])
    assert told == {"exit": 0, "output": "r1 shop"}


@pytest.mark.parametrize(
    ("argv", "allowed"),
    [
        (("true",), ()),
        (("true",), ("false",)),
        (("true", "x"), ("true",)),
        (("systemctl", "stop", "sshd"), ("systemctl stop shop*", "systemctl start shop*")),
        ((), ("...",)),
    ],
)
async def test_what_is_not_on_the_list_is_refused_and_nothing_runs(
    argv: tuple[str, ...], allowed: tuple[str, ...]
) -> None:
    with pytest.raises(OrderRefusedError) as refused:
        await run_ordered(order(*argv), "shop", allowed)
    assert refused.value.code == "order-not-allowed"


def test_by_default_nothing_is_on_the_list() -> None:
    assert AllowOptions().commands == ()


async def test_a_command_that_fails_is_told_with_its_words() -> None:
    with pytest.raises(DrengineError, match="ended with 3: no such unit"):
        await run_ordered(order("sh", "-c", "echo no such unit; exit 3"), "shop", ["sh -c *"])


async def test_a_command_ends_with_its_time_and_with_its_order() -> None:
    began = time.monotonic()
    with pytest.raises(DrengineError, match=r"took longer than 0.2 s"):
        await run_ordered(order("sleep", "60", seconds=0.2), "shop", ["sleep *"])
    task = asyncio.create_task(run_ordered(order("sleep", "60"), "shop", ["sleep *"]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("arguments", [{"command": "true"}, {}, {"command": ["true"], "seconds": "x"}])
async def test_what_is_no_order_is_refused(arguments: dict[str, Any]) -> None:
    wrong = Command(id="1", verb=Verb.RUN, generation=1, expires_ns=2**62, arguments=arguments)
    with pytest.raises(ValueError, match=r"Expected|Object"):
        await run_ordered(wrong, "shop", ["true"])
