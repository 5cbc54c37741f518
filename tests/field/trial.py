"""What a trial is, and the list of all of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.field import trials

if TYPE_CHECKING:
    from tests.field.ground import Ground


@dataclass(frozen=True)
class Trial:
    """Something that was tried on the product.

    Attributes:
        name: what must hold, as one would say it; its words joined by dashes.
        story: the same in a sentence.
        seconds_max: after so long it is ended, and has failed.
        run: tries it; raises an AssertionError when it does not hold.
    """

    name: str
    story: str
    seconds_max: float
    run: Callable[[Ground], None]


class Skipped(Exception):
    """This machine lacks what the trial needs."""


_known: list[Trial] = []


def trial(*, seconds_max: float) -> Callable[[Callable[[Ground], None]], Callable[[Ground], None]]:
    """A function becomes a trial: its name the trial's name, the first line of its description the story."""

    def add(run: Callable[[Ground], None]) -> Callable[[Ground], None]:
        assert run.__doc__, run.__name__
        story = run.__doc__.strip().partition("\n")[0]
        _known.append(Trial(run.__name__.replace("_", "-"), story, seconds_max, run))
        return run

    return add


def all_trials() -> tuple[Trial, ...]:
    """Every trial, by name."""
    for module in pkgutil.iter_modules(trials.__path__):
        importlib.import_module(f"{trials.__name__}.{module.name}")
    return tuple(sorted(_known, key=lambda each: each.name))
