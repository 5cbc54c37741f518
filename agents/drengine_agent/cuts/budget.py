"""How much may be left to copy when a freeze begins: what can be read in its time, as it was measured here.

A fixed limit fits no disk: eight mebibytes take a fast one five milliseconds, and a slow one with scattered blocks
longer than any freeze. So each reading during a freeze is measured, and the next freeze begins when what is left would
be read in half of the longest freeze; the other half is for what the file systems write out while they are frozen.
"""

from __future__ import annotations

from collections.abc import Callable

from drengine.linux.memory import available_memory

SHARE = 0.5
"""Of the longest freeze, for reading."""
LATE_SHARE = 0.625
"""The same, when a cut is late."""
GIVE_UP_SHARE = 0.75
"""Reading that took so much of it is given up: thawing early is better than a watchdog that does it."""
AVAILABLE_SHARE = 0.25
"""Of the memory that the host could give away."""
BYTES_MIN = 1 << 20
UNKNOWN_BYTES_PER_SECOND = 64 << 20
"""A disk of which nothing was read yet."""
MEASURED_BYTES_MIN = 256 << 10
"""What is read in an instant says nothing of a disk's speed."""
NEW_SHARE = 0.5
GAIN_MAX = 8.0
LATE_GAIN = 4.0
"""Nothing was read during a freeze yet, and a cut is late: nobody writes beside it then, and several threads read. Too
high a guess costs one freeze without a cut, and is measured by it; too low a one costs a busy host its points."""
FIRST_CAUTION = 0.5
"""Nothing is known yet of how long this host takes to freeze."""
LATE_FACTOR = 2.0
SMALLEST = 1 / 64


class FreezeBudget:
    """Learns from each freeze. For one thread."""

    def __init__(
        self,
        *,
        longest_seconds: float,
        memory_bytes: int,
        read_speed: Callable[[], float] = float,
        readers: int = 4,
        available: Callable[[], int] = available_memory,
    ) -> None:
        """
        Args:
            longest_seconds: a freeze never lasts longer.
            memory_bytes: never more is read into memory.
            read_speed: how fast changed blocks were read lately without a freeze, in bytes a second; 0 is not known.
            readers: threads that read during a freeze.
            available: the host's free memory, in bytes.
        """
        self._longest_seconds = longest_seconds
        self._memory_bytes = memory_bytes
        self._read_speed = read_speed
        self.readers = readers
        self._available = available
        self._gain = 1.0
        self._is_measured = False
        self._caution = FIRST_CAUTION

    @property
    def _speed(self) -> float:
        return self._read_speed() or UNKNOWN_BYTES_PER_SECOND

    @property
    def reading_seconds_max(self) -> float:
        """Reading during a freeze is given up then."""
        return GIVE_UP_SHARE * self._longest_seconds

    def bytes_max(self, *, late: bool = False) -> int:
        """How much may be left when a freeze begins.

        Args:
            late: the cut is due and was not to be had: less caution.
        """
        gain = LATE_GAIN if late and not self._is_measured else self._gain
        caution = min(1.0, LATE_FACTOR * self._caution if late else self._caution)
        share = LATE_SHARE if late else SHARE
        in_time = self._speed * gain * share * self._longest_seconds * caution
        return max(BYTES_MIN, int(min(in_time, self.memory_bytes)))

    @property
    def memory_bytes(self) -> int:
        """What may be read into memory now."""
        return min(self._memory_bytes, int(AVAILABLE_SHARE * self._available()))

    def read(self, length: int, seconds: float) -> None:
        """So much was read during a freeze, in so many seconds. It has more threads, and fewer others beside it, than
        reading without one has; how much faster it is counts for the next."""
        if length >= MEASURED_BYTES_MIN and seconds > 0:
            gain = min(GAIN_MAX, length / seconds / self._speed)
            self._gain = NEW_SHARE * gain + (1 - NEW_SHARE) * self._gain
            self._is_measured = True

    def held(self) -> None:
        """A freeze was over in time."""
        self._caution = min(1.0, self._caution * 1.5)

    def too_long(self) -> None:
        """One was not: the next begins with half as much left."""
        self._caution = max(SMALLEST, self._caution / 2)
