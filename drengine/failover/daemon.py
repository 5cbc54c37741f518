"""The orchestrator as a daemon: what goes on when nobody types a command.

It keeps the registry's picture of the parties, looks whether runbooks are ready, runs drills when they are due, and
takes up runs whose executor died, here or elsewhere: a daemon that ends hands its own over. A run that a person has
interrupted is left to people. Nothing waits for a daemon: every command opens store and registry by itself, so a
failover needs none (rule 10). Several may share a registry; whoever is first does what is to be done once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from drengine.audit import FOLDER
from drengine.audit.auditing import Auditing
from drengine.control.broker import embedded_broker
from drengine.enrolment.keeper import Keeper, keeping
from drengine.failover.config import OrchestratorConfig
from drengine.failover.duties import Duty
from drengine.failover.engine import Engine, open_engine
from drengine.failover.options import RunOptions
from drengine.failover.reading.reader import read_runbook
from drengine.failover.registry.errors import LEASE_HELD, RUN_ACTIVE
from drengine.failover.registry.values import StoredRunbook, Unheld
from drengine.failover.report.collect import keep_report_of
from drengine.failover.report.keep import is_missing
from drengine.failover.run import RunRecord, RunState
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.schedule import due_ns
from drengine.failover.watching import ReadinessWatch
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.people.roles import Person
from drengine.process.descriptors import raise_descriptor_limit
from drengine.process.signals import signalled
from drengine.telemetry.accepting import quiet_accept_failures
from drengine.telemetry.notify import notify
from drengine.transport.credentials import Credentials

log = logging.getLogger("drengine.orchestrator")

PICTURE_SECONDS = 1.0
SCHEDULE_SECONDS = 5.0
TAKE_UP_SECONDS = 2.0
REPORTS_SECONDS, REPORTS_MAX = 5.0, 50
"""How often the newest runs' reports are looked for, and of how many."""
TAKEN_AGAIN_SECONDS_MAX = 600.0
"""A run that is taken up again and again, because whoever does so dies of it, is taken up ever more seldom."""
SCHEDULER = "schedule"
"""Who started a run that was due."""
_SCHEDULER = Person(SCHEDULER, "orchestrator")


