"""Which consistent cuts a source may make, as people write it."""

from __future__ import annotations

from drengine.model.points import PointKind

KINDS = (PointKind.QUIET, PointKind.FROZEN, PointKind.APPLICATION)
AUTO = "auto"


def cut_kinds(text: str) -> tuple[PointKind, ...]:
    """The kinds that a text names: `auto`, or some of KINDS with commas between.

    Raises:
        ValueError: it names others, or none.
    """
    if text == AUTO:
        return (PointKind.QUIET, PointKind.FROZEN)
    named = tuple(each.strip() for each in text.split(","))
    unknown = [each for each in named if each not in KINDS]
    if unknown or not named:
        raise ValueError(f"{', '.join(unknown) or 'nothing'}: possible are {AUTO}, {', '.join(KINDS)}")
    return tuple(PointKind(each) for each in named)
