"""The agent's service: keeps one source replicating, whatever breaks, and says at any moment how it stands.

One task replicates: connect, one pipeline, and again after any break. Beside it a ticker saves what must outlive the
process, tells the target our state and looks after the volumes; a control server takes an operator's commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random

import msgspec

from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.model.states import REASONS, ReplicationState
from drengine.transport.endpoints import connect
from drengine.transport.framed import TrafficObserver
from drengine.transport.networks import DataNetworks
from drengine.transport.tls import TlsFiles, client_context
from drengine.wire.events import Hello, Purpose, Status
from drengine_agent.bandwidth import BandwidthSchedule, TokenBucket
from drengine_agent.capture.capture import Capture, VolumeResizedError
from drengine_agent.capture.tracker import STALL_REASONS
from drengine_agent.config import AgentConfig
from drengine_agent.daemon.backoff import backoff_seconds
from drengine_agent.daemon.health import Facts, derive_state
from drengine_agent.daemon.state import StateDirectory
from drengine_agent.daemon.trackers import open_capture, volume_reason
from drengine_agent.errors import COMMAND_REFUSED
from drengine_agent.failback.preserve import PreserveReport
from drengine_agent.failback.reverse import ReverseReport
from drengine_agent.failback.way_home import Tell, WayHome
from drengine_agent.fencing.fence import SOURCE_FENCED, Fence
from drengine_agent.ship.compression import CompressionController, levels_of
from drengine_agent.ship.lag import LagMeter
from drengine_agent.ship.pipeline import LabelRequest, Pipeline, Progress
from drengine_agent.ship.resume import check_declared, decide_resume
from drengine_agent.ship.sender import Sender, Traffic
from drengine_agent.ship.session import Session, SessionEnded, Stream, hello_for

log = logging.getLogger("drengine.agent")

TICK_SECONDS = 1.0
SAVE_EVERY_TICKS = 5


class Agent:
    """One source server's replication."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        connector: Callable[[], Awaitable[Stream]] | None = None,
        observer: TrafficObserver | None = None,
    ) -> None:
        """`connector` replaces the socket in tests; `observer` is told what travels.

        Raises:
            DrengineError: the state directory, a volume, the journal or an address can't be used.
        """
        self.config = config
        self._clock = clock or SystemClock()
        self._random = random or Random(secrets.randbits(64))
        self._observer = observer
        self.connect = connector or self._connect_socket
        self._directory = StateDirectory(config.state_directory)
        try:
            self._state = self._directory.load()
            self.way_home = WayHome(self, Fence(config.state_directory), self._clock)
            self.capture: Capture = open_capture(config, self._state, self._clock)
            try:
                self._directory.save(self._state)
                if self.way_home.fence.may_serve:
                    self.capture.serve(held=config.nbd.await_target > 0)
            except BaseException:
                self.capture.close()
                raise
        except BaseException:
            self._directory.close()
            raise
        self._instance = secrets.token_bytes(16)
        self.progress = Progress()
        self.traffic = Traffic()
        self.lag = LagMeter(self._clock, represented_ns=self._state.represented_ns)
        self.bandwidth = TokenBucket(config.schedule, self._clock)
        self.compression = CompressionController(levels_of(config.compression))
        self.observe_ack: Callable[[float], None] = lambda _: None
        self.pipeline: Pipeline | None = None
        self._sender: Sender | None = None
        self._replicating: asyncio.Task[None] | None = None
        self._facts = Facts(paused=self._state.paused, stopped="" if self.way_home.fence.may_ship else "fenced")
        self._resumed = asyncio.Event()
        self._stop = asyncio.Event()
        self._detail = ""
        self._noted: tuple[ReplicationState, str] | None = None

    # ---- what holds now --------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """Everything that the state follows from."""
        tracker, progress = self.capture.tracker, self.progress
        reason = tracker.reason
        behind_ns = tracker.behind_since_ns()
        syncing = progress.syncing
        return replace(
            self._facts,
            connected=self.pipeline is not None,
            syncing=syncing,
            rescan_reason=progress.rescan_reason or (reason if reason not in {"none", *STALL_REASONS} else ""),
            stall_reason=reason if reason in STALL_REASONS and not syncing else "",
            backlog_bytes=tracker.backlog_bytes(),
            behind_seconds=max(0.0, (self._clock.now_ns() - behind_ns) / 1e9) if behind_ns else 0.0,
            limited=progress.limited,
        )

    def status(self) -> dict[str, object]:
        """For `drengine-agent status` and the control socket."""
        if self.pipeline is not None:
            self.pipeline.refresh_lag()
        facts = self.facts()
        state, reason = derive_state(facts)
        sender, sweep = self._sender, self.progress.sweep
        return {
            "source": self.config.source,
            "state": state.value,
            "reason": reason,
            "hint": REASONS[reason].hint,
            "detail": self._detail,
            "pid": os.getpid(),
            "target": str(self.config.target),
            "tracker": self.capture.tracker.abilities.name,
            "lag_seconds": round(self.lag.lag_seconds, 3),
            "has_point": self.lag.has_point,
            "backlog_bytes": facts.backlog_bytes,
            "durable_sequence": sender.durable_sequence if sender else self._state.acknowledged_sequence,
            "sent_sequence": sender.sequence if sender else 0,
            "points_cut": self.traffic.cuts,
            "bytes_captured": self.traffic.captured_bytes,
            "bytes_read": self.progress.read_bytes + (0 if not self.progress.sweeping else sweep.read_bytes),
            "bytes_sent_plain": self.traffic.plain_bytes,
            "bytes_sent": self.traffic.payload_bytes,
            "compression_level": self.compression.level,
            "bandwidth_limit_bytes_per_second": self.bandwidth.limit_bytes_per_second,
            "sweep_scanned_bytes": sweep.scanned_bytes,
            "sweep_bytes": self.progress.sweep_bytes,
            "rescans": dict(self.progress.rescans),
            "read_errors": self.progress.read_errors,
            "ack_seconds": round(self.traffic.ack_seconds_last, 6),
            "volumes": [
                {
                    "name": v.name,
                    "number": v.volume,
                    "path": str(v.path),
                    "size_bytes": v.size_bytes,
                    "identity": v.identity,
                    "declared": v.declared,
                    "anonymous": v.is_weak,
                    "sector_bytes": v.sector_bytes,
                }
                for v in self.capture.volumes.values()
            ],
            "generation": self.generation,
            "branch": self.branch,
            "serving": self.is_serving,
            **self.way_home.status(),
            **self.capture.figures().shown(),
        }

    @property
    def generation(self) -> int:
        """That this source ships under."""
        return self._state.generation

    @property
    def branch(self) -> int:
        """That this generation writes at the target, as far as it was told."""
        return self._state.branch

    @property
    def is_fenced(self) -> bool:
        """It neither serves nor ships until it is released."""
        return not self.way_home.fence.may_ship

    @property
    def is_serving(self) -> bool:
        """Whether clients may use the volumes now; False where they are not the agent's to serve."""
        return self.capture.is_serving

    # ---- what an operator may ask ----------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop shipping until `resume`, also over restarts; capture goes on."""
        self._facts = replace(self._facts, paused=True)
        self._state.paused = True
        self._directory.save(self._state)
        self._resumed.clear()
        if self._replicating is not None:
            self._replicating.cancel()

    def resume(self) -> None:
        """Ship again."""
        self._facts = replace(self._facts, paused=False, attempts=0)
        self._state.paused = False
        self._directory.save(self._state)
        self._resumed.set()

    def sync(self) -> None:
        """Scan now; a live tracker compares everything with the target.

        Raises:
            DrengineError: COMMAND_REFUSED.
        """
        if self.capture.tracker.abilities.live:
            self.capture.tracker.request_rescan("operator")
        else:
            self.capture.hurry()
        if self.pipeline is not None:
            self.pipeline.wake()

    async def cut(self, label: str) -> int:
        """Cut a labelled point; returns its stream position once it is durable.

        Raises:
            DrengineError: COMMAND_REFUSED, there is no session or it ended.
        """
        pipeline, sender = self.pipeline, self._sender
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

    def set_bandwidth(self, schedule: BandwidthSchedule) -> None:
        """Take a new limit from now on."""
        self.bandwidth.set_schedule(schedule)

    # ---- being in charge, and not (docs/failback.md) ---------------------------------------------------------

    async def fence(self, generation: int, reason: str = "operator") -> None:
        """Stop serving and shipping, at once and until `release`, also over restarts.

        Raises:
            DrengineError: SOURCE_FENCED when `generation` is older than ours: whoever says this is behind;
                STATE_DAMAGED: it has stopped, but a restart would not know.
        """
        if generation < self.generation:
            raise DrengineError(SOURCE_FENCED, f"generation {generation} is over, this source is at {self.generation}")
        try:
            await self.way_home.stand_down(self.generation, reason)
        finally:
            if self.is_fenced:
                self._facts = replace(self._facts, stopped="fenced")
            if self._replicating is not None:
                self._replicating.cancel()
                await asyncio.wait({self._replicating})

    async def quiesce(self, label: str = "") -> dict[str, object]:
        """For a planned switch: stop serving, cut a last point and wait until it is durable; its id and position.

        Raises:
            DrengineError: COMMAND_REFUSED, SOURCE_FENCED; the source serves as before.
        """
        return await self.way_home.quiesce(label)

    async def preserve(self, branch: int, generation: int, tell: Tell = lambda _: None) -> PreserveReport:
        """A fenced source ships what its disks hold beyond the replica to this divergent branch, ending in a point.

        Raises:
            DrengineError: SOURCE_FENCED (it is in charge), REVERSE_REFUSED; COMMAND_REFUSED: try again.
        """
        return await self.way_home.preserve(branch, generation, tell)

    async def reverse(self, point: str, tell: Tell = lambda _: None, *, force: bool = False) -> ReverseReport:
        """A fenced source makes its disks equal to a point of its history at the target. Interrupted, run it again.

        Args:
            point: its id.
            tell: is given figures now and then.
            force: give up what the disks hold and was not preserved.

        Raises:
            DrengineError: SOURCE_FENCED (it is in charge), REVERSE_REFUSED; COMMAND_REFUSED: try again.
        """
        return await self.way_home.reverse(point, tell, force=force)

    async def release(self, generation: int, branch: int = 0, *, force: bool = False) -> None:
        """The source is in charge, under this generation: serve and ship.

        Args:
            generation: not older than ours.
            branch: that it writes at the target; 0 leaves what was known.
            force: whatever the disks are, and whatever generation this is.

        Raises:
            DrengineError: SOURCE_FENCED, COMMAND_REFUSED; REVERSE_REFUSED: the disks are half reversed.
        """
        await self.way_home.release(generation, branch, force=force)

    def go_on(self) -> None:
        """Nothing keeps this source from shipping any more."""
        if self._facts.stopped == "fenced":
            self._facts = replace(self._facts, stopped="", attempts=0)
            self._detail = ""
        self._resumed.set()

    def take_generation(self, generation: int, branch: int) -> None:
        """Ship under this generation from now on, also over restarts.

        Raises:
            DrengineError: STATE_DAMAGED.
        """
        self._state.generation, self._state.branch = generation, branch or self._state.branch
        self._directory.save(self._state)

    def hello(self, purpose: Purpose, branch: int, *, sequence: int = 0, generation: int = 0) -> Hello:
        """Our HELLO for an errand."""
        ours = generation or self.generation
        return hello_for(self.config.source, self._instance, ours, purpose, branch, sequence)

    def stop(self) -> None:
        """Ship what is there, within `drain`, and end."""
        self._stop.set()
        self._resumed.set()

    # ---- running ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Replicate until `stop`; leaves a state that the next run can prove."""
        ticker = asyncio.create_task(self._tick())
        admission = asyncio.create_task(self._admit_in_the_end())
        try:
            while not self._stop.is_set():
                if self._facts.paused or self._facts.stopped:
                    await self._wait_for(self._resumed)
                    continue
                self._replicating = asyncio.create_task(self._attempt())
                stopping = asyncio.create_task(self._stop.wait())
                await asyncio.wait({self._replicating, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not self._replicating.done():
                    await self._drain(self._replicating)
                with contextlib.suppress(asyncio.CancelledError):
                    await self._replicating
        finally:
            ticker.cancel()
            admission.cancel()
            await self.way_home.close()
            await asyncio.get_running_loop().run_in_executor(None, self._remember_disks)
            self._save()
            await asyncio.get_running_loop().run_in_executor(None, self.capture.close)
            self._directory.close()

    async def _drain(self, replicating: asyncio.Task[None]) -> None:
        if self.pipeline is not None:
            self.pipeline.finish()
            await asyncio.wait({replicating}, timeout=self.config.drain)
        replicating.cancel()

    async def _attempt(self) -> None:
        """One session and, if it fails, what follows from that."""
        try:
            await self._replicate()
        except SessionEnded as ended:
            self._detail = str(ended)
            if ended.reason == "fenced":
                # The store has a newer generation: whatever we serve, somebody else is in charge (fault 45).
                self._halt(ended.reason, str(ended))
                try:
                    await self.way_home.stand_down(self.generation, "stale")
                except DrengineError as error:
                    log.error("%s; after a restart the target will say it again", error)  # noqa: TRY400
            elif ended.retryable:
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
                outside = isinstance(error, DrengineError) and error.kind.id == "outside-data-network"
                await self._back_off(
                    reason or ("outside-data-network" if outside else "target-unreachable"), str(error)
                )
        except Exception as error:
            log.exception("replication failed unexpectedly")
            await self._back_off("internal", f"{type(error).__name__}: {error}")

    async def _replicate(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.capture.check)
        capture = self.capture
        hello = hello_for(self.config.source, self._instance, self._state.generation)
        session = await Session.open(self.connect, hello, self._clock)
        sender = Sender(session, self._clock, self.traffic, self._acknowledged)
        capture.admit()
        try:
            geometry = capture.geometry
            check_declared(session.welcome, geometry)
            pipeline = Pipeline(
                tracker=capture.tracker,
                volumes=capture.readers,
                geometry=geometry,
                indexes=capture.indexes,
                sender=sender,
                resume=decide_resume(session.welcome, geometry, self._state.acknowledged_sequence),
                compression=self.compression,
                bandwidth=self.bandwidth,
                lag=self.lag,
                progress=self.progress,
                clock=self._clock,
                check=capture.check,
                workers=self.config.workers,
                point_interval_seconds=self.config.point_interval,
                idle_seconds=capture.idle_seconds,
            )
            self.pipeline, self._sender = pipeline, sender
            self._facts = replace(self._facts, attempts=0, disconnect_reason="")
            self._detail = ""
            log.info("session with %s established", self.config.target)
            if self._stop.is_set():
                pipeline.finish()
            await pipeline.run()
        finally:
            self.pipeline = self._sender = None
            self.progress.syncing, self.progress.rescan_reason = False, ""
            await session.close()

    def _acknowledged(self, sequence: int, seconds: float) -> None:
        self._state.acknowledged_sequence = sequence
        self.observe_ack(seconds)

    async def _connect_socket(self) -> Stream:
        config = self.config
        tls = None
        if config.tls.certificate and config.tls.key and config.tls.ca:
            tls = client_context(TlsFiles(config.tls.certificate, config.tls.key, config.tls.ca))
        return await connect(
            config.target.host,
            config.target.port,
            networks=DataNetworks.parse(config.data_networks),
            tls=tls,
            allow_plain=config.allow_plain,
            observer=self._observer,
        )

    async def _back_off(self, reason: str, message: str) -> None:
        attempts = self._facts.attempts + 1
        self._facts = replace(self._facts, attempts=attempts, disconnect_reason=reason)
        self._detail = message
        wait = backoff_seconds(attempts, self._random)
        log.warning("no session (%s): %s; trying again in %.1f s", reason, message, wait)
        waiting = asyncio.create_task(self._stop.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(wait))
        await asyncio.wait({waiting, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        sleeping.cancel()

    def _halt(self, reason: str, message: str) -> None:
        log.error("replication stopped (%s): %s", reason, message)
        self._facts = replace(self._facts, stopped=reason)
        self._detail = message

    async def _reopen(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.capture.close)
        self.capture = await loop.run_in_executor(None, open_capture, self.config, self._state, self._clock)
        if self.way_home.fence.may_serve:
            await loop.run_in_executor(None, self.capture.serve)

    async def _admit_in_the_end(self) -> None:
        """Nobody said that this source is in charge, nor that it is not: a cut network must not stop production."""
        await self._clock.sleep(self.config.nbd.await_target)
        self.capture.admit()

    async def _wait_for(self, event: asyncio.Event) -> None:
        event.clear()
        if not self._stop.is_set():
            await event.wait()

    # ---- looking after things --------------------------------------------------------------------------------

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await self._clock.sleep(TICK_SECONDS)
            ticks += 1
            if self.pipeline is not None:
                self.pipeline.refresh_lag()
            self._note_state()
            await self._tell_target()
            if ticks % SAVE_EVERY_TICKS == 0:
                self._save()

    def _note_state(self) -> None:
        """A line in the log when the state changes, and never otherwise: the log may lie on a protected disk."""
        state = derive_state(self.facts())
        if state != self._noted:
            self._noted = state
            log.info("state %s (%s)", state[0].value, state[1])

    async def _tell_target(self) -> None:
        sender = self._sender
        if sender is None:
            return
        facts = self.facts()
        state, reason = derive_state(facts)
        behind = self.capture.tracker.behind_since_ns()
        with contextlib.suppress(DrengineError, OSError, EOFError):
            await sender.send_status(Status(state.value, reason, facts.backlog_bytes, behind))

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
