"""What a process that maintains a store remembers of the sources that it looked at, so as not to look again in vain.

It lives in that process's memory alone, and says only that nothing was to be done: forgetting it costs time, and what
it says is void once anything has changed on which the answer depended.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from drengine.store.names import SegmentPlace

WHOLE_SECONDS = 3600.0
"""After so long compaction looks at all files of a source, whatever it remembers: one may lie there that no row ever
named, because its writer died."""


@dataclass(slots=True)
class Looks:
    """By source, what the last looks found. Belongs to one process, and one pass at a time.

    Attributes:
        retention: nothing was to be retired: on what the answer depended, and the latest moment at which a point came.
            Retention counts ages back from the newest point, so from that moment on time alone changes nothing.
        compaction: nothing was to be done: on what the answer depended.
        swept: when, by the monotonic clock, what interrupted writing left was removed.
        strays: which files were set aside, and when, by the monotonic clock, all were looked at.
    """

    retention: dict[str, tuple[Hashable, int]] = field(default_factory=dict)
    compaction: dict[str, Hashable] = field(default_factory=dict)
    strays: dict[str, tuple[float, list[SegmentPlace]]] = field(default_factory=dict)
    swept: float = -math.inf

    def forget_others(self, sources: frozenset[str]) -> None:
        """Keep what is known of these sources alone."""
        for known in (self.retention, self.compaction, self.strays):
            for gone in known.keys() - sources:
                del known[gone]
