"""Daemons and commands that run until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT)
"""The signals that ask a process to end."""


def ask_on_signals(ask: Callable[[], object], *, insist: bool = False) -> None:
    """Have SIGTERM and SIGINT call `ask` in the running loop.

    Args:
        ask: asks the process to end; called once for each signal.
        insist: a second signal ends the process at once, with the exit code 128 + its number.

    Raises:
        ValueError, RuntimeError: this is not the main thread.
    """
    asked = False

    def on_signal(number: int) -> None:
        nonlocal asked
        if asked and insist:
            os._exit(128 + number)
        asked = True
        ask()

    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, on_signal, number)


def signalled(*, insist: bool = False) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set. `insist` as for `ask_on_signals`."""
    event = asyncio.Event()
    ask_on_signals(event.set, insist=insist)
    return event
