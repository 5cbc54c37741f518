"""An agent on its way home as a process of its own, which ends as if killed at its n-th write to a disk.

    python -m tests.agent.failback.home_child CONFIG.json VERB ARGUMENTS WRITES

Prints what the verb answered as JSON if it lived to see it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drengine_agent.capture.backing import Volume
from drengine_agent.config import parse_config
from drengine_agent.daemon.service import Agent

KILLED = 137


def dying_after(writes: int) -> None:
    """Let the process end in the middle of the n-th write."""
    left = writes

    def fatal(real: Callable[..., None]) -> Callable[..., None]:
        def call(self: Volume, offset: int, what: Any, **options: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                if not isinstance(what, int):
                    real(self, offset, what[: len(what) // 2])
                os._exit(KILLED)
            real(self, offset, what, **options)

        return call

    Volume.write = fatal(Volume.write)  # type: ignore[method-assign]
    Volume.zero = fatal(Volume.zero)  # type: ignore[method-assign]


async def work(options: dict[str, object], verb: str, arguments: list[Any]) -> None:
    agent = Agent(parse_config(options))
    running = asyncio.create_task(agent.run())
    try:
        print(json.dumps(asdict(await getattr(agent, verb)(*arguments))))
    finally:
        agent.stop()
        await running


if __name__ == "__main__":
    dying_after(int(sys.argv[4]))
    asyncio.run(work(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], json.loads(sys.argv[3])))
