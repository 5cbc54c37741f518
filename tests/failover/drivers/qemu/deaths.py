"""Processes that die at a step of a launch."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from types import ModuleType
from typing import Any


def die_at(module: ModuleType, step: str, work: Callable[[], Any], *, after: bool) -> None:
    """Carry something out in a process of its own, which is killed before or after its first call of module.step."""

    def run() -> None:
        real = getattr(module, step)

        def dying(*arguments: Any, **named: Any) -> None:
            if after:
                made = real(*arguments, **named)
                if hasattr(made, "__enter__"):
                    made.__enter__()
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(module, step, dying)
        work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"{step} was not reached"
