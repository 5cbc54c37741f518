"""Readers that go forward are answered from prepared windows, and always with what the disk holds when they ask."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from drengine.nbd.export import Command, Reply, Request
from drengine.store.log.writable import WritableView
from drengine.store.views.windows import WINDOW_BYTES
from drengine.target.forward import FORWARD_AFTER, NEAR_MAX, SKIPPED_BYTES_MAX, Forward
from tests.store.harness import Source, scratch, tiny_store
from tests.target.test_export_turns import Answers, content, export_of

SIZE = 9 * WINDOW_BYTES + 12_345
pytestmark = pytest.mark.timeout(60)


@contextmanager
def drill() -> Iterator[tuple[WritableView, bytearray]]:
    """A branch over a disk with data, zeros and many small writes; and its bytes."""
    rng = random.Random(4)
    with scratch() as path:
        source = Source(tiny_store(path), disk=SIZE)
        for at in range(0, SIZE - 200_000, WINDOW_BYTES // 2):
            source.write(1, at, rng.randbytes(150_000))
        name = source.cut()
        source.commit()
        made = source.store.create_branch(source.point(name), role="drill", label="")
        with source.store.writable("web1", made.number, generation=made.generation) as view:
            disk = source.disk.data[1]
            for number in range(300):
                at = rng.randrange(WINDOW_BYTES - 4096, 2 * WINDOW_BYTES)
                view.write(1, at, data := rng.randbytes(3000))
                disk[at : at + 3000] = data
                if number % 40 == 0:
                    view.flush()
            view.flush()
            yield view, disk
        source.writer.close()
        source.store.close()


def reads(sizes: Callable[[], int], begin: int = 0, end: int = SIZE) -> Iterator[Request]:
    while begin < end:
        length = min(sizes(), end - begin)
        yield Request(Command.READ, 0, begin, begin, length)
        begin += length


def check(reply: Reply, disk: bytearray) -> None:
    request = reply.request
    assert reply.error == 0
    assert content(reply) == disk[request.offset : request.offset + request.length], request.offset


@pytest.mark.parametrize("kind", ["as it is", "never prepared", "never kept", "kept for a moment"])
async def test_a_burst_of_reads_is_answered_whatever_becomes_of_the_windows(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, prepared = random.Random(1), []
    with drill() as (view, disk), ThreadPoolExecutor(3) as pool:
        prepare = view.prepare

        def noted(volume: int, offset: int) -> None:
            prepared.append(offset)
            if kind == "never prepared":
                raise OSError
            prepare(volume, offset)
            if kind == "kept for a moment" and rng.random() < 0.5:
                view.let_go(volume, offset)

        monkeypatch.setattr(view, "prepare", noted)
        if kind == "never kept":
            monkeypatch.setattr(view._records, "keep_content", lambda *_: None)
        export, answers = export_of(view, pool), Answers()
        wanted = list(reads(lambda: rng.choice((262_144, 100_000, 4096, 1 << 20, WINDOW_BYTES))))
        ready = export.submit(wanted, answers.complete)
        await answers.wait_for(len(wanted) - len(ready))
        for reply in [*ready, *answers.replies]:
            check(reply, disk)
        assert len({reply.request.offset for reply in [*ready, *answers.replies]}) == len(wanted)
        if kind == "as it is":
            assert 9 <= len(prepared) <= 13, "about once each"
        kept = [at for at in range(0, SIZE, WINDOW_BYTES) if view.is_prepared(1, at)]
        assert len(kept) <= NEAR_MAX


async def test_each_read_shows_what_was_written_before_it() -> None:
    rng = random.Random(2)
    with drill() as (view, disk), ThreadPoolExecutor(3) as pool:
        export, answers = export_of(view, pool), Answers()
        ready: list[Reply] = []
        for count, request in enumerate(reads(lambda: 131_072, end=5 * WINDOW_BYTES), 1):
            for near in (request.offset, request.offset + WINDOW_BYTES):
                data = rng.randbytes(5000) if rng.random() < 0.8 else bytes(5000)
                at = near + rng.randrange(100_000)
                view.write(1, at, data)
                disk[at : at + len(data)] = data
            if count % 5 == 0:
                view.flush()
            ready += export.submit([request], answers.complete)
            await answers.wait_for(count - len(ready))
            check(next(reply for reply in [*ready, *answers.replies] if reply.request is request), disk)
        assert len(ready) > 10, "what follows was near"


def test_a_reader_goes_forward_when_reads_come_soon_behind_the_one_before() -> None:
    forward, size = Forward(), 65536
    for number in range(9):
        forward.note(number * size, size)
        assert forward.is_seen == (number >= FORWARD_AFTER)
    forward.note(9 * size + SKIPPED_BYTES_MAX, size)
    assert forward.is_seen, "it left out zeros"
    forward.note(0, size)
    assert not forward.is_seen
    for number in range(9):
        forward.note(number * (size + SKIPPED_BYTES_MAX + 1), size)
        assert not forward.is_seen
