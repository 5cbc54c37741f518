"""The engine that creates runs and carries them out: store, registry, agents, drivers, opened from one configuration.

The store is opened directly and the registry is a local file unless configured otherwise, so nothing here needs the
region, the broker or the source (rule 10). What is missing shows when a step needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from drengine.audit import FOLDER, AuditLog
from drengine.control.agents import BrokerAgents, NoAgents
from drengine.failover.approvals import Subject, subject_of, text_sha256
from drengine.failover.config import OrchestratorConfig
from drengine.failover.doors import door_of
from drengine.failover.drivers.available import load_drivers
from drengine.failover.errors import RUN_STATE
from drengine.failover.executor import Executor, Watcher
from drengine.failover.labels import Purpose, RunLabel
from drengine.failover.options import EarlierLaunch, RunOptions
from drengine.failover.plan import sources_of
from drengine.failover.preflight.examine import Preflight
from drengine.failover.readiness import Readiness, blocking, in_order
from drengine.failover.reading.reader import read_runbook, read_runbook_text
from drengine.failover.registry import Registry
from drengine.failover.registry.values import Unheld
from drengine.failover.report.collect import keep_report_of
from drengine.failover.run import RunRecord, RunState, new_run_id
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.snapshot import Snapshot, observe
from drengine.failover.steps.step import Case, Site
from drengine.failover.steps.workloads import instance_name
from drengine.failover.telling import telling
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.notifications import SILENT, Notifier, open_notifier
from drengine.ownership import make_directory
from drengine.people.door import Door
from drengine.people.roles import Person
from drengine.store.store import Store
from drengine.target.key import keks_of, s3_of

LEASE_MARGIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Engine:
    """See the module; `open_engine` makes it. `agents` are the site's, with all that the broker knows of them; they
    belong to `loop`; None where no broker is.
    """

    config: OrchestratorConfig
    registry: Registry
    site: Site
    agents: BrokerAgents | NoAgents
    owner: str
    door: Door
    notifier: Notifier = SILENT
    loop: asyncio.AbstractEventLoop | None = None

    def load_runbook(self, place: Path | str) -> tuple[Runbook, str]:
        """A runbook by its file or by the name under which it was kept, and the version that a run of it keeps.

        Raises:
            DrengineError: BAD_RUNBOOK, UNKNOWN_RUNBOOK.
        """
        book, text = self.read_runbook(place)
        return book, self.registry.save_runbook(book.name, text)

    def read_runbook(self, place: Path | str) -> tuple[Runbook, str]:
        """A runbook, by its file or its name, and its text; nothing is kept. No name leads to a file."""
        if isinstance(place, Path):
            text = read_runbook_text(place)
            return read_runbook(text, where=str(place)), text
        stored = self.registry.runbook(place)
        return read_runbook(stored.text, where=f"{place}@{stored.version[:12]}"), stored.text

    def runbook_of(self, run: RunRecord) -> Runbook:
        """The version that a run began with, whatever its file says now."""
        stored = self.registry.runbook(run.runbook, run.version)
        return read_runbook(stored.text, where=f"{run.runbook}@{run.version[:12]}")

    def subject_of(self, run: RunRecord) -> Subject:
        """What an approval of a run is about, by what the registry holds now."""
        return subject_of(run, text_sha256(self.registry.runbook(run.runbook, run.version).text))

    def create_run(self, mode: Mode, book: Runbook, version: str, by: Person, options: RunOptions) -> RunRecord:
        """Begin a run; nothing is done before it is executed.

        Raises:
            DrengineError: RUN_ACTIVE when an unfinished run holds one of its sources.
        """
        now_ns = self.site.clock.now_ns()
        run = RunRecord(
            id=new_run_id(book.name, now_ns),
            mode=mode,
            runbook=book.name,
            version=version,
            sources=sources_of(book),
            started_by=by.name,
            started_proof=by.proof,
            created_ns=now_ns,
            options=self.with_standing(msgspec.structs.replace(options, force_by=book.force_by), mode, book).kept(),
        )
        self.registry.create_run(run, owner=self.owner, seconds=self.config.lease)
        return run

    def abandoned(self) -> list[Unheld]:
        """Runs that somebody has to take up: their executor died or handed them over; or what was asked of them a while
        ago was not heeded, because whoever asked died before he carried it out. What a person interrupted is his.
        """
        return [each for each in self.registry.unheld_runs() if self._is_abandoned(each)]

    def _is_abandoned(self, unheld: Unheld) -> bool:
        if unheld.owner and unheld.run.state in (RunState.RUNNING, RunState.WAITING):
            return True
        if unheld.asked_seconds < self.config.lease:
            return False
        snapshot = self.snapshot(unheld.run.id)
        return snapshot.reopened if unheld.run.state is RunState.FINISHED else snapshot.is_asked

    async def execute(
        self,
        run: RunRecord,
        *,
        wait: bool = True,
        watch: Watcher = lambda run, snapshot, decision: None,
        patient: bool = False,
        hands_over: bool = False,
        unheld: Unheld | None = None,
    ) -> RunRecord:
        """Carry a run out, or go on with it, and keep its report; see Executor.

        `patient`: whoever had it before may be dead, so its lease is waited for.
        """
        executor = Executor(
            self.registry,
            self.site,
            await asyncio.to_thread(self.runbook_of, run),
            runbook_sha256=(await asyncio.to_thread(self.subject_of, run)).runbook_sha256,
            owner=self.owner,
            lease_seconds=self.config.lease,
            watch=telling(self.notifier, watch),
            witness=self.registry.witness,
            hands_over=hands_over,
        )
        patience_seconds = self.config.lease + LEASE_MARGIN_SECONDS if patient else 0.0
        ended = await executor.execute(run.id, wait=wait, patience_seconds=patience_seconds, unheld=unheld)
        await asyncio.to_thread(self._note_reports, ended)
        page = await keep_report_of(self.registry, self.config.reports, run.id, self.site.clock.now_ns())
        if page is not None:
            await asyncio.to_thread(self.registry.witness.reported, run.id, page)
        return ended

    def _note_reports(self, run: RunRecord) -> None:
        """What the run's agents said last is part of its report, also where no daemon keeps the registry's picture."""
        said = self.site.agents.reports()
        with contextlib.suppress(DrengineError):
            there = {self.site.store.home(source).agent for source in run.sources}
            for agent in there & set(said):
                self.registry.note_report(said[agent])

    def snapshot(self, run: str) -> Snapshot:
        """How far a run is, from its journal, without its approvals."""
        _, entries, asked = self.registry.run_with_past(run)
        return observe(entries, asked, (), self.site.clock.now_ns())

    def look(self, run: str) -> tuple[RunRecord, Snapshot, Subject]:
        """A run, how far it is, and what its approvals are about, as of one moment.

        Read one after the other, a run that had ended and is rolled back since would seem to have ended with that
        rollback decided, and nothing asked of it any more.

        Raises:
            DrengineError: UNKNOWN_RUN.
        """
        record, entries, asked = self.registry.run_with_past(run)
        subject = self.subject_of(record)
        return record, observe(entries, asked, (), self.site.clock.now_ns(), subject=subject), subject

    def with_standing(self, options: RunOptions, mode: Mode, book: Runbook) -> RunOptions:
        """The options, with what runs now on each source's promoted branch, and where each source lives.

        Raises:
            DrengineError: RUN_STATE when there is no way home, or none is needed, in this mode.
        """
        if mode is Mode.DRILL:
            return options
        found = {source: self._earlier_launch(book, source) for source in sources_of(book)}
        here = {source: launch for source, launch in found.items() if launch is not None}
        for source in found:
            if mode.is_way_home and source not in here:
                raise DrengineError(RUN_STATE, f"{source!r} is not failed over: it is in charge itself")
            if mode is Mode.MIGRATION and source in here:
                raise DrengineError(RUN_STATE, f"{source!r} is failed over already: fail it back first")
        lives = {source: self.site.store.home(source).agent for source in found}
        moved = {source: host for source, host in lives.items() if host != source}
        return msgspec.structs.replace(options, launches=here, homes=moved)

    async def readiness(self, mode: Mode, book: Runbook, options: RunOptions, *, by: str = "") -> Readiness:
        """How a run of this runbook would go, as far as can be known before; nothing is changed.

        `by`: who would begin it; empty: whoever may.
        """
        clock = self.site.clock
        began, at_ns = clock.monotonic(), clock.now_ns()
        with contextlib.suppress(DrengineError):  # why there is no way is among the checks
            options = await asyncio.to_thread(self.with_standing, options, mode, book)
        case = Case(mode, book, options, started_by=by, rehearsal=True)
        checks = in_order(await self.site.preflight(self.site, case))
        seconds = round(clock.monotonic() - began, 3)
        ready = not blocking(checks)
        return Readiness(runbook=book.name, mode=mode, ready=ready, at_ns=at_ns, seconds=seconds, checks=checks)

    def _earlier_launch(self, book: Runbook, source: str) -> EarlierLaunch | None:
        """None where the source is in charge itself."""
        info = self.site.store.source(source)
        branch = next(each for each in self.site.store.branches(source) if each.number == info.active_branch)
        label = RunLabel.parse(branch.label)
        if branch.role != "promoted" or label is None or label.purpose is not Purpose.RECOVERY:
            return None
        launch = self._launching_runbook(label.run, book).sources.get(source, book.sources[source]).launch
        return EarlierLaunch(
            run=label.run,
            instance=instance_name(label.run, source),
            branch=branch.number,
            driver=launch.driver,
            host=launch.host,
            settings=dict(launch.settings),
        )

    def _launching_runbook(self, run: str, book: Runbook) -> Runbook:
        """The runbook of the run that failed over; where the registry was lost, today's has to do."""
        try:
            return self.runbook_of(self.registry.run(run))
        except DrengineError:
            return book


