"""Which recovery point a run is to use."""

from __future__ import annotations

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.store.errors import DAMAGED
from drengine.store.store import Store


def select_point(store: Store, source: str, text: str) -> RecoveryPoint:
    """The undamaged point meant by `text`, see `PointSelector.parse`.

    Raises:
        DrengineError: UNKNOWN_SOURCE, UNKNOWN_POINT, DAMAGED, BAD_POINT.
    """
    point = store.find_point(source, PointSelector.parse(text))
    if point.damaged:
        raise DrengineError(DAMAGED, f"point {point.id} of {source!r} has unreadable data")
    return point
