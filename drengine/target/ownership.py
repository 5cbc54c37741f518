"""Which of several targets has a source: whom to send on, and where to, and giving all away when this one drains.

The owner of a source is the target that holds the lock of its active branch; nothing else is believed. What is decided
here is where an agent had better go: to the owner; else to where the source was last, since that target has its newest
bytes at hand; else, as with every new source, to the target that has fewest. An agent that does not offer to be sent on
(it is of an older version, or was sent in vain) is taken if nobody else has the lock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from drengine.config import ADDRESS
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.errors import TARGET_NAME_TAKEN
from drengine.store.locks import Holder
from drengine.store.store import Store
from drengine.store.targets import SILENT_SECONDS, Introduction, TargetInfo, TargetState
from drengine.target import metrics as m
from drengine.target.errors import SOURCE_ELSEWHERE
from drengine.target.metrics import TargetMetrics
from drengine.target.session import ReplicationSession
from drengine.target.sources import Sources
from drengine.wire.events import Endpoint, Hello, Moved

log = logging.getLogger("drengine.target")

REPORT_SECONDS = 1.0
WATCH_SECONDS = 0.25
PLACES_EVERY_REPORTS = 5
"""How often it is looked where all sources are: for what is shown only."""
DRAINED_AT_ONCE = 4
STAY_SECONDS = 30.0
"""A session that came to a draining target because it reaches no other is left alone for so long."""


class SentOn(DrengineError):
    """The agent is to go to another target.

    Attributes:
        owner: that target.
    """

    def __init__(self, owner: Holder, message: str) -> None:
        super().__init__(SOURCE_ELSEWHERE, message)
        self.owner = owner

    @property
    def moved(self) -> Moved:
        """As it is told to an agent that offers to be sent on."""
        addresses = [ADDRESS.parse(each) for each in self.owner.addresses]
        return Moved(self.owner.name, tuple(Endpoint(each.host, each.port) for each in addresses), self.message)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a source stands among the targets.

    Attributes:
        holder: who writes its active branch now.
        placed: the target that had it last; empty for a new one.
    """

    holder: Holder | None
    placed: str


def better_place(me: str, source: Standing, targets: Iterable[TargetInfo], *, leaving: bool) -> TargetInfo | None:
    """Where a source that nobody writes should rather go than to `me`; None: nowhere.

    Args:
        me: the name of the target that is asked.
        source: how it stands.
        targets: all, as they were last heard of.
        leaving: this one drains or stops.
    """
    known = {each.name: each for each in targets}
    others = {name: each for name, each in known.items() if name != me and each.takes_sources}
    if source.placed in others:
        return others[source.placed]
    if not others or (source.placed == me and not leaving):
        return None
    fewest = min(others.values(), key=lambda each: (each.sources, each.name))
    ours = known[me].sources if me in known else 0
    return fewest if leaving or fewest.sources < ours else None


