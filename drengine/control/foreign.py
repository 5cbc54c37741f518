"""Reading what other parties say: bounded here, once, so that nothing behind this has to ask how large or deep it is.

A message that is out of bounds is refused as a whole. What the party said before stays, as if it had said nothing.
"""

from __future__ import annotations

import enum
import logging
from collections import Counter, deque
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from drengine.control.message import PAYLOAD_BYTES_MAX
from drengine.model.clock import Clock

log = logging.getLogger("drengine.control")

INTEGER_MIN, INTEGER_MAX = -(1 << 63), (1 << 63) - 1
"""What the registry's columns hold."""
DEPTH_MAX = 24
VALUES_MAX = 16 << 10
LOG_SECONDS = 10.0

T = TypeVar("T")


class Dropped(enum.StrEnum):
    """Why a message was not taken; label of a metric."""

    MALFORMED = "malformed"
    TOO_LONG = "too-long"
    TOO_DEEP = "too-deep"
    TOO_MANY_VALUES = "too-many-values"
    NUMBER = "number"
    PARTY = "party"
    """The name is taken by a party of another kind, or there are too many parties."""
    UNSIGNED = "unsigned"
    SIGNATURE = "signature"
    """An answer that is signed, but by nobody whom we believe, or by another party."""


class Unreadable(ValueError):
    """A message that is not taken. `reason` is its label, the text is for people."""

    def __init__(self, reason: Dropped, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode(payload: bytes, kind: type[T]) -> T:
    """A message from its JSON.

    Raises:
        Unreadable: it is none of this kind, or is longer, deeper, or has more values or larger integers than fits.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise Unreadable(Dropped.TOO_LONG, f"{len(payload)} bytes, at most {PAYLOAD_BYTES_MAX} are read")
    try:
        found = msgspec.json.decode(payload, type=kind)
    except RecursionError as error:
        raise Unreadable(Dropped.TOO_DEEP, f"more than {DEPTH_MAX} levels") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(Dropped.MALFORMED, str(error)) from error
    _check(found)
    return found


def _check(found: object) -> None:
    """Look at all values, without recursion: depth is what is looked for."""
    left: deque[tuple[object, int]] = deque([(found, 0)])
    seen = 0
    while left:
        value, depth = left.popleft()
        seen += 1
        if seen > VALUES_MAX:
            raise Unreadable(Dropped.TOO_MANY_VALUES, f"more than {VALUES_MAX} values")
        if depth > DEPTH_MAX:
            raise Unreadable(Dropped.TOO_DEEP, f"more than {DEPTH_MAX} levels")
        match value:
            case int() if not INTEGER_MIN <= value <= INTEGER_MAX:
                raise Unreadable(Dropped.NUMBER, "an integer of more than 64 bits")
            case str() if "\0" in value:
                raise Unreadable(Dropped.MALFORMED, "a text with NUL")
            case msgspec.Struct():
                left.extend((each, depth + 1) for each in msgspec.structs.astuple(value))
            case Mapping():
                left.extend((each, depth + 1) for each in value.values())
            case list() | tuple():
                left.extend((each, depth + 1) for each in value)


class Drops:
    """Counts what is not taken. One line for each reason in so many seconds: a flood must not fill the log."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._logged_at: dict[Dropped, float] = {}
        self.counts: Counter[Dropped] = Counter()

    def note(self, what: object, reason: Dropped, message: str) -> None:
        """Count one, and perhaps tell it.

        Args:
            what: where it came from.
            reason: why it is dropped.
            message: the same for people.
        """
        self.counts[reason] += 1
        now = self._clock.monotonic()
        if now - self._logged_at.get(reason, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged_at[reason] = now
            log.warning("a message on %s was dropped (%s): %s", what, reason.value, message)