class Orchestrator:
    """The daemon's work with one engine; belongs to one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.keepers: tuple[Keeper, ...] = ()
        """What keeps our certificates fresh."""
        self.duties: list[Duty] = []
        """What one of the site's orchestrators does for all."""
        self.credentials: list[Credentials] = []  # of what else is served
        self.watch = ReadinessWatch(engine)
        self.discovered_at: float | None = None
        """When Prometheus last asked what there is, by the monotonic clock."""
        self._noted: dict[str, object] = {}
        self._read: dict[tuple[str, str], Runbook | None] = {}
        self.taken_up = 0
        """Runs that were taken up here since the start."""
        self._rests: dict[str, tuple[float, float]] = {}  # until when a run is not taken up again, and for how long
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wanted: set[str] = set()

    async def run(self) -> None:
        """Until cancelled; runs under way are then left to whoever goes on with them."""
        works = (self._keep_picture, self._keep_schedule, self._keep_taking_up, self._keep_reports, self.watch.run)
        tasks = [asyncio.create_task(work()) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*tasks, *self._running.values()):
                task.cancel()
            await asyncio.gather(*tasks, *self._running.values(), return_exceptions=True)

    def carry_out(self, run: RunRecord, unheld: Unheld | None = None) -> asyncio.Task[None]:
        """Carry a run out beside everything else; how it goes is in its journal.

        Where that is done here already, what is asked is heeded too, also when the executor has just ended.
        """
        if run.id in self._running:
            self._wanted.add(run.id)
        else:
            self._running[run.id] = asyncio.create_task(self._execute(run, unheld))
        return self._running[run.id]

    async def _execute(self, run: RunRecord, unheld: Unheld | None) -> None:
        try:
            await self._execute_once(run, unheld)
            while run.id in self._wanted:
                self._wanted.discard(run.id)
                await self._execute_once(run, asked=True)
        finally:
            del self._running[run.id]  # nothing is awaited since the last look at what is wanted

    async def _execute_once(self, run: RunRecord, unheld: Unheld | None = None, *, asked: bool = False) -> None:
        """`asked`: only if somebody wants something of it that nobody has heeded."""
        begun = unheld is None

        def watch(*_: object) -> None:
            nonlocal begun
            self.taken_up += not begun
            begun = True

        try:
            if asked and not (await asyncio.to_thread(self.engine.snapshot, run.id)).is_asked:
                return
            ended = await self.engine.execute(run, watch=watch, patient=begun, hands_over=True, unheld=unheld)
        except DrengineError as error:
            if error.kind is LEASE_HELD:
                log.info("%s of %s is carried out elsewhere", run.mode.value, run.runbook, extra={"run": run.id})
                return
            log.error("%s of %s was interrupted: %s", run.mode.value, run.runbook, error, extra={"run": run.id})  # noqa: TRY400
        except Exception:
            log.exception("%s of %s failed unexpectedly", run.mode.value, run.runbook, extra={"run": run.id})
        else:
            end = f"{ended.state.value} {ended.outcome.value}".strip()
            log.info("%s of %s: %s", run.mode.value, run.runbook, end, extra={"run": run.id, "reason": ended.reason})

    def duty(self, name: str) -> Duty:
        """A duty that this daemon does whenever no other one does."""
        engine = self.engine
        made = Duty(engine.registry, engine.site.clock, name, owner=engine.owner, seconds=engine.config.lease)
        self.duties.append(made)
        return made

    # ---- the parties -----------------------------------------------------------------------------------------

    async def _keep_picture(self) -> None:
        while True:
            await _unless_unavailable(self._note_parties)
            await self.engine.site.clock.sleep(PICTURE_SECONDS)

    async def _note_parties(self) -> None:
        agents, registry = self.engine.agents, self.engine.registry
        for name, (kind, presence) in agents.presences().items():
            await self._note(("presence", name), presence, registry.note_presence, kind, name, presence)
        for name, report in agents.reports().items():
            await self._note(("report", name), (report.instance, report.sequence), registry.note_report, report)

    async def _note(self, what: tuple[str, str], news: object, note: Callable[..., None], *values: object) -> None:
        key = "/".join(what)
        if self._noted.get(key) != news:
            await asyncio.to_thread(note, *values)
            self._noted[key] = news

    # ---- runs that nobody executes -----------------------------------------------------------------------------

    async def _keep_taking_up(self) -> None:
        while True:
            await _unless_unavailable(self._take_up)
            await self.engine.site.clock.sleep(min(TAKE_UP_SECONDS, self.engine.config.lease / 2))

    async def _take_up(self) -> None:
        for unheld in await asyncio.to_thread(self.engine.abandoned):
            run = unheld.run
            if run.id not in self._running and not self._rest(run.id):
                why = f"{unheld.owner} does not go on with it" if unheld.owner else "nobody has heeded what was asked"
                log.warning("taking up the %s of %s: %s", run.mode.value, run.runbook, why, extra={"run": run.id})
                self.carry_out(run, unheld)

    def _rest(self, run: str) -> bool:
        """Whether a run is left alone for now, because it was taken up here a moment ago; if not, that is noted."""
        now = self.engine.site.clock.monotonic()
        until, seconds = self._rests.get(run, (now, self.engine.config.lease / 2))
        if now < until:
            return True
        self._rests = {id: each for id, each in self._rests.items() if now < each[0] + TAKEN_AGAIN_SECONDS_MAX}
        self._rests[run] = now + seconds, min(2 * seconds, TAKEN_AGAIN_SECONDS_MAX)
        return False

    # ---- reports of what others carried out --------------------------------------------------------------------

    async def _keep_reports(self) -> None:
        while True:
            await self.engine.site.clock.sleep(REPORTS_SECONDS)
            await _unless_unavailable(self._fetch_reports)

    async def _fetch_reports(self) -> None:
        """Each keeps every report: that of a run elsewhere too, and that of one whose executor died at its end."""
        engine = self.engine
        for run in await asyncio.to_thread(engine.registry.runs, limit=REPORTS_MAX):
            over = run.state in (RunState.FINISHED, RunState.STOPPED) and run.id not in self._running
            if over and await asyncio.to_thread(is_missing, engine.config.reports, run):
                await keep_report_of(engine.registry, engine.config.reports, run.id, engine.site.clock.now_ns())

    # ---- drills by themselves --------------------------------------------------------------------------------

    async def _keep_schedule(self) -> None:
        while True:
            await _unless_unavailable(self._start_due)
            await self.engine.site.clock.sleep(SCHEDULE_SECONDS)

    async def _start_due(self) -> None:
        registry, clock = self.engine.registry, self.engine.site.clock
        for stored in await asyncio.to_thread(registry.runbooks):
            book = self._runbook(stored)
            due = due_ns(book.schedule, stored.at_ns, clock.now_ns()) if book else None
            if book and due is not None and await asyncio.to_thread(registry.claim_due, stored.name, due):
                await self._begin_drill(book, stored.version)

    async def _begin_drill(self, book: Runbook, version: str) -> None:
        try:
            run = await asyncio.to_thread(self.engine.create_run, Mode.DRILL, book, version, _SCHEDULER, RunOptions())
        except DrengineError as error:
            if error.kind is not RUN_ACTIVE:
                raise
            log.warning("the drill of %s is due, but is left out this time: %s", book.name, error)
        else:
            log.info("the drill of %s is due", book.name, extra={"run": run.id})
            self.carry_out(run)

    def _runbook(self, stored: StoredRunbook) -> Runbook | None:
        """Read once for each version; None, and one line in the log, for one that can't be read any more."""
        key = stored.name, stored.version
        if key not in self._read:
            try:
                self._read[key] = read_runbook(stored.text, where=stored.name)
            except DrengineError as error:
                log.error("runbook %s has no drills by schedule: %s", stored.name, error)  # noqa: TRY400
                self._read[key] = None
        return self._read[key]


