"""Points and branches over NBD, straight from the store, at once and whatever their size.

Names: ``SOURCE/VOLUME@POINT`` (however PointSelector names one; read-only), ``SOURCE/VOLUME`` (the latest)
and ``SOURCE/VOLUME#BRANCH`` (a drill's or promoted branch, writable); a capability is shown as ``~SECRET`` behind
them. Connections to one export share its view, so a flush on one covers writes on all of them; the view (and its lease,
fault 12) goes with the last connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from drengine.model.errors import DrengineError
from drengine.model.grants import SECRET_MARK
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
from drengine.store.views.windows import WINDOW_BYTES
from drengine.target.access import ExportRules, Permit, Wanted, missing
from drengine.target.forward import Forward, WindowReads
from drengine.target.protection import Protection, cut_if_written

log = logging.getLogger("drengine.target")

NAMES_MAX = 1000
STATUS_EXTENTS_MAX = 4096
TURN_SECONDS_MAX = 0.0005
"""Work on the loop's thread for one connection in one turn, to within one request: so long others wait for it."""

INLINE_BYTES_MAX = 64 << 10
"""Longer requests go to the pool, unless what they read was prepared."""

_SECRET = re.compile(rf"(?P<name>.*){SECRET_MARK}(?P<secret>[0-9a-f]{{32,64}})", re.DOTALL)
_READ, _WRITE, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
_UNKNOWN = (UNKNOWN_SOURCE, UNKNOWN_POINT, UNKNOWN_BRANCH, UNKNOWN_VOLUME)
_ERRORS = {STORE_FULL: NbdError.ENOSPC, FENCED: NbdError.EPERM, STORE_READ_ONLY: NbdError.EPERM}
_STATUS = {"data": 0, "zero": STATUS_ZERO, "hole": STATUS_ZERO | STATUS_HOLE}


