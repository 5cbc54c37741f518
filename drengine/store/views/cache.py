"""What was used last, bounded by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

_V = TypeVar("_V")


class ByteCache(Generic[_V]):
    """Least recently used values, bounded by the sum of their sizes. Safe between threads."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[_V, int]] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """The sum of the sizes of what is kept."""
        return self._bytes

    def get(self, key: Hashable) -> _V | None:
        """The value, now the most recently used; or None."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def get_all(self, keys: Sequence[Hashable]) -> list[_V | None]:
        """As `get`, of each key."""
        found: list[_V | None] = []
        with self._lock:
            values = self._values
            for key in keys:
                kept = values.get(key)
                if kept is not None:
                    values.move_to_end(key)
                found.append(None if kept is None else kept[0])
        return found

    def put(self, key: Hashable, value: _V, size: int) -> None:
        """Keep a value of `size` bytes, dropping the oldest ones beyond the bound."""
        with self._lock:
            old = self._values.pop(key, None)
            self._bytes += size - (old[1] if old else 0)
            self._values[key] = (value, size)
            while self._bytes > self._bytes_max and len(self._values) > 1:
                _, (_, dropped) = self._values.popitem(last=False)
                self._bytes -= dropped

    def forget_all(self, matches: Callable[[Hashable], bool]) -> None:
        """Drop every value whose key matches."""
        with self._lock:
            keys = [key for key in self._values if matches(key)]
        for key in keys:
            self.forget(key)

    def forget(self, key: Hashable) -> None:
        """Drop one value."""
        with self._lock:
            old = self._values.pop(key, None)
            self._bytes -= old[1] if old else 0
