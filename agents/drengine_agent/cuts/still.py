"""Holding a source still for a moment: its applications by hooks, its file systems by a freeze."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine_agent.cuts.errors import FREEZE_TOO_LONG, HOOK_FAILED
from drengine_agent.cuts.freezer import Freezer, FreezeReport
from drengine_agent.cuts.hooks import Hooks

NOTHING_TO_FREEZE = FreezeReport(held=True, seconds=0.0)
"""Volumes on which no file system is mounted anywhere: whether somebody wrote them is for the tracker to say."""


@dataclass(slots=True)
class Still:
    """A moment of stillness; what it was is known when it is over.

    Attributes:
        held: nothing was thawed before we asked for it.
        seconds: how long the file systems were frozen.
    """

    held: bool = False
    seconds: float = 0.0


class Stillness:
    """Makes moments of stillness for the file systems that lie on the source's volumes at that moment."""

    def __init__(self, freezer: Freezer, hooks: Hooks, places: Callable[[], Sequence[Path]]) -> None:
        """`places`: where those file systems are mounted, in freezing order."""
        self._freezer = freezer
        self._hooks = hooks
        self._places = places

    def start(self) -> None:
        """Have the watchdog there before it is needed: starting it reads files.

        Raises:
            DrengineError: FREEZE_REFUSED.
        """
        self._freezer.start()

    def settle(self) -> None:
        """Write out what file systems hold in memory, long before a freeze.

        Raises:
            OSError: one can't.
        """
        self._freezer.settle(self._places())

    @contextmanager
    def held(self, *, application: bool) -> Iterator[Still]:
        """Applications quiesced (if wanted), then file systems frozen, for the body; thawed however it ends.

        Raises:
            DrengineError: FREEZE_REFUSED, FREEZE_TOO_LONG, HOOK_FAILED; nothing is held then.
        """
        places = self._places()
        still = Still()
        try:
            if application:
                self._hooks.run_before()
                self._freezer.settle(places)  # what the hook had written out, a checkpoint perhaps
            if places:
                self._freezer.freeze(places)
            try:
                yield still
            finally:
                report = self._freezer.thaw() if places else NOTHING_TO_FREEZE
                still.held, still.seconds = report.held, report.seconds
        finally:
            if application:
                self._hooks.run_after()

    @staticmethod
    def reason_of(error: Exception) -> str:
        """The code of states.REASONS for a failure."""
        if isinstance(error, DrengineError):
            if error.kind is FREEZE_TOO_LONG:
                return "freeze-too-long"
            if error.kind is HOOK_FAILED:
                return "hook-failed"
            return "freeze-refused"
        return "read-error"

    def close(self) -> None:
        """Nothing can be frozen any more."""
        self._freezer.close()
