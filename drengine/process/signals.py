"""Daemons and commands that run until SIGTERM or SIGINT; SIGHUP ends commands, and has daemons read files again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that ask a process to end; the last one when its terminal goes away."""


def ending_signals() -> list[signal.Signals]:
    """Those of ENDING that this process is to heed: a SIGHUP that `nohup` had ignored stays so."""
    return [each for each in ENDING if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN]


def ask_on_signals(
    ask: Callable[[], object], *, insist: bool = False, reload: Callable[[], object] | None = None
) -> None:
    """Have the ending signals call `ask` in the running loop.

    Args:
        ask: asks the process to end; called once for each signal.
        insist: a second signal ends the process at once, with the exit code 128 + its number.
        reload: what SIGHUP calls instead, in a daemon: it reads again what can be read again, and never ends.

    Raises:
        ValueError, RuntimeError: this is not the main thread.
    """
    asked = False

    def on_signal(number: int) -> None:
        nonlocal asked
        if asked and insist and number != signal.SIGHUP:  # kernel and shell both tell of a lost terminal
            os._exit(128 + number)
        asked = True
        ask()

    loop = asyncio.get_running_loop()
    for number in ending_signals():
        loop.add_signal_handler(number, on_signal, number)
    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, reload)


def signalled(*, insist: bool = False, reload: Callable[[], object] | None = None) -> asyncio.Event:
    """An event that the ending signals set. `insist` and `reload` as for `ask_on_signals`."""
    event = asyncio.Event()
    ask_on_signals(event.set, insist=insist, reload=reload)
    return event