@dataclass
class Ownership:
    """Of one target. Belongs to its event loop; what blocks says so.

    Attributes:
        me: how this target introduces itself.
        sessions: those that ship a source's stream.
        stopping: this target ends.
        trouble: why the others can't be heard of; None when they can.
    """

    store: Store
    me: Introduction
    sources: Sources
    metrics: TargetMetrics
    clock: Clock
    sessions: Callable[[], Mapping[str, ReplicationSession]]
    stopping: bool = False
    trouble: DrengineError | None = None
    _known: Sequence[TargetInfo] = ()
    _places: Mapping[str, str] = field(default_factory=dict)
    _stay: dict[str, float] = field(default_factory=dict)
    """Sources that are not given away before a moment."""

    @property
    def is_shared(self) -> bool:
        """Whether there can be other targets."""
        return self.store.targets.is_shared

    @property
    def is_draining(self) -> bool:
        """Whether somebody wants its sources elsewhere."""
        return any(each.name == self.me.name and each.state is TargetState.DRAINING for each in self._known)

    @property
    def targets(self) -> Sequence[TargetInfo]:
        """All, as they were last heard of."""
        return self._known

    @property
    def unowned(self) -> int:
        """Sources that were last at a target which is gone, and that nobody has taken since."""
        gone = {each.name for each in self._known if not each.is_living}
        return sum(place in gone for place in self._places.values())

    def require_ours(self, hello: Hello) -> bool:
        """Return when this target may take the source; whether it takes it over from a target that is gone. Blocks.

        Raises:
            SentOn: another target has it, or had better have it.
        """
        if not self.is_shared:
            return False
        holder = self.store.owner(hello.source)
        # A process that is no target has no addresses: whoever has that one's branch is told so by the lock.
        if holder is not None and holder.addresses and holder.name != self.me.name:
            raise SentOn(holder, f"target {holder.name!r} has {hello.source!r}")
        placed = self.store.targets.placed_at(hello.source)
        if holder is None and "moved" in hello.abilities:
            leaving = self.is_draining or self.stopping
            standing = Standing(holder, placed)
            if place := better_place(self.me.name, standing, self._known, leaving=leaving):
                kept = "it was there last" if placed == place.name else "it has fewest"
                why = "this target drains" if leaving else kept
                self._count(place.name)
                raise SentOn(Holder(place.name, place.addresses), f"{hello.source!r} goes to {place.name!r}: {why}")
        return placed not in ("", self.me.name, *(each.name for each in self._known if each.is_living))

    def took(self, source: str) -> None:
        """This target has the source's lock. Blocks."""
        if not self.is_shared:
            return
        if self.store.targets.placed_at(source) != self.me.name:
            self.store.targets.place(source, self.me.name)
            self._count(self.me.name)
        if self.is_draining:
            self._stay[source] = self.clock.monotonic() + STAY_SECONDS

    def relief(self, source: str) -> SentOn | None:
        """Who shall have a source that this target gives away; None: there is nobody."""
        place = better_place(self.me.name, Standing(None, ""), self._known, leaving=True)
        if place is None:
            return None
        why = "stops" if self.stopping else "drains"
        return SentOn(Holder(place.name, place.addresses), f"{source!r} goes to {place.name!r}: this target {why}")

    def _count(self, name: str) -> None:
        """A source goes to a target: until the next report says so, those that come at once are spread by this."""
        self._known = [replace(each, sources=each.sources + (each.name == name)) for each in self._known]

    async def run(self) -> None:
        """Report and look until cancelled."""
        reports = 0
        while self.is_shared:
            places = reports % PLACES_EVERY_REPORTS == 0
            try:
                self._known, found = await asyncio.to_thread(self._ask, places)
                self.trouble = None
            except DrengineError as error:
                if self.trouble is None:
                    log.warning("the other targets can't be heard of: %s", error.message)
                self.trouble, found = error, None
            if found is not None:
                await self._show(found)
            if self.is_draining:
                self._give_away()
            reports += 1
            await self.clock.sleep(REPORT_SECONDS)

    async def watch(self) -> None:
        """End sessions whose lock is over, until cancelled: also while nobody answers what is asked."""
        while self.is_shared:
            for session in list(self.sessions().values()):
                session.end_if_lost()
            await self.clock.sleep(WATCH_SECONDS)

    def begin(self) -> None:
        """Report and look for the first time. Blocks.

        Raises:
            DrengineError: TARGET_NAME_TAKEN; the catalogue can't be reached.
        """
        if self.is_shared:
            self._known, places = self._introduced()
            self._places = places or {}
            self.sources.share(self._places, self._elsewhere())

    def _introduced(self) -> tuple[Sequence[TargetInfo], Mapping[str, str] | None]:
        """The first report. One that was killed and comes back at another address is not taken for its own twin."""
        deadline = self.clock.monotonic() + SILENT_SECONDS + REPORT_SECONDS
        while True:
            try:
                return self._ask(True)
            except DrengineError as error:
                if error.kind is not TARGET_NAME_TAKEN or self.clock.monotonic() > deadline:
                    raise
            time.sleep(WATCH_SECONDS)

    def leave(self) -> None:
        """Tell the others that this target has ended in order. Blocks; never raises."""
        try:
            self.store.targets.leave(self.me.name)
        except DrengineError as error:
            log.info("the other targets are not told of the end: %s", error.message)

    def _ask(self, places: bool) -> tuple[Sequence[TargetInfo], Mapping[str, str] | None]:
        return self.store.targets.report(self.me), self.store.targets.placed() if places else None

    async def _show(self, places: Mapping[str, str]) -> None:
        """Each source is shown by one target: where it is or was last, or else by the first that lives."""
        self._places = places
        for source in self.sources.share(places, self._elsewhere()):
            await asyncio.to_thread(self.sources.take_up, self.store, source)

    def _elsewhere(self) -> frozenset[str]:
        living = sorted(each.name for each in self._known if each.is_living)
        stands_in = bool(living) and living[0] == self.me.name
        shown_at = {source: place if place in living else "" for source, place in self._places.items()}
        return frozenset(
            source for source, place in shown_at.items() if place != self.me.name and (place or not stands_in)
        )

    def _give_away(self) -> None:
        """Send some sources on, each to the target that then has fewest; the rest follows at the next look."""
        now, given = self.clock.monotonic(), 0
        self._stay = {source: until for source, until in self._stay.items() if until > now}
        for source, session in self.sessions().items():
            if source in self._stay:
                continue
            relief = self.relief(source)
            if relief is None or given == DRAINED_AT_ONCE:
                return
            given += 1
            self._count(relief.owner.name)
            self.metrics.count(m.GIVEN_AWAY)
            session.end(relief)
