"""[cuts]: the operator's wishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drengine.config import DURATION, SIZE, TEXT, WORDS, option
from drengine.model.cuts import AUTO, cut_kinds
from drengine.model.points import PointKind
from drengine_agent.cuts.policy import CutPolicy

AHEAD_SHARE = 0.5
"""Of `frozen_after`."""


def _between(low: float, high: float) -> Callable[[float], None]:
    def check(value: float) -> None:
        if not low <= value <= high:
            raise ValueError(f"{low:g} to {high:g} s are possible")

    return check


@dataclass(frozen=True)
class CutOptions:
    """[cuts]"""

    kinds: str = option(
        TEXT,
        default=AUTO,
        help="Which consistent cuts may be made, of `quiet`, `frozen`, `application`. `auto`: quiet ones where they "
        "are had, frozen ones where not and where the host can freeze. Without `frozen` a host that never falls quiet "
        "gets no points, and the state says so.",
        check=cut_kinds,
    )
    frozen_after: float = option(
        DURATION, default=10.0, help="Without any cut for so long, the file systems are frozen for one."
    )
    longest_freeze: float = option(
        DURATION,
        default=1.0,
        help="A freeze never lasts longer: a watchdog thaws, and there is no cut.",
        check=_between(0.05, 60.0),
    )
    remainder_max: int = option(
        SIZE,
        default=0,
        help="Copying goes on until at most so much is left; then it may freeze. `0B`: as much as was seen to be "
        "read in half of `longest_freeze`.",
    )
    set_aside: int = option(
        SIZE,
        default=512 << 20,
        help="What may be read into memory during a freeze, and at most a quarter of the memory that is available.",
    )
    application_interval: float = option(
        DURATION, default=0.0, help="An application cut is made so often; `0s`: never. It freezes between its hooks."
    )
    hook_before: tuple[str, ...] = option(
        WORDS, default=(), help="Program and arguments that quiesce the application before the freeze."
    )
    hook_after: tuple[str, ...] = option(
        WORDS, default=(), help="Program and arguments after the thaw, whatever became of the cut."
    )
    hook_timeout: float = option(DURATION, default=30.0, help="How long a hook may take.", check=_between(0.1, 3600.0))
    postgres: tuple[str, ...] = option(
        WORDS,
        default=(),
        help="psql and its arguments, such as `[psql, -U, postgres]`: before an application cut it makes a checkpoint "
        "and a named restore point, so that recovery from the point is short.",
    )

    @property
    def must_freeze(self) -> bool:
        """Somebody asked for it by name: an agent that can't is refused."""
        return self.kinds != AUTO and set(cut_kinds(self.kinds)) != {PointKind.QUIET}

    @property
    def policy(self) -> CutPolicy:
        """As the tracker needs it."""
        return CutPolicy(
            kinds=cut_kinds(self.kinds),
            frozen_after_seconds=self.frozen_after,
            application_seconds=self.application_interval,
            ahead_seconds=AHEAD_SHARE * self.frozen_after,
            remainder_bytes=self.remainder_max,
            set_aside_bytes=self.set_aside,
            overdue_seconds=1.5 * self.frozen_after,
        )
