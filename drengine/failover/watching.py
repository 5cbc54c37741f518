"""Looking again and again whether the runbooks that are kept would go through, before anybody needs them.

What was found is read by metrics, REST and the page; a change of what blocks is told to people.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from drengine.failover.engine import Engine
from drengine.failover.options import RunOptions
from drengine.failover.plan import sources_of
from drengine.failover.readiness import Checked, Readiness
from drengine.failover.reading.reader import read_runbook
from drengine.failover.registry.values import StoredRunbook
from drengine.failover.runbook.values import Mode, Runbook
from drengine.model.errors import DrengineError
from drengine.notifications import Notice, Topic

log = logging.getLogger("drengine.orchestrator")

FIRST_SECONDS = 5.0
"""After the start: parties have to announce themselves anew when all of a site was off."""


class ReadinessWatch:
    """Looks at one runbook after the other; belongs to the engine's event loop, its results may be read by any thread.

    Attributes:
        newest: what was found last, by runbook.
    """

    def __init__(self, engine: Engine) -> None:
        self.newest: dict[str, Readiness] = {}
        self._engine = engine

    async def run(self) -> None:
        """Until cancelled."""
        clock, every = self._engine.site.clock, self._engine.config.ready_every
        await clock.sleep(min(FIRST_SECONDS, every))
        while True:
            try:
                await self.look()
            except DrengineError as error:
                log.warning("whether runbooks are ready could not be looked at: %s", error)
            await clock.sleep(every)

    async def look(self) -> None:
        """Once, at all of them. One whose sources a run holds is left as it was found before the run."""
        registry = self._engine.registry
        stored = await asyncio.to_thread(registry.runbooks)
        runs = await asyncio.to_thread(lambda: registry.runs(unfinished=True))
        held = {source for run in runs for source in run.sources}
        for each in stored:
            book = _read(each)
            if book is not None and not held & set(sources_of(book)):
                self._note(await self._engine.readiness(await self._mode(book), book, RunOptions()))
        self.newest = {each.name: self.newest[each.name] for each in stored if each.name in self.newest}

    async def _mode(self, book: Runbook) -> Mode:
        """What would come next: the way home, where the sources run here."""
        try:
            options = await asyncio.to_thread(self._engine.with_standing, RunOptions(), Mode.FAILOVER, book)
        except DrengineError:
            return Mode.FAILOVER
        return Mode.FAILBACK if options.launches else Mode.FAILOVER

    def _note(self, found: Readiness) -> None:
        before = self.newest.get(found.runbook)
        self.newest = {**self.newest, found.runbook: found}
        then = {each.id for each in before.checks if each.blocks} if before and before.mode is found.mode else set()
        blocked = [each for each in found.checks if each.blocks]
        state = " ".join(sorted(each.id for each in blocked))
        if {each.id for each in blocked} != then:
            notice = _notice(found, blocked)
            log.log(logging.INFO if found.ready else logging.WARNING, "%s", notice.title)
            self._engine.notifier.notify(replace(notice, about=f"ready:{found.runbook}", state=f"{found.mode} {state}"))


def _notice(found: Readiness, blocked: list[Checked]) -> Notice:
    what = f"{found.runbook} for a {found.mode.value}"
    if not blocked:
        return Notice(Topic.READINESS, f"{what}: ready again", f"`drengine ready {found.runbook}`")
    lines = [f"{each.id}: {each.message}\n  {each.hint}" for each in blocked]
    title = f"{what}: not ready, {', '.join(each.id for each in blocked)}"
    return Notice(Topic.READINESS, title, "\n".join([*lines, f"\n`drengine ready {found.runbook}`"]))


def _read(stored: StoredRunbook) -> Runbook | None:
    try:
        return read_runbook(stored.text, where=stored.name)
    except DrengineError:  # of another version of this program; the daemon's log tells
        return None