@dataclass(frozen=True, slots=True)
class ExportName:
    """A parsed name; `branch` is 0 for a point. Its text says nothing of the secret."""

    source: str
    volume: str
    point: str = "latest"
    branch: int = 0
    secret: str = field(default="", repr=False)

    @staticmethod
    def parse(text: str) -> ExportName:
        """From what a client asked for.

        Raises:
            KeyError: it is none.
        """
        secret = ""
        if found := _SECRET.fullmatch(text):
            text, secret = found["name"], found["secret"]
        source, slash, rest = text.partition("/")
        if not slash:
            raise KeyError(text)
        volume, at, point = rest.partition("@")
        if not at and "#" in rest:
            volume, _, number = rest.partition("#")
            if not number.isascii() or not number.isdigit() or len(number) > 9 or number.startswith("0"):
                raise KeyError(text)
            return ExportName(source, volume, branch=int(number), secret=secret)
        return ExportName(source, volume, point or "latest", secret=secret)

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
        rules: who may open what; None: whoever can connect, everything.
    """

    store: Store
    pool: Executor
    default: str = ""
    writable: bool = True
    only: tuple[str, ...] = ()
    protection: Protection | None = None
    rules: ExportRules | None = None
    _shared: dict[tuple[str, str, int], _Shared] = field(default_factory=dict)
    _doors: dict[tuple[str, str, int], asyncio.Lock] = field(default_factory=dict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    async def names(self, peer: Peer) -> list[str]:
        """The newest point of each volume and the branches that are open; not each of ten thousand points."""
        return list(self.only) or await asyncio.get_running_loop().run_in_executor(self.pool, self._names, peer)

    async def open(self, name: str, peer: Peer) -> Export:
        """See ExportProvider."""
        wanted = name or self.default
        if self.only and wanted not in self.only:
            raise KeyError(name)
        parsed = ExportName.parse(wanted)
        loop = asyncio.get_running_loop()
        key, permit = await loop.run_in_executor(self.pool, self._admit, parsed, peer)
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
        log.info("export opened", extra={"export": str(parsed), "peer": peer.address, "grant": permit.grant})
        sector_bytes = await loop.run_in_executor(self.pool, shared.view.sector_bytes, volume.volume)
        return ViewExport(
            str(parsed) if parsed.secret else wanted,
            shared.view,
            volume,
            self.pool,
            lambda: self._release(key),
            sector_bytes,
            permit=permit,
        )

    async def close(self) -> None:
        """Wait until what connections left behind is flushed and closed."""
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def _names(self, peer: Peer) -> list[str]:
        names: list[str] = []
        rules = self.rules
        try:
            visitor = rules.visitor(peer, "") if rules else None
        except DrengineError:
            return []
        for source in self.store.sources():
            try:
                volumes = self.store.find_point(source.name, PointSelector()).geometry
            except DrengineError:
                continue  # no point yet: nothing can be offered
            if not (rules and visitor) or rules.shows(visitor, source.name, 0):
                names += [f"{source.name}/{volume.name}@latest" for volume in volumes]
            for branch in self.store.branches(source.name):
                shown = not (rules and visitor) or rules.shows(visitor, source.name, branch.number)
                if shown and self.writable and branch.role != "trunk" and not branch.closed:
                    names += [f"{source.name}/{volume.name}#{branch.number}" for volume in volumes]
        return names[:NAMES_MAX]

    def _admit(self, name: ExportName, peer: Peer) -> tuple[tuple[str, str, int], Permit]:
        """What is meant, and on what this peer may open it. Who may not learns nothing of what there is."""
        if self.rules is None:
            return self._key(name), Permit()
        visitor = self.rules.visitor(peer, name.secret)
        try:
            key = self._key(name)
            branch, sequence = (key[2], 0) if key[2] else map(int, key[1].split("-"))
            return key, self.rules.permit(visitor, Wanted(key[0], branch, sequence))
        except (KeyError, DrengineError) as error:
            unknown = isinstance(error, KeyError) or error.kind in _UNKNOWN
            if unknown and not visitor.sees_all:
                raise missing(visitor, str(name)) from None
            raise

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
    """One volume of a view as one connection's NBD export.

    What needs no waiting is answered at once on the loop's thread, for at most `TURN_SECONDS_MAX` in a turn; the rest
    goes to the pool, where one slow request holds up no other.
    """

    inline = True

    def __init__(
        self,
        name: str,
        view: View,
        volume: VolumeGeometry,
        pool: Executor,
        release: Callable[[], None],
        sector_bytes: int,
        *,
        permit: Permit = Permit(),  # noqa: B008  it is frozen
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._view = view
        self.permit = permit
        self._writable = view if isinstance(view, WritableView) and permit.writable else None
        self._volume = volume.volume
        self._pool = pool
        self._release = release
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._late = _LateReplies(self._loop)
        self._flushes = _Flushes(pool, self._reply, self._late.add)
        self._forward = Forward()
        self._windows = WindowReads(
            view, self._volume, pool, self._prepared, self._late.complete_now, self._serve_in_pool
        )
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
        """See Export."""
        self._late.complete = complete
        for request in requests:
            if request.command == _READ:
                self._forward.note(request.offset, request.length)
        replies = self._serve_now(requests)
        if self._forward.is_seen:
            self._windows.ahead(self._forward.next)
        return replies

    def _serve_now(self, requests: list[Request]) -> list[Reply]:
        """Replies to what needs no waiting; the pool gets the rest, and the next turn what is too much for this one."""
        replies: list[Reply] = []
        clock = self._clock
        until = clock() + TURN_SECONDS_MAX
        for number, request in enumerate(requests):
            if clock() > until:
                self._loop.call_soon(self._next_turn, [_kept(each) for each in requests[number:]])
                break
            reply = self._answer_now(request)
            if reply is not None:
                replies.append(reply)
            elif request.command == _FLUSH or (request.flags & FLAG_FUA and self._change_now(request)):
                request.data = None  # done, and not ours
                self._flushes.add(request)
            elif request.command == _READ and self._forward.is_seen and request.length <= WINDOW_BYTES:
                self._windows.wait(request)
            else:
                self._serve_in_pool(request)
        return replies

    def _answer_now(self, request: Request) -> Reply | None:
        """The reply, if that needs no waiting."""
        if request.command == _READ:
            return self._read_now(request)
        return None if request.flags & FLAG_FUA or not self._change_now(request) else Reply(request)

    def _change_now(self, request: Request) -> bool:
        """Write, clear or discard, if that needs no waiting; whether it was done. What asks for FUA is then flushed."""
        view, command, volume = self._writable, request.command, self._volume
        if view is None:
            return False
        if command == _WRITE:
            assert request.data is not None
            return request.length <= INLINE_BYTES_MAX and view.write_now(volume, request.offset, request.data)
        if command == Command.TRIM:
            return view.discard_now(volume, request.offset, request.length)
        if command == Command.WRITE_ZEROES:
            return view.zero_now(volume, request.offset, request.length)
        return False

    def _read_now(self, request: Request) -> Reply | None:
        if self._forward.is_seen and (reply := self._prepared(request)):
            return reply
        if request.length > INLINE_BYTES_MAX:
            return None
        data = self._view.read_now(self._volume, request.offset, request.length)
        return None if data is None else Reply(request, 0, data)

    def _prepared(self, request: Request) -> Reply | None:
        parts = self._view.parts_now(self._volume, request.offset, request.length)
        return None if parts is None else Reply(request, pieces=parts)

    def _serve_in_pool(self, request: Request) -> None:
        self._pool.submit(self._serve_late, _kept(request))

    def _next_turn(self, requests: list[Request]) -> None:
        self._late.complete_now(self._serve_now(requests))

    async def handle(self, request: Request) -> Reply:
        """Not used: the export is inline."""
        raise NotImplementedError

    async def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """See Export."""
        return await self._loop.run_in_executor(self._pool, self._block_status, offset, length)

    def close(self) -> None:
        """See Export."""
        self._release()

    def _block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for _, run, kind in self._view.extents(self._volume, offset, length):
            found.append((run, _STATUS[kind]))
            if len(found) >= STATUS_EXTENTS_MAX:
                break
        return found

    def _serve_late(self, request: Request) -> None:
        self._late.add(self._reply(request))

    def _reply(self, request: Request) -> Reply:
        try:
            return self._serve(request)
        except Exception as error:  # the client must get an answer whatever happens
            log.exception("a request failed", exc_info=error)
            return Reply(request, NbdError.EIO, message="internal error")

    def _serve(self, request: Request) -> Reply:
        try:
            if request.command == Command.READ:
                return Reply(request, pieces=self._view.parts(self._volume, request.offset, request.length))
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


def _kept(request: Request) -> Request:
    """The request, with data that stays."""
    if request.data is not None and not request.owns_data:
        request.data, request.owns_data = memoryview(bytes(request.data)), True
    return request


class _LateReplies:
    """Takes replies from any thread to the loop; those that come together wake it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.complete: Complete | None = None
        self._loop = loop
        self._waiting: deque[Reply] = deque()
        self._is_waking = False

    def add(self, reply: Reply) -> None:
        self._waiting.append(reply)
        if not self._is_waking:
            self._is_waking = True
            self._loop.call_soon_threadsafe(self._hand_over)

    def complete_now(self, replies: list[Reply]) -> None:
        """For the loop's thread."""
        assert self.complete is not None
        self.complete(replies)

    def _hand_over(self) -> None:
        self._is_waking = False  # before the look: what comes after it wakes the loop again
        replies = []
        while self._waiting:
            replies.append(self._waiting.popleft())
        self.complete_now(replies)


class _Flushes:
    """The requests of a connection that wait for a flush: those that come while the disk is flushed share the next one.
    Otherwise each keeps a thread of the pool, and all of these wake and contend whenever one commit has ended.
    """

    def __init__(self, pool: Executor, serve: Callable[[Request], Reply], add: Callable[[Reply], None]) -> None:
        self._pool = pool
        self._serve = serve
        self._add = add
        self._lock = threading.Lock()
        self._waiting: list[Request] = []
        self._is_served = False

    def add(self, request: Request) -> None:
        """Answer a request late; everything that was answered before this call is durable then."""
        with self._lock:
            self._waiting.append(request)
            if self._is_served:
                return
            self._is_served = True
        self._pool.submit(self._run)

    def _run(self) -> None:
        with self._lock:
            requests, self._waiting = self._waiting, []
        reply = self._serve(Request(_FLUSH, 0, 0, 0, 0))
        for request in requests:
            self._add(Reply(request, reply.error, message=reply.message))
        with self._lock:
            self._is_served = bool(self._waiting)
            if not self._is_served:
                return
        self._pool.submit(self._run)  # behind what came meanwhile
