"""Something that writes: stamped writes by way of the tap, whose order a replica must show."""

from __future__ import annotations

import json
from pathlib import Path

from demo.writer import Prefix, acknowledged_writes, check_prefix
from drengine.model.points import RecoveryPoint
from drengine.nbd.client import NbdClient
from tests.field.ground import Ground, Pair, read_point

SLOT_BYTES = 4096
SLOTS = 512


class StampedWrites:
    """A process that writes stamped blocks over all volumes of a pair, each when the last was acknowledged."""

    def __init__(self, ground: Ground, pair: Pair, *, pause_seconds: float = 0.01) -> None:
        self._pair, self._seed = pair, ground.seed
        sizes = {name: path.stat().st_size for name, path in pair.volumes.items()}
        slots = [(name, at) for name, size in sizes.items() for at in range(0, size - SLOT_BYTES, SLOT_BYTES)]
        self._places = ground.rng.sample(slots, min(SLOTS, len(slots)))
        self._acknowledged = ground.folder / "acknowledged"
        self._acknowledged.touch()
        plan = ground.folder / "plan.json"
        plan.write_text(
            json.dumps(
                {
                    "sockets": dict.fromkeys(sizes, str(pair.tap)),
                    "places": self._places,
                    "seed": self._seed,
                    "acknowledged": str(self._acknowledged),
                    "pause_seconds": pause_seconds,
                }
            )
        )
        self._site = ground.site
        self._process = ground.site.start("writer", "demo.writer", str(plan))
        ground.until("it writes", lambda: self.count() > 0)

    def count(self) -> int:
        """Writes that were acknowledged."""
        return len(acknowledged_writes(self._acknowledged))

    def stop(self) -> None:
        """No more writes."""
        self._site.kill(self._process)

    def prefix(self, point: RecoveryPoint, store: Path | None = None) -> Prefix:
        """Which prefix of the writes a point shows.

        Raises:
            AssertionError: it shows none.
        """
        where = store or self._pair.store
        content = {each.name: read_point(where, point, each.name) for each in point.geometry}
        found = check_prefix(
            lambda volume, offset, length: content[volume][offset : offset + length],
            self._places,
            self._seed,
            self.count(),
        )
        assert found.intact, f"{point.id}: {found.problem}"
        return found


def scatter(ground: Ground, pair: Pair, volume: str, count: int, *, length: int = SLOT_BYTES) -> None:
    """So many random writes by way of the tap."""
    size = pair.volumes[volume].stat().st_size
    with NbdClient(str(pair.tap), volume) as disk:
        for _ in range(count):
            disk.write(ground.rng.randrange((size - length) // 512) * 512, ground.rng.randbytes(length))
        disk.flush()
