"""The application: stamps each write with a sequence number, remembers which were acknowledged, and checks a replica.

One write is outstanding at a time, so the order in which the disks acknowledged them is total. Write number `n` goes
to the slot that a seeded generator names, so the checker can compute what each slot must hold after exactly `n` writes.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from demo.disks import SLOT_BYTES
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient

_STAMP = struct.Struct("<8sQQ16s")
_MAGIC = b"DEMOSTMP"
_RECORD = struct.Struct("<Qd")


def stamp(number: int, slot: int) -> bytes:
    """The 4 KiB block of write `number`: a header and a body that can be recomputed, so a torn block shows."""
    body = random.Random(number).randbytes(SLOT_BYTES // 2 - _STAMP.size) + bytes(SLOT_BYTES // 2)
    return _STAMP.pack(_MAGIC, number, slot, xxhash.xxh3_128_digest(body)) + body


def slots_in_order(seed: int, slot_count: int) -> Iterator[int]:
    """Slot of write 1, 2, 3, ..."""
    rng = random.Random(seed)
    while True:
        yield rng.randrange(slot_count)


def write_forever(plan: Path) -> None:
    """Write through the tap until killed; append (number, time) to the journal after each acknowledgement.

    A write whose answer was lost, because the agent died, is written again before the next one: it stays the next.
    """
    settings = json.loads(plan.read_text())
    disks = _connect(settings)
    places = settings["places"]
    with Path(settings["acknowledged"]).open("ab", buffering=0) as acknowledged:
        for number, slot in enumerate(slots_in_order(settings["seed"], len(places)), start=1):
            volume, offset = places[slot]
            while True:
                try:
                    disks[volume].write(offset, stamp(number, slot))
                    break
                except OSError:
                    disks = _connect(settings)
            acknowledged.write(_RECORD.pack(number, time.time()))
            if number % 64 == 0:
                time.sleep(settings["pause_seconds"])


def _connect(settings: dict[str, Any]) -> dict[str, NbdClient]:
    """Connections to all disks, as soon as the agent serves them (again)."""
    while True:
        try:
            return {name: NbdClient(path, name) for name, path in settings["sockets"].items()}
        except (OSError, DrengineError):
            time.sleep(0.02)


def acknowledged_writes(path: Path) -> list[float]:
    """Wall-clock time of each acknowledgement; index 0 is write 1."""
    raw = path.read_bytes()
    return [moment for _, moment in _RECORD.iter_unpack(raw[: len(raw) // _RECORD.size * _RECORD.size])]


@dataclass(frozen=True)
class Prefix:
    """What a replica holds.

    Attributes:
        intact: it equals the state after exactly `writes` writes; nothing torn, nothing missing inside.
        writes: number of the newest write found.
        problem: the first thing that is wrong, or empty.
    """

    intact: bool
    writes: int
    problem: str = ""


def check_prefix(
    read: Callable[[str, int, int], bytes], places: list[tuple[str, int]], seed: int, acknowledged: int
) -> Prefix:
    """Compare a replica with the only state it may show.

    Args:
        read: reads (volume, offset, length) of the replica.
        places: slots, as given to the writer.
        seed: of the order.
        acknowledged: how many writes were acknowledged; one more may have been in flight.
    """
    found: dict[int, int] = {}
    for slot, (volume, offset) in enumerate(places):
        block = read(volume, offset, SLOT_BYTES)
        magic, number, stamped_slot, digest = _STAMP.unpack_from(block)
        if magic != _MAGIC:
            continue
        if stamped_slot != slot or digest != xxhash.xxh3_128_digest(block[_STAMP.size :]):
            return Prefix(False, 0, f"slot {slot} is torn or misplaced")
        found[slot] = number
    newest = max(found.values(), default=0)
    if newest > acknowledged + 1:
        return Prefix(False, newest, f"write {newest} was never issued")
    expected: dict[int, int] = {}
    for number, slot in zip(range(1, newest + 1), slots_in_order(seed, len(places)), strict=False):
        expected[slot] = number
    if found != expected:
        slot = next(slot for slot in sorted(found.keys() | expected.keys()) if found.get(slot) != expected.get(slot))
        return Prefix(False, newest, f"slot {slot} holds write {found.get(slot)}, not {expected.get(slot)}")
    return Prefix(True, newest)


if __name__ == "__main__":
    write_forever(Path(sys.argv[1]))
