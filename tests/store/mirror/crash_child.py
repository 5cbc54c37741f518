"""A store that lives, and is mirrored after each step: ``DIRECTORY SEED STEPS``; the copy alone lies under `DIRECTORY`.

Recorded by test_mirror_crash.py, which tells the same life again to know what each point shows.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from drengine.store.care.retention import RetentionPolicy
from drengine.store.mirror import Mirror, MirrorOptions, Pace, opened_copy
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import TINY, Source

COPY = "copy"


def live(source: Source, step: int) -> None:
    """What happens to the original in a step."""
    clock = source.store.context.clock
    assert isinstance(clock, ManualClock)
    for _ in range(1 + step % 3):
        source.write_random(3)
        source.cut()
        source.commit()
        clock.advance(20)
    if step % 4 == 2:
        source.store.retain(RetentionPolicy(30, ()), clock.now_ns())
        source.store.compact()


def begun(path: Path, seed: int) -> Source:
    """The original before its first step."""
    store = Store.create(path, options=TINY, clock=ManualClock())
    return Source(store, seed=seed, root=120_000, data=40_000)


def main() -> None:
    """The child."""
    directory, seed, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    source = begun(directory.parent / "origin", seed)
    for step in range(steps):
        live(source, step)
        _say("begin", step, None)
        # In each step by another process, as it were, and every other time in stages.
        clock = source.store.context.clock
        with opened_copy(source.store, directory / COPY, options=TINY, clock=clock) as copy:
            mirror = Mirror(source.store, copy, Pace(clock), MirrorOptions(stage_bytes=1 if step % 2 else 1 << 20))
            while not mirror.run().complete:
                pass
            mirror.close()
            found = [point.id for point in copy.points(source.name)]
        _say("done", step, found)


def _say(what: str, number: int, result: list[str] | None) -> None:
    os.write(1, json.dumps([what, number, result]).encode() + b"\n")


if __name__ == "__main__":
    main()
