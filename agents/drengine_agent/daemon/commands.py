"""Commands that a run has executed on this source: its services' stop and start, from this host's own list."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drengine.control.allowed import is_allowed
from drengine.control.messages import Command
from drengine.control.refusals import OrderRefusedError
from drengine.model.errors import DrengineError
from drengine.process import run_cancellable
from drengine_agent.errors import COMMAND_REFUSED

OUTPUT_CHARACTERS_MAX = 4096


class RunOrder(msgspec.Struct, frozen=True):
    """The arguments of RUN. `seconds`: how long it may take."""

    command: list[str]
    seconds: float = 60.0


async def run_ordered(order: Command, source: str, allowed: Sequence[str]) -> Mapping[str, Any]:
    """Run what an order names, if this host's file allows it; gives its exit status and its last words.

    Raises:
        OrderRefusedError: order-not-allowed.
        DrengineError: COMMAND_REFUSED, it did not end well.
        ValueError: the arguments are none.
    """
    wanted = msgspec.convert(order.arguments, RunOrder)
    if not wanted.command or not is_allowed(wanted.command, allowed):
        command = shlex.join(wanted.command)[:200]
        raise OrderRefusedError("order-not-allowed", f"the command {command!r} ([allow] commands)")
    environment = {"DRENGINE_RUN": order.run, "DRENGINE_SOURCE": source}
    finished = await run_cancellable(wanted.command, timeout_seconds=wanted.seconds, environment=environment)
    output = finished.output[-OUTPUT_CHARACTERS_MAX:]
    if not finished.ok:
        why = f"took longer than {wanted.seconds:g} s" if finished.timed_out else f"ended with {finished.code}"
        raise DrengineError(COMMAND_REFUSED, f"{shlex.join(wanted.command)} {why}: {output}".rstrip(": "))
    return {"exit": finished.code, "output": output}
