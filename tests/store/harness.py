"""A small store and a model of what it must hold, shared by the store's tests."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from hypothesis.stateful import RuleBasedStateMachine

from drengine.crypt.kek import KeyEncryptionKey, KeyEncryptionKeys
from drengine.model.errors import DrengineError, ErrorKind
from drengine.model.extents import BLOCK_BYTES, Batch, Extent, ExtentKind
from drengine.model.points import Cut, Mark, PointKind, RecoveryPoint, VolumeGeometry
from drengine.store.log.writer import BranchWriter, Committed
from drengine.store.options import StoreOptions
from drengine.store.store import Store
from drengine.wire.payload import digest, make_batch
from tests.clock import ManualClock

TINY = StoreOptions(segment_bytes_max=60_000, segment_extents_max=40, write_buffer_bytes=70_000, manifest_seconds=0.0)
"""A few blocks span several segments, and a rebuild knows what was retired."""

EPOCH = b"test-epoch-16byt"
MEMORY_DIRECTORY = Path("/dev/shm")


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that goes away; in memory where there is such a place."""
    parent = MEMORY_DIRECTORY if MEMORY_DIRECTORY.is_dir() else None
    path = Path(tempfile.mkdtemp(prefix="drengine-store-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def mark(sequence: int) -> Mark:
    """The mark that tests give a position."""
    return Mark(EPOCH, sequence * 10)


def geometry(**sizes: int) -> tuple[VolumeGeometry, ...]:
    """Volumes numbered in the order given."""
    return tuple(
        VolumeGeometry(number, name, f"id-{name}", size) for number, (name, size) in enumerate(sizes.items(), 1)
    )


def batch(*writes: tuple[int, int, bytes | int | None], level: int | None = 1) -> Batch:
    """A batch of (volume, offset, data); an int instead of data is a ZERO of that length."""
    extents, plain = [], bytearray()
    for volume, offset, data in writes:
        if isinstance(data, int):
            extents.append(Extent(volume, ExtentKind.ZERO, offset, data))
            continue
        assert data is not None
        at = 0
        while at < len(data):
            size = min(len(data) - at, BLOCK_BYTES - (offset + at) % BLOCK_BYTES)
            part = data[at : at + size]
            extents.append(Extent(volume, ExtentKind.DATA, offset + at, size, digest(part)))
            plain += part
            at += size
    return make_batch(extents, bytes(plain), level)


def crash(writer: BranchWriter) -> None:
    """Let a writer go as a killed process would: nothing sealed, nothing cleaned up."""
    if writer._segment:
        writer._segment.appender.close()
    for part in writer._finished:
        part.appender.close()
    writer._catalogue.close()
    writer._lock.release()


def error_of(kind: ErrorKind, error: BaseException) -> bool:
    """Whether an exception is a DrengineError of a kind."""
    return isinstance(error, DrengineError) and error.kind is kind


@dataclass
class Disk:
    """Volumes of a source in memory."""

    geometry: tuple[VolumeGeometry, ...] = ()
    data: dict[int, bytearray] = field(default_factory=dict)

    def copy(self) -> Disk:
        return Disk(self.geometry, {number: bytearray(data) for number, data in self.data.items()})

    def reshape(self, volumes: tuple[VolumeGeometry, ...]) -> None:
        fresh = {}
        for volume in volumes:
            old = self.data.get(volume.volume, bytearray())
            fresh[volume.volume] = bytearray(old[: volume.size_bytes]).ljust(volume.size_bytes, b"\0")
        self.geometry, self.data = volumes, fresh

    def write(self, volume: int, offset: int, data: bytes | int) -> None:
        payload = bytes(data) if isinstance(data, int) else data
        self.data[volume][offset : offset + len(payload)] = payload


class Source:
    """Drives one source of a store through its trunk, beside a model of the disk."""

    def __init__(self, store: Store, name: str = "web1", seed: int = 0, **sizes: int) -> None:
        self.store = store
        self.name = name
        self.random = random.Random(seed)
        self.disk = Disk()
        self.points: dict[str, Disk] = {}
        self.committed = Disk()
        info = store.ensure_source(name)
        self.generation = info.generation
        self.writer = store.writer(name, generation=info.generation)
        if sizes:
            self.reshape(**sizes)

    @property
    def next(self) -> int:
        return self.writer.appended_sequence + 1

    def reshape(self, **sizes: int) -> None:
        volumes = geometry(**sizes)
        self.writer.append_geometry(self.next, mark(self.next), volumes, generation=self.generation)
        self.disk.reshape(volumes)

    def write(self, volume: int, offset: int, data: bytes | int, *, level: int | None = 1) -> None:
        packed = batch((volume, offset, data), level=level)
        self.writer.append_batch(self.next, mark(self.next), packed, generation=self.generation)
        self.disk.write(volume, offset, data)

    def write_together(self, *writes: tuple[int, int, bytes]) -> None:
        """Several writes in one batch."""
        self.writer.append_batch(self.next, mark(self.next), batch(*writes), generation=self.generation)
        for write in writes:
            self.disk.write(*write)

    def write_random(self, count: int = 1) -> None:
        for _ in range(count):
            volume = self.random.choice(list(self.disk.data))
            size = len(self.disk.data[volume])
            offset = self.random.randrange(size)
            length = self.random.randrange(1, min(size - offset, 30_000) + 1)
            kind = self.random.random()
            data = length if kind < 0.2 else self.random.randbytes(length) if kind < 0.6 else b"ab" * length
            self.write(volume, offset, data if isinstance(data, int) else data[:length])

    def cut(self, label: str = "", kind: PointKind = PointKind.WRITE_ORDER, *, time_ns: int = 0) -> str:
        """`time_ns` by the source's clock: that of the store unless given."""
        now_ns = time_ns or self.store.context.clock.now_ns()
        sequence = self.next
        self.writer.append_cut(sequence, mark(sequence), Cut(now_ns, kind, label), generation=self.generation)
        self.points[f"{self.writer.branch}-{sequence}"] = self.disk.copy()
        return f"{self.writer.branch}-{sequence}"

    def commit(self) -> Committed:
        made = self.writer.commit(generation=self.generation)
        self.committed = self.disk.copy()
        return made

    def point(self, name: str) -> RecoveryPoint:
        return next(point for point in self.store.points(self.name) if point.id == name)

    def check(self) -> None:
        """Every point that is kept shows its disk; so does the head."""
        for point in self.store.points(self.name):
            check_point(self.store, point, self.points[point.id])
        check_head(self.store, self.name, self.writer.branch, self.committed)


def check_point(store: Store, point: RecoveryPoint, disk: Disk) -> None:
    """A point shows exactly this disk."""
    assert point.geometry == disk.geometry
    with store.view(point) as view:
        for volume in disk.geometry:
            assert view.read(volume.volume, 0, volume.size_bytes) == disk.data[volume.volume], point.id


def check_head(store: Store, source: str, branch: int, disk: Disk) -> None:
    """A branch's durable head shows exactly this disk."""
    with store.head_view(source, branch) as view:
        assert tuple(view.geometry.values()) == disk.geometry
        for volume in disk.geometry:
            assert view.read(volume.volume, 0, volume.size_bytes) == disk.data[volume.volume], "head"


def tiny_store(path: Path, **changes: object) -> Store:
    """A new store with small limits and a clock that only tests move."""
    return Store.create(path / "store", options=TINY, clock=ManualClock(), **changes)  # type: ignore[arg-type]


KEKS = KeyEncryptionKeys(KeyEncryptionKey(bytes(range(32))))
"""What wraps the keys of the stores that tests encrypt."""


@contextmanager
def encrypted(keks: KeyEncryptionKeys = KEKS) -> Iterator[None]:
    """Whatever store is made, opened or rebuilt meanwhile is encrypted, where the caller says nothing of keys."""
    with ExitStack() as patches:
        for name in ("create", "open", "rebuild"):
            plain = getattr(Store, name)
            given = functools.partial(plain, keks=keks)
            patches.enter_context(mock.patch.object(Store, name, staticmethod(given)))
        yield


class EncryptedMachine(RuleBasedStateMachine):
    """Before a state machine among a class's bases: its store is encrypted."""

    def __init__(self) -> None:
        self.patches = ExitStack()
        self.patches.enter_context(encrypted())
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        self.patches.close()
