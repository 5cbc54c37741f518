"""Keeping one source replicating, whatever breaks: connect, one pipeline, and again after any break.

Beside the attempts a ticker saves what must outlive the process, tells the target our state, and logs when it changes.
Only what concerns the source itself ends the attempts for good: it is fenced, or its disks are not what they were. All
else ends by itself, so it is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import msgspec

from drengine.model.errors import DrengineError
from drengine.model.homes import SOURCE_MOVED
from drengine.model.states import REASONS, ReplicationState
from drengine.wire.events import MetricSample, MetricsReport, Status
from drengine_agent.capture.capture import Capture, VolumeResizedError
from drengine_agent.capture.tracker import STALL_REASONS
from drengine_agent.config import AgentConfig
from drengine_agent.daemon.backoff import CAP_SECONDS, backoff_seconds
from drengine_agent.daemon.health import Facts, derive_state, disconnect_reason
from drengine_agent.daemon.state import StateDirectory
from drengine_agent.daemon.trackers import open_capture, volume_reason
from drengine_agent.errors import COMMAND_REFUSED
from drengine_agent.fencing.charge import Charge
from drengine_agent.fencing.fence import SOURCE_FENCED
from drengine_agent.inventory.look import Look
from drengine_agent.inventory.telling import InventoryTeller
from drengine_agent.ship.lag import LagMeter
from drengine_agent.ship.pipeline import LabelRequest, Pipeline, Progress
from drengine_agent.ship.resume import check_declared, decide_resume
from drengine_agent.ship.sender import Sender, Traffic
from drengine_agent.ship.session import SessionEnded, SessionMoved
from drengine_agent.ship.uplink import Uplink

log = logging.getLogger("drengine.agent")

TICK_SECONDS = 1.0
SAVE_EVERY_TICKS = 5
TELL_METRICS_EVERY_TICKS = 10
OWNED_CAP_SECONDS = 2.0
"""Between attempts while a target answers that another has the source: once that one's lock is over it is free."""
STAYED_SECONDS = 10.0
"""A session that lasted so long before it was sent on was no part of a round of targets that disagree."""


@dataclass(slots=True)
class Attempts:
    """What became of the newest attempts.

    Attributes:
        failed: in a row.
        moved: sessions in a row that were sent on soon after they had begun.
        reason: why the last one failed.
        stopped: why none is made any more; empty while they are.
        detail: what was said about it, for people.
        hint: what to do about it; empty where the reason's own says it.
    """

    failed: int = 0
    moved: int = 0
    reason: str = ""
    stopped: str = ""
    detail: str = ""
    hint: str = ""


