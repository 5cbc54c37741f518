"""Points and branches over NBD, straight from the store, at once and whatever their size.

Names: ``SOURCE/VOLUME@POINT`` (however PointSelector names one; read-only), ``SOURCE/VOLUME`` (the latest)
and ``SOURCE/VOLUME#BRANCH`` (a drill's or promoted branch, writable). Connections to one export share its view, so a
flush on one covers writes on all of them; the view (and its lease, fault 12) goes with the last connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector, RecoveryPoint, VolumeGeometry
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.export import (
    FLAG_FUA,
    STATUS_HOLE,
    STATUS_ZERO,
    Command,
    Complete,
    Export,
    ExportInfo,
    NbdError,
    Peer,
    Reply,
    Request,
)
from drengine.store.errors import (
    DAMAGED,
    FENCED,
    STORE_FULL,
    STORE_READ_ONLY,
    UNKNOWN_BRANCH,
    UNKNOWN_POINT,
    UNKNOWN_SOURCE,
    UNKNOWN_VOLUME,
)
from drengine.store.log.writable import WritableView
from drengine.store.store import Store
from drengine.store.views.view import View
from drengine.target.protection import Protection, cut_if_written

log = logging.getLogger("drengine.target")

NAMES_MAX = 1000
STATUS_EXTENTS_MAX = 4096
_UNKNOWN = (UNKNOWN_SOURCE, UNKNOWN_POINT, UNKNOWN_BRANCH, UNKNOWN_VOLUME)
_ERRORS = {STORE_FULL: NbdError.ENOSPC, FENCED: NbdError.EPERM, STORE_READ_ONLY: NbdError.EPERM}
_STATUS = {"data": 0, "zero": STATUS_ZERO, "hole": STATUS_ZERO | STATUS_HOLE}


@dataclass(frozen=True, slots=True)
class ExportName:
    """A parsed name; `branch` is 0 for a point."""

    source: str
    volume: str
    point: str = "latest"
    branch: int = 0

    @staticmethod
    def parse(text: str) -> ExportName:
        """From what a client asked for.

        Raises:
            KeyError: it is none.
        """
        source, slash, rest = text.partition("/")
        if not slash:
            raise KeyError(text)
        volume, at, point = rest.partition("@")
        if not at and "#" in rest:
            volume, _, number = rest.partition("#")
            if not number.isascii() or not number.isdigit() or not 0 < len(number) <= 9:
                raise KeyError(text)
            return ExportName(source, volume, branch=int(number))
        return ExportName(source, volume, point or "latest")

    def __str__(self) -> str:
        return f"{self.source}/{self.volume}" + (f"#{self.branch}" if self.branch else f"@{self.point}")


@dataclass
class _Shared:
    """A view that several exports use."""

    view: View
    users: int = 0
    promoted: bool = False


@dataclass
class StoreExports:
    """An ExportProvider over a store.

    Attributes:
        default: what the empty name means.
        writable: whether branches may be opened for writing at all.
        only: when set, no other names are served or listed.
        protection: cuts points of promoted branches while they are written.
    """

    store: Store
    pool: Executor
    default: str = ""
    writable: bool = True
    only: tuple[str, ...] = ()
    protection: Protection | None = None
    _shared: dict[tuple[str, str, int], _Shared] = field(default_factory=dict)
    _doors: dict[tuple[str, str, int], asyncio.Lock] = field(default_factory=dict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    async def names(self) -> list[str]:
        """The newest point of each volume and the branches that are open; not each of ten thousand points."""
        return list(self.only) or await asyncio.get_running_loop().run_in_executor(self.pool, self._names)

    async def open(self, name: str, peer: Peer) -> Export:
        """See ExportProvider."""
        wanted = name or self.default
        if self.only and wanted not in self.only:
            raise KeyError(name)
        parsed = ExportName.parse(wanted)
        loop = asyncio.get_running_loop()
        key = await loop.run_in_executor(self.pool, self._key, parsed)
        async with self._doors.setdefault(key, asyncio.Lock()):
            shared = self._shared.get(key)
            if shared is None:
                shared = await loop.run_in_executor(self.pool, self._look, key)
            volume = next((each for each in shared.view.geometry.values() if each.name == parsed.volume), None)
            if volume is None:
                if not shared.users:
                    await loop.run_in_executor(self.pool, shared.view.close)
                raise KeyError(name)
            self._shared[key] = shared
            shared.users += 1
            if shared.users == 1 and shared.promoted and self.protection and isinstance(shared.view, WritableView):
                self.protection.watch(shared.view)
        log.info("export opened", extra={"export": str(parsed), "peer": peer.address})
        sector_bytes = await loop.run_in_executor(self.pool, shared.view.sector_bytes, volume.volume)
        return ViewExport(wanted, shared.view, volume, self.pool, lambda: self._release(key), sector_bytes)

    async def close(self) -> None:
        """Wait until what connections left behind is flushed and closed."""
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _names(self) -> list[str]:
        names: list[str] = []
        for source in self.store.sources():
            try:
                volumes = self.store.find_point(source.name, PointSelector()).geometry
            except DrengineError:
                continue  # no point yet: nothing can be offered
            names += [f"{source.name}/{volume.name}@latest" for volume in volumes]
            for branch in self.store.branches(source.name):
                if self.writable and branch.role != "trunk" and not branch.closed:
                    names += [f"{source.name}/{volume.name}#{branch.number}" for volume in volumes]
        return names[:NAMES_MAX]

    def _key(self, name: ExportName) -> tuple[str, str, int]:
        """What two connections must agree on to share a view: `latest` is resolved at this moment."""
        try:
            if name.branch:
                return (name.source, "", name.branch)
            point = self.store.find_point(name.source, PointSelector.parse(name.point))
        except DrengineError as error:
            if error.kind in _UNKNOWN:
                raise KeyError(error.message) from error
            raise
        return (name.source, point.id, 0)

    def _look(self, key: tuple[str, str, int]) -> _Shared:
        source, point_id, number = key
        if point_id:
            return _Shared(self.store.view(self.store.find_point(source, PointSelector.parse(point_id))))
        branch = next((each for each in self.store.branches(source) if each.number == number), None)
        if branch is None or branch.closed:
            raise KeyError(f"{source}#{number}")
        if branch.role == "trunk":
            raise DrengineError(
                UNKNOWN_BRANCH,
                f"branch {number} of {source!r} is the replica itself, which nobody may write",
                hint="Export one of its points, or make a drill's branch with `drengine export POINT --writable`.",
            )
        if not self.writable or branch.role == "divergent":
            return _Shared(self.store.head_view(source, number))
        promoted = branch.role == "promoted"
        generation = self.store.source(source).generation if promoted else branch.generation
        return _Shared(self.store.writable(source, number, generation=generation), promoted=promoted)

    def _release(self, key: tuple[str, str, int]) -> None:
        task = asyncio.ensure_future(self._let_go(key))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _let_go(self, key: tuple[str, str, int]) -> None:
        async with self._doors[key]:
            shared = self._shared[key]
            shared.users -= 1
            if not shared.users:
                del self._shared[key]
                if self.protection and isinstance(shared.view, WritableView):
                    self.protection.forget(shared.view)
                point = await asyncio.get_running_loop().run_in_executor(self.pool, _close_view, shared)
                if self.protection and point:
                    self.protection.on_point(point)


def _close_view(shared: _Shared) -> RecoveryPoint | None:
    """A client that went without a flush leaves its writes durable where that is possible, as a disk would; of a
    promoted branch as a point.
    """
    view = shared.view
    try:
        if isinstance(view, WritableView):
            if shared.promoted and (point := cut_if_written(view)):
                return point
            view.flush()
    except DrengineError as error:
        log.warning("the last writes of an export are lost", extra={"detail": error.message})
    finally:
        view.close()
    return None


class ViewExport:
    """One volume of a view as an NBD export."""

    inline = False

    def __init__(
        self,
        name: str,
        view: View,
        volume: VolumeGeometry,
        pool: Executor,
        release: Callable[[], None],
        sector_bytes: int,
    ) -> None:
        self._view = view
        self._writable = view if isinstance(view, WritableView) else None
        self._volume = volume.volume
        self._pool = pool
        self._release = release
        point = view.point
        what = f"point {point.id} of {point.source}, {point.kind.value}" if point else "branch"
        self.info = ExportInfo(
            name,
            volume.size_bytes,
            read_only=self._writable is None,
            description=f"{what}, volume {volume.name}",
            block_bytes_preferred=65536,
            sector_bytes=1 if sector_bytes == SECTOR_BYTES or volume.size_bytes % sector_bytes else sector_bytes,
        )

    def submit(self, requests: list[Request], complete: Complete) -> list[Reply]:
        """Not used: the export is not inline."""
        raise NotImplementedError

    async def handle(self, request: Request) -> Reply:
        """See Export."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._serve, request)

    def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """See Export."""
        found: list[tuple[int, int]] = []
        for _, run, kind in self._view.extents(self._volume, offset, length):
            found.append((run, _STATUS[kind]))
            if len(found) >= STATUS_EXTENTS_MAX:
                break
        return found

    def close(self) -> None:
        """See Export."""
        self._release()

    def _serve(self, request: Request) -> Reply:
        try:
            if request.command == Command.READ:
                return Reply(request, data=self._view.read(self._volume, request.offset, request.length))
            if self._writable is not None:  # a point takes no writes, and has nothing to flush
                self._change(request, self._writable)
            return Reply(request)
        except DrengineError as error:
            if error.kind is DAMAGED:
                log.warning("a read met damage", extra={"export": self.info.name, "detail": error.message})
            return Reply(request, _ERRORS.get(error.kind, NbdError.EIO), message=error.message)

    def _change(self, request: Request, view: WritableView) -> None:
        match request.command:
            case Command.WRITE:
                assert request.data is not None
                view.write(self._volume, request.offset, request.data)
            case Command.TRIM:
                view.discard(self._volume, request.offset, request.length)
            case Command.WRITE_ZEROES:
                view.zero(self._volume, request.offset, request.length)
            case _:
                pass
        if request.command == Command.FLUSH or request.flags & FLAG_FUA:
            view.flush()
