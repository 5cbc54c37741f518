"""Objects and requests a day of a growing store in S3, and what AWS asks for them by list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.growth.shape import SEGMENT_BYTES, Shape
from drengine.store.options import StoreOptions

DAY_SECONDS = 86_400
READS_PER_INDEX = 3
"""A segment's header, footer and index are read to judge what is live in it."""
LAYERS_PER_SEGMENT = 1 + 1 / 16 + 1 / 256
"""A map for each segment, and one of each level for 16, 256 of them."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars. Of S3 Standard in us-east-1, as AWS listed them in 2025; nothing here asks AWS.

    S3 on Outposts is paid by the capacity that was ordered, not by requests: there the rate of requests is what counts.
    """

    per_1000_puts: float = 0.005
    per_1000_gets: float = 0.0004
    first_50_tb_month: float = 0.023
    next_450_tb_month: float = 0.022

    def storage_month(self, stored_bytes: float) -> float:
        """Of so many bytes, for a month."""
        gb, first = stored_bytes / (1 << 30), 50 * 1024
        return min(gb, first) * self.first_50_tb_month + max(0.0, gb - first) * self.next_450_tb_month

    def requests_day(self, puts: float, gets: float) -> float:
        """Of so many requests, each day. Deletions cost nothing; LIST is not used but to rebuild."""
        return puts / 1000 * self.per_1000_puts + gets / 1000 * self.per_1000_gets


@dataclass(frozen=True, slots=True)
class Policy:
    """How a target puts things into the object store.

    Attributes:
        acks_objects: `ack = "object"`: each commit's tail is an object before it is acknowledged.
        commits_second: of each source.
        part_bytes: of a multipart upload of a segment.
    """

    acks_objects: bool
    commits_second: float = 1.0
    part_bytes: int = 16 << 20


def requests_a_day(figures: Mapping[str, float], shape: Shape, policy: Policy) -> dict[str, float]:
    """Objects kept, and requests a day: of the stream and of manifests by their rates, of compaction by its rule."""
    sources = figures["sources"]
    segments_day = sources * shape.changed_bytes / shape.days / SEGMENT_BYTES
    uploads = segments_day * (SEGMENT_BYTES / policy.part_bytes + 2)
    layers = segments_day * LAYERS_PER_SEGMENT
    tails = sources * policy.commits_second * DAY_SECONDS if policy.acks_objects else 0.0
    puts = sources * DAY_SECONDS / StoreOptions().manifest_seconds
    reads = figures["indexes_read_a_day"] * READS_PER_INDEX
    return {
        "objects": figures["segments"] * (1 + LAYERS_PER_SEGMENT),
        "puts_of_commits": tails,
        "puts_of_segments": uploads + layers,
        "puts_of_manifests": puts,
        "puts": tails + uploads + layers + puts,
        "gets": reads,
    }