class Replication:
    """See the module. Its methods belong to one event loop.

    Attributes:
        capture: the source's volumes and their tracker; another one after a volume was resized.
        uplink: how the target is reached.
        pipeline, sender: those of the session that stands; None while there is none.
        progress, traffic, lag: figures, over all sessions.
        observe_ack: is told how long each acknowledgement took.
        samples: gives our metrics, for the target to show.
    """

    def __init__(
        self, config: AgentConfig, directory: StateDirectory, charge: Charge, uplink: Uplink, random: Random
    ) -> None:
        """Open the volumes, and serve them if the source is in charge.

        Raises:
            DrengineError: a volume, the journal, the state directory or an address can't be used.
        """
        self.config = config
        self.uplink = uplink
        self.progress = Progress()
        self.traffic = Traffic()
        self.observe_ack: Callable[[float], None] = lambda _: None
        self.samples: Callable[[], tuple[MetricSample, ...]] = tuple
        self.pipeline: Pipeline | None = None
        self.sender: Sender | None = None
        self._charge = charge
        self._clock = uplink.clock
        self._random = random
        self._directory = directory
        self._state = directory.load()
        self._attempts = Attempts()
        self._assumed = 0
        self._attempting: asyncio.Task[None] | None = None
        self._nudged = asyncio.Event()
        self._stop = asyncio.Event()
        self._told_metrics: Sender | None = None
        self._noted: tuple[ReplicationState, str] | None = None
        paths = {volume.name: volume.path for volume in config.volume}
        look = Look(paths)
        self._teller = InventoryTeller(lambda: look(self._clock.now_ns()), self._clock)
        self.lag = LagMeter(self._clock, represented_ns=self._state.represented_ns)
        self.capture: Capture = open_capture(config, self._state, self._clock)
        try:
            directory.save(self._state)
            if charge.fence.may_serve:
                self.capture.serve(held=config.nbd.await_target > 0)
        except BaseException:
            self.capture.close()
            raise

    # ---- what holds now --------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """Everything that the state follows from."""
        tracker, progress, attempts = self.capture.tracker, self.progress, self._attempts
        reason, syncing = tracker.reason, progress.syncing
        behind_ns = tracker.behind_since_ns()
        return Facts(
            stopped=attempts.stopped if self._charge.fence.may_ship else "fenced",
            paused=self._state.paused,
            connected=self.pipeline is not None,
            disconnect_reason=attempts.reason,
            attempts=attempts.failed,
            syncing=syncing,
            rescan_reason=progress.rescan_reason or (reason if reason not in {"none", *STALL_REASONS} else ""),
            stall_reason=reason if reason in STALL_REASONS and not syncing else "",
            backlog_bytes=tracker.backlog_bytes(),
            behind_seconds=max(0.0, (self._clock.now_ns() - behind_ns) / 1e9) if behind_ns else 0.0,
            limited=progress.limited,
        )

    @property
    def detail(self) -> str:
        """What was said about the newest failure, for people; empty when all is well."""
        return self._attempts.detail

    @property
    def hint(self) -> str:
        """What to do about it, where that is known better than by the state's reason."""
        return self._attempts.hint

    @property
    def generation(self) -> int:
        """That this source ships under; 0 while it is not known."""
        return self._state.generation

    @property
    def branch(self) -> int:
        """That this generation writes at the target, as far as it was told."""
        return self._state.branch

    @property
    def durable_sequence(self) -> int:
        """The newest position that the target has acknowledged."""
        return self.sender.durable_sequence if self.sender else self._state.acknowledged_sequence

    def refresh_lag(self) -> None:
        """Let the lag know if the newest durable point still equals the source."""
        if self.pipeline is not None:
            self.pipeline.refresh_lag()

    # ---- what may be asked of it -----------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop shipping until `resume`, also over restarts; capture goes on."""
        self._state.paused = True
        self._directory.save(self._state)
        self.interrupt()

    def resume(self) -> None:
        """Ship again, whatever paused or stopped it, and without waiting for the next attempt.

        A fenced source that is paused will ship once it is released.

        Raises:
            DrengineError: SOURCE_FENCED, and it is not paused.
        """
        if not self._state.paused:
            self._require_charge("resume")
        self._state.paused = False
        self._directory.save(self._state)
        self.go_on()

    def sync(self) -> None:
        """Look for differences now: scan, or (a live tracker) compare everything with the target.

        Raises:
            DrengineError: SOURCE_FENCED; COMMAND_REFUSED, nothing is shipped until `resume`.
        """
        self._require_charge("sync")
        if self._state.paused or self._attempts.stopped:
            why = "paused" if self._state.paused else f"stopped ({self._attempts.stopped})"
            hint = "" if self._state.paused else f"{REASONS[self._attempts.stopped].hint} Then: "
            raise DrengineError(
                COMMAND_REFUSED,
                f"replication is {why}: nothing would be compared",
                hint=f"{hint}`drengine-agent resume`.",
            )
        if self.capture.tracker.abilities.live:
            self.capture.tracker.request_rescan("operator")
        else:
            self.capture.hurry()
        if self.pipeline is not None:
            self.pipeline.wake()
        self._nudged.set()

    def tune(self, config: AgentConfig) -> None:
        """Go by this configuration's `point_interval` and `cuts` from now on."""
        self.config = config
        self.capture.tune(config)
        if self.pipeline is not None:
            self.pipeline.tune(config.point_interval)

    async def cut(self, label: str) -> int:
        """Cut a labelled point; returns its stream position once it is durable.

        Raises:
            DrengineError: COMMAND_REFUSED, there is no session or it ended.
        """
        pipeline, sender = self.pipeline, self.sender
        if pipeline is None or sender is None:
            raise DrengineError(COMMAND_REFUSED, "there is no session with the target, so no point can be cut")
        request = LabelRequest(label)
        self.capture.hurry()
        pipeline.request_label(request)
        try:
            sequence = await asyncio.wrap_future(request.done)
            await sender.wait_durable(sequence)
        except (asyncio.CancelledError, SessionEnded, DrengineError, OSError, EOFError) as error:
            raise DrengineError(COMMAND_REFUSED, "the session ended before the point was cut") from error
        return sequence

    def take_generation(self, generation: int, branch: int) -> None:
        """Ship under this generation from now on, also over restarts; branch 0 leaves what was known.

        Raises:
            DrengineError: STATE_DAMAGED.
        """
        self._state.generation, self._state.branch = generation, branch or self._state.branch
        self._directory.save(self._state)

    def interrupt(self) -> None:
        """End the session that stands, at once."""
        if self._attempting is not None:
            self._attempting.cancel()

    async def halted(self) -> None:
        """Wait until an interrupted session has ended."""
        if self._attempting is not None:
            await asyncio.wait({self._attempting})

    def go_on(self) -> None:
        """Try again now, and forget what failed: whatever kept this source from shipping is over."""
        self._attempts = Attempts()
        self._nudged.set()

    def stop(self) -> None:
        """Ship what is there, within `drain`, and end."""
        self._stop.set()
        self._nudged.set()

    def _require_charge(self, verb: str) -> None:
        if not self._charge.fence.may_ship:
            raise DrengineError(SOURCE_FENCED, f"the source is fenced: there is nothing to {verb} until it is released")

    # ---- running ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Replicate until `stop`."""
        ticker = asyncio.create_task(self._tick())
        admission = asyncio.create_task(self._admit_in_the_end())
        looking = asyncio.create_task(self._teller.run())
        try:
            while not self._stop.is_set():
                if self._state.paused or self._attempts.stopped or not self._charge.fence.may_ship:
                    await self._rest(None)
                    continue
                self._attempting = asyncio.create_task(self._attempt())
                stopping = asyncio.create_task(self._stop.wait())
                await asyncio.wait({self._attempting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not self._attempting.done():
                    await self._drain(self._attempting)
                with contextlib.suppress(asyncio.CancelledError):
                    await self._attempting
        finally:
            ticker.cancel()
            admission.cancel()
            looking.cancel()

    async def close(self) -> None:
        """Let go of the volumes, leaving a state that the next run can prove."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._remember_disks)
        self._save()
        await loop.run_in_executor(None, self.capture.close)

    async def _drain(self, attempting: asyncio.Task[None]) -> None:
        if self.pipeline is not None:
            self.pipeline.finish()
            await asyncio.wait({attempting}, timeout=self.config.drain)
        attempting.cancel()

    async def _attempt(self) -> None:
        """One session and, if it fails, what follows from that."""
        try:
            await self._replicate()
        except SessionEnded as ended:
            if not self.generation and "store-behind" in str(ended):
                self._assumed = 1  # a target of an older version: it can't tell
            if ended.reason == "fenced":
                await self._stand_down("moved" if ended.code == SOURCE_MOVED.id else "stale", str(ended))
            elif ended.retryable:
                # It can't go on now, and says so: another one is asked first.
                self.uplink.route.failed(self.uplink.route.best)
                await self._back_off(ended.reason, str(ended))
            else:
                self._halt(ended.reason, str(ended))
        except VolumeResizedError as resized:
            log.warning("volume %s has another size; opening it again", resized)
            await self._reopen()
        except (DrengineError, OSError, EOFError) as error:
            reason = volume_reason(error) if isinstance(error, DrengineError) else None
            if reason in ("volume-replaced", "geometry-changed"):
                self._halt(reason, str(error))
            else:
                hint = error.hint if isinstance(error, DrengineError) else ""
                await self._back_off(reason or disconnect_reason(error), str(error), hint)
        except Exception as error:
            log.exception("replication failed unexpectedly")
            await self._back_off("internal", f"{type(error).__name__}: {error}")

    async def _replicate(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.capture.check)
        capture = self.capture
        session = await self.uplink.open(self.uplink.hello(self.generation or self._assumed))
        if not self.generation and session.stream.is_proved:
            await asyncio.to_thread(self.take_generation, session.welcome.generation, 0)
        sender = Sender(session, self._clock, self.traffic, self._acknowledged)
        capture.admit()
        try:
            geometry = capture.geometry
            check_declared(session.welcome, geometry)
            pipeline = Pipeline(
                uplink=self.uplink,
                tracker=capture.tracker,
                volumes=capture.readers,
                geometry=geometry,
                indexes=capture.indexes,
                sender=sender,
                resume=decide_resume(session.welcome, geometry, self._state.acknowledged_sequence),
                lag=self.lag,
                progress=self.progress,
                check=capture.check,
                call_on_change=capture.call_on_change,
                point_interval_seconds=self.config.point_interval,
                idle_seconds=capture.idle_seconds,
                gather_seconds=capture.gather_seconds,
            )
            self.pipeline, self.sender = pipeline, sender
            self._attempts = Attempts(moved=self._attempts.moved)
            log.info("session with %s established", self.uplink.route.best)
            if self._stop.is_set():
                pipeline.finish()
            began = self._clock.monotonic()
            try:
                await pipeline.run()
            except SessionMoved as moved:
                await self._go_where_sent(moved, self._clock.monotonic() - began)
        finally:
            self.pipeline = self.sender = None
            self.progress.syncing, self.progress.rescan_reason = False, ""
            await session.close()

    def _acknowledged(self, sequence: int, seconds: float) -> None:
        self._state.acknowledged_sequence = sequence
        self.observe_ack(seconds)

    async def _go_where_sent(self, moved: SessionMoved, lasted_seconds: float) -> None:
        """The target gave the source away (it drains, or stops): the next attempt begins with the one that it named."""
        self.uplink.route.sent_on(moved.to)
        attempts = self._attempts
        attempts.moved = 1 if lasted_seconds >= STAYED_SECONDS else attempts.moved + 1
        wait = backoff_seconds(attempts.moved, self._random)
        log.info("sent on by the target (%s); going there in %.1f s", moved, wait)
        self.pipeline = self.sender = None
        await self._rest(wait)

    async def _stand_down(self, reason: str, message: str) -> None:
        """The store has a newer generation, or another host: whatever we serve, somebody else is in charge
        (fault 45).
        """
        self._attempts.detail = message
        log.error("replication stopped (fenced): %s", message)
        try:
            await self._charge.stand_down(self.capture, self.generation, reason)
        except DrengineError as error:
            log.error("%s; after a restart the target will say it again", error)  # noqa: TRY400

    async def _back_off(self, reason: str, message: str, hint: str = "") -> None:
        attempts = self._attempts
        attempts.failed, attempts.reason, attempts.detail = attempts.failed + 1, reason, message
        attempts.hint = hint
        cap = OWNED_CAP_SECONDS if reason == "source-elsewhere" else CAP_SECONDS
        wait = backoff_seconds(attempts.failed, self._random, cap=cap)
        log.warning("no session (%s): %s; trying again in %.1f s", reason, message, wait)
        await self._rest(wait)

    def _halt(self, reason: str, message: str) -> None:
        log.error("replication stopped (%s): %s", reason, message)
        self._attempts.stopped, self._attempts.detail = reason, message

    async def _rest(self, seconds: float | None) -> None:
        """Do nothing until somebody wants something done, or for so long."""
        self._nudged.clear()
        if self._stop.is_set():
            return
        waiting: set[asyncio.Future[object]] = {asyncio.ensure_future(self._nudged.wait())}
        if seconds is not None:
            waiting.add(asyncio.ensure_future(self._clock.sleep(seconds)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def _reopen(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.capture.close)
        self.capture = await loop.run_in_executor(None, open_capture, self.config, self._state, self._clock)
        if self._charge.fence.may_serve:
            await loop.run_in_executor(None, self.capture.serve)

    async def _admit_in_the_end(self) -> None:
        """Nobody said that this source is in charge, nor that it is not: a cut network must not stop production."""
        await self._clock.sleep(self.config.nbd.await_target)
        self.capture.admit()

    # ---- looking after things --------------------------------------------------------------------------------

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await self._clock.sleep(TICK_SECONDS)
            ticks += 1
            self.refresh_lag()
            self._note_state()
            await self._tell_target()
            if ticks % TELL_METRICS_EVERY_TICKS == 0 or self.sender is not self._told_metrics:
                await self._tell_metrics()
            await self._teller.tell(self.sender)
            if ticks % SAVE_EVERY_TICKS == 0:
                self._save()

    def _note_state(self) -> None:
        """A line in the log when the state changes, and never otherwise: the log may lie on a protected disk."""
        state = derive_state(self.facts())
        if state != self._noted:
            self._noted = state
            log.info("state %s (%s)", state[0].value, state[1])

    async def _tell_target(self) -> None:
        sender = self.sender
        if sender is None:
            return
        facts = self.facts()
        state, reason = derive_state(facts)
        behind = self.capture.tracker.behind_since_ns()
        with contextlib.suppress(DrengineError, OSError, EOFError):
            await sender.send_status(Status(state.value, reason, facts.backlog_bytes, behind))

    async def _tell_metrics(self) -> None:
        sender = self._told_metrics = self.sender
        if sender is not None and sender.tells_metrics:
            with contextlib.suppress(DrengineError, OSError, EOFError):
                await sender.send_metrics(MetricsReport(self.samples()))

    def _remember_disks(self) -> None:
        """What is written on the disks may have changed, and be all that tells them apart at the next boot."""
        for volume in self.capture.volumes.values():
            with contextlib.suppress(OSError):
                known = self._state.volumes[volume.name]
                self._state.volumes[volume.name] = msgspec.structs.replace(known, evidence=volume.evidence_now())

    def _save(self) -> None:
        self._state.represented_ns = self.lag.represented_ns
        try:
            self._directory.save(self._state)
        except DrengineError as error:
            log.warning("the state was not saved: %s", error)