@asynccontextmanager
async def open_engine(
    config: OrchestratorConfig, *, clock: Clock | None = None, audit: AuditLog | None = None
) -> AsyncIterator[Engine]:
    """Open everything, and close it in the end; `audit` is the daemon's log, where it is open already.

    Raises:
        DrengineError: the store's and the registry's own; not that a broker is silent.
    """
    clock = clock or SystemClock()
    keks = await asyncio.to_thread(keks_of, config.encryption, config.store)
    # The store first: whoever has mistyped it is left no state directory.
    options = s3_of(config.s3, config.store)
    with await asyncio.to_thread(Store.open, config.store, clock=clock, keks=keks, storage_options=options) as store:
        make_directory(config.state)
        audit = audit or await asyncio.to_thread(AuditLog.open, config.state / FOLDER, clock=clock)
        registry = await asyncio.to_thread(Registry.open, config.registry_url, clock=clock, audit=audit)
        try:
            async with _agents(config, clock, audit) as agents:
                door = door_of(config, clock, registry)
                site = Site(
                    store=store,
                    agents=agents,
                    drivers=load_drivers(),
                    exporting=config.exporting,
                    directory=config.instances,
                    clock=clock,
                    preflight=Preflight(config, registry, door, agents),
                    data_networks=config.data_networks,
                )
                owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
                notifier = await asyncio.to_thread(open_notifier, config.notifications, memory=registry)
                loop = asyncio.get_running_loop()
                try:
                    yield Engine(config, registry, site, agents, owner, door, notifier, loop)
                finally:
                    await asyncio.to_thread(notifier.close)
        finally:
            await asyncio.to_thread(registry.close)


@asynccontextmanager
async def _agents(
    config: OrchestratorConfig, clock: Clock, audit: AuditLog | None
) -> AsyncIterator[BrokerAgents | NoAgents]:
    if config.broker.address is None:
        yield NoAgents()
        return
    async with BrokerAgents(config.broker, clock=clock, audit=audit) as agents:
        await agents.settled()
        yield agents
