"""Which recovery point a person means: `latest`, a time, an id, or what a point was called."""

from __future__ import annotations

from datetime import UTC, datetime

from drengine.model.errors import BAD_POINT, DrengineError
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.store.errors import DAMAGED, UNKNOWN_POINT
from drengine.store.store import Store

LABEL_LENGTH_MAX = 255


def select_point(store: Store, source: str, text: str) -> RecoveryPoint:
    """The point meant by `text`; times and labels look at the active branch and what it grew from.

    Raises:
        DrengineError: UNKNOWN_SOURCE, UNKNOWN_POINT, DAMAGED, BAD_POINT.
    """
    selector = _selector(text)
    if selector is not None:
        point = store.find_point(source, selector)
    else:
        if not text or len(text) > LABEL_LENGTH_MAX or not text.isprintable():
            raise DrengineError(BAD_POINT, f"{text[:60]!r} names no recovery point")
        point = _labelled(store, source, text)
    if point.damaged:
        raise DrengineError(DAMAGED, f"point {point.id} of {source!r} has unreadable data")
    return point


def _selector(text: str) -> PointSelector | None:
    """None when it can only be a label."""
    try:
        return PointSelector.parse(text)
    except DrengineError:
        if text.startswith("before:"):
            raise
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return PointSelector(before_ns=int(moment.timestamp() * 1e9))
    except (ValueError, OverflowError):
        return None


def _labelled(store: Store, source: str, label: str) -> RecoveryPoint:
    """The newest undamaged one that was called so."""
    parents = {branch.number: branch for branch in store.branches(source)}
    number, newest = store.source(source).active_branch, None
    while number:
        for point in reversed(store.points(source, branch=number)):
            if point.label == label and not point.damaged and (newest is None or point.sequence <= newest):
                return point
        newest, number = parents[number].base_sequence, parents[number].parent
    raise DrengineError(UNKNOWN_POINT, f"{source!r} has no undamaged point called {label[:60]!r}")
