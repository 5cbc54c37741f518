"""One of several processes that want the same: to write a branch, to promote a source, to maintain the store.

``write PATH LOG``: whenever the branch has no writer, write stamped blocks, and note in LOG what was committed.
``promote PATH``: promote the newest point once; prints the generation, or the error's id.
``compact PATH``: compact once; prints ``done``, or the error's id.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from drengine.model.errors import DrengineError
from drengine.model.points import Cut, PointKind, PointSelector
from drengine.store.log.writer import BranchWriter
from drengine.store.store import Store
from tests.store.harness import TINY, batch, geometry, mark

BLOCKS = 24
BLOCK = 4096
SOURCE = "web1"


def stamped(sequence: int, writer: int) -> bytes:
    """The block of a position: who wrote it, and where it belongs."""
    return f"{sequence} {writer}\n".encode().ljust(BLOCK, b".")


def offset_of(sequence: int) -> int:
    """Position 1 is the geometry; the batches have even positions, the cuts odd ones."""
    return sequence // 2 % BLOCKS * BLOCK


def write(path: str, log: str) -> None:
    with Store.open(path, options=TINY) as store, open(log, "ab", buffering=0) as notes:  # noqa: PTH123
        while True:
            try:
                writer = store.writer(SOURCE, generation=1)
            except DrengineError as error:
                say(error)
                time.sleep(0.01)  # for its turn
                continue
            with suppress(DrengineError):
                go_on(writer, notes.fileno())
            say(writer.failed)
            writer.close()


def go_on(writer: BranchWriter, notes: int) -> None:
    print("writing", flush=True)
    while True:
        if not writer.appended_sequence:
            writer.append_geometry(1, mark(1), geometry(data=BLOCKS * BLOCK), generation=1)
        sequence = writer.appended_sequence + 1
        data = stamped(sequence, os.getpid())
        writer.append_batch(sequence, mark(sequence), batch((1, offset_of(sequence), data)), generation=1)
        cut = Cut(time.time_ns(), PointKind.WRITE_ORDER, "")
        writer.append_cut(sequence + 1, mark(sequence + 1), cut, generation=1)
        writer.commit(generation=1)
        os.write(notes, f"{sequence} {os.getpid()}\n".encode())


def say(error: DrengineError | None) -> None:
    if error is not None and error.kind.id != "branch-busy":
        print(error.kind.id, flush=True)


def once(mode: str, path: str) -> str:
    with Store.open(path, options=TINY) as store:
        point = store.find_point(SOURCE, PointSelector())
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            if mode == "promote":
                return str(store.promote(point, expected_generation=1).generation)
            store.compact()
        except DrengineError as error:
            return error.kind.id
    return "done"


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:])
    print(once(*sys.argv[1:]), flush=True)