async def _unless_unavailable(work: Callable[[], object]) -> None:
    """Let a registry that is away for a while, or one bad moment, not end the daemon."""
    try:
        await work()  # type: ignore[misc]
    except DrengineError as error:
        log.warning("%s", error)


Service = Callable[[Orchestrator], AbstractAsyncContextManager[object]]
"""What else is there while the daemon runs: REST, metrics."""


async def run_orchestrator(config: OrchestratorConfig, services: tuple[Service, ...] = ()) -> int:
    """Run until SIGTERM or SIGINT; a second one ends the process at once. SIGHUP has certificates read again.

    Returns the exit code.

    Raises:
        DrengineError: the store's and the registry's own, BROKER_FAILED.
    """
    opened: list[Engine] = []

    def reload() -> None:
        auditing.did("orchestrator.reload")
        for engine in opened:
            engine.agents.reload()
        log.info("certificates are read again; other options need a restart")

    auditing = await asyncio.to_thread(Auditing, config.state / FOLDER, config.audit, SystemClock())
    auditing.did("orchestrator.start")
    stopping = signalled(insist=True, reload=reload)
    raise_descriptor_limit()
    quiet_accept_failures(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, auditing.close)
        if config.broker.embedded and config.broker.address is not None:
            options, own = config.broker, config.broker.embedded_files()
            broker = embedded_broker(
                config.broker.address, site=options.site, files=own, local_users=options.local_users
            )
            await stack.enter_async_context(broker)
        engine = await stack.enter_async_context(open_engine(config, audit=auditing.log))
        opened.append(engine)
        orchestrator = Orchestrator(engine)
        files = [*(each.files for each in engine.agents.credentials), config.rest_tls.files("[rest_tls]")]
        orchestrator.keepers = await stack.enter_async_context(keeping(files, engine.site.clock, engine.agents.reload))
        for service in services:
            await stack.enter_async_context(service(orchestrator))
        working = asyncio.create_task(orchestrator.run())
        notify("READY=1")
        log.info(
            "orchestrator is ready", extra={"store": str(config.store), "broker": str(config.broker.address or "")}
        )
        waiting = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
            notify("STOPPING=1")
            if working.done():
                working.result()
        finally:
            waiting.cancel()
            working.cancel()
            await asyncio.gather(working, waiting, return_exceptions=True)
    log.info("orchestrator has stopped")
    return 0
