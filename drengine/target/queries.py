"""Answers to hash queries: digests of the replica as of everything that was received before the question.

A rescan asks thousands of questions while it ships the differences that it finds. Making everything durable and
opening the head anew for each would be wasteful, so a view is kept as long as nothing shipped since it was opened
touches the range that is asked about. The view's lease keeps compaction away from it.
"""

from __future__ import annotations

import threading

from drengine.model.errors import DrengineError
from drengine.model.extents import EXTENT, NO_DIGEST
from drengine.model.points import VolumeGeometry
from drengine.store.errors import DAMAGED
from drengine.store.store import Store
from drengine.store.views.view import View
from drengine.wire.events import HashQuery
from drengine.wire.payload import digest

CHANGES_KEPT_MAX = 4096


class HashAnswers:
    """The kept view of one branch. `note_*` and `begin` belong to the ingest thread, `answer` to any."""

    def __init__(self, store: Store, source: str, branch: int) -> None:
        self._store = store
        self._source = source
        self._branch = branch
        self._view: SharedView | None = None
        self._changes: list[tuple[int, int, int]] = []
        self._stale = True

    def note_table(self, table: bytes) -> None:
        """A batch was appended: remember, per volume, the range within which it changed something."""
        if self._stale:
            return
        ranges: dict[int, tuple[int, int]] = {}
        for volume, _, offset, length, _ in EXTENT.iter_unpack(table):
            low, high = ranges.get(volume, (offset, offset + length))
            ranges[volume] = (min(low, offset), max(high, offset + length))
        self._changes += [(volume, low, high) for volume, (low, high) in ranges.items()]
        self._stale = len(self._changes) > CHANGES_KEPT_MAX

    def note_geometry(self) -> None:
        """The volumes changed: the view knows others."""
        self._stale = True

    def is_current(self, query: HashQuery) -> bool:
        """Whether the kept view already shows everything that the query is about."""
        begin, end = query.offset, query.offset + query.count * query.chunk_bytes
        return not self._stale and not any(
            volume == query.volume and low < end and begin < high for volume, low, high in self._changes
        )

    def begin(self, query: HashQuery) -> SharedView:
        """A view for `answer`; everything received before must be durable unless `is_current`. Release it.

        Raises:
            DrengineError: the head can't be opened.
        """
        if self._view is None or not self.is_current(query):
            self.close()
            self._view = SharedView(self._store.head_view(self._source, self._branch))
            self._changes, self._stale = [], False
        return self._view.hold()

    def close(self) -> None:
        """Give the view up (once the answers under way are done)."""
        if self._view:
            self._view.release()
            self._view = None
        self._stale = True


class SharedView:
    """A view that is closed when its last holder releases it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> SharedView:
        """One holder more."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        """One holder less."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self.view.close()


def answer(view: View, query: HashQuery) -> bytes:
    """The digests of a query: chunks never written, unknown or past the end hash as zeros (see HashQuery).

    A chunk that can't be read gets a digest that no data has, so the agent ships it again: that repairs the head.
    """
    volume: VolumeGeometry | None = view.geometry.get(query.volume)
    size = volume.size_bytes if volume else 0
    inside = min(query.count, max(0, -(-(size - query.offset) // query.chunk_bytes)))
    found = _digests(view, query, inside) if inside else b""
    return found + digest(b"") * (query.count - inside)


def _digests(view: View, query: HashQuery, count: int) -> bytes:
    try:
        return view.digests(query.volume, query.offset, query.chunk_bytes, count)
    except DrengineError as error:
        if error.kind is not DAMAGED:
            raise
    found = []
    for number in range(count):
        try:
            found.append(view.digests(query.volume, query.offset + number * query.chunk_bytes, query.chunk_bytes, 1))
        except DrengineError as error:
            if error.kind is not DAMAGED:
                raise
            found.append(NO_DIGEST)
    return b"".join(found)
