"""The agent: one source server's replication, what an operator may ask of it, and how it stands."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from random import Random

from drengine.config.bandwidth import BandwidthSchedule
from drengine.control.dispatch import Tell
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.model.states import REASONS, ReplicationState
from drengine.transport.framed import TrafficObserver
from drengine_agent.bandwidth import TokenBucket
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.capture import Capture
from drengine_agent.config import AgentConfig
from drengine_agent.daemon.connector import Connector
from drengine_agent.daemon.health import derive_state
from drengine_agent.daemon.home import stand_ready
from drengine_agent.daemon.replication import Replication
from drengine_agent.daemon.state import StateDirectory
from drengine_agent.failback.preserve import PreserveReport
from drengine_agent.failback.reverse import ReverseReport
from drengine_agent.failback.way_home import WayHome
from drengine_agent.fencing.account import how_it_ends
from drengine_agent.fencing.charge import Charge
from drengine_agent.fencing.fence import SOURCE_FENCED, Fence
from drengine_agent.ship.compression import CompressionController, levels_of
from drengine_agent.ship.pipeline import Pipeline, Progress
from drengine_agent.ship.route import Route
from drengine_agent.ship.sender import Traffic
from drengine_agent.ship.uplink import Connect, Uplink


class Agent:
    """One source server's agent.

    Attributes:
        config: what it was told.
        settings: those that its site may decide, each with its value and where that comes from.
        connector: makes connections with the target.
        uplink: what sessions with the target share.
        replication: keeps the target up to date.
        way_home: what becomes of a source that was failed over.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        connector: Connect | None = None,
        observer: TrafficObserver | None = None,
    ) -> None:
        """`connector` replaces the socket in tests; `observer` is told what travels.

        Raises:
            DrengineError: the state directory, a volume, the journal or an address can't be used.
        """
        self.config = config
        self.settings: Mapping[str, tuple[str, str]] = {}
        clock, random = clock or SystemClock(), random or Random(secrets.randbits(64))
        self.connector = Connector(config, clock, observer)
        self.uplink = Uplink(
            config.source,
            connector or self.connector,
            Route(config.target, random),
            clock,
            TokenBucket(config.schedule, clock),
            CompressionController(levels_of(config.compression)),
            config.workers,
        )
        self._directory = StateDirectory(config.state_directory)
        try:
            self._charge = Charge(Fence(config.state_directory), clock)
            stand_ready(config, self._charge.fence, clock)
            self.replication = Replication(config, self._directory, self._charge, self.uplink, random)
        except BaseException:
            self._directory.close()
            raise
        self.way_home = WayHome(self.replication, self._charge, self.uplink, vouched=config.scan.assume_quiescent)

    # ---- what holds now --------------------------------------------------------------------------------------

    @property
    def capture(self) -> Capture:
        """The source's volumes and their tracker."""
        return self.replication.capture

    @property
    def pipeline(self) -> Pipeline | None:
        """What replicates over the session that stands; None while there is none."""
        return self.replication.pipeline

    @property
    def progress(self) -> Progress:
        """Of sweeps and rescans."""
        return self.replication.progress

    @property
    def traffic(self) -> Traffic:
        """What was shipped since the start."""
        return self.replication.traffic

    def status(self) -> dict[str, object]:
        """For `drengine-agent status` and the control socket."""
        replication, progress, traffic = self.replication, self.progress, self.traffic
        replication.refresh_lag()
        facts = replication.facts()
        state, reason = derive_state(facts)
        return {
            "source": self.config.source,
            "name": self.config.party,
            "state": state.value,
            "reason": reason,
            "hint": self._hint(state, reason),
            "detail": replication.detail,
            "pid": os.getpid(),
            "target": str(self.uplink.route.best),
            "targets": [str(each) for each in self.config.target],
            "tracker": self.capture.tracker.abilities.name,
            "lag_seconds": round(replication.lag.lag_seconds, 3),
            "has_point": replication.lag.has_point,
            "backlog_bytes": facts.backlog_bytes,
            "durable_sequence": replication.durable_sequence,
            "sent_sequence": replication.sender.sequence if replication.sender else 0,
            "points_cut": traffic.cuts,
            "bytes_captured": traffic.captured_bytes,
            "bytes_read": progress.read_bytes + (progress.sweep.read_bytes if progress.sweeping else 0),
            "bytes_sent_plain": traffic.plain_bytes,
            "bytes_sent": traffic.payload_bytes,
            "compression_level": self.uplink.compression.level,
            "bandwidth_limit_bytes_per_second": self.uplink.bandwidth.limit_bytes_per_second,
            "sweep_scanned_bytes": progress.sweep.scanned_bytes,
            "sweep_bytes": progress.sweep_bytes,
            "rescans": dict(progress.rescans),
            "read_errors": progress.read_errors,
            "ack_seconds": round(traffic.ack_seconds_last, 6),
            "volumes": [_shown(volume) for volume in self.capture.volumes.values()],
            "generation": self.generation,
            "branch": self.branch,
            "serving": self.is_serving,
            "settings": {name: list(each) for name, each in self.settings.items()},
            **self.way_home.status(),
            **self.capture.figures().shown(),
        }

    def _hint(self, state: ReplicationState, reason: str) -> str:
        """What to do about it; of a source that is not in charge, how that ends."""
        if self.is_fenced:
            return how_it_ends(self._charge.fence.record)
        told = self.replication.hint if state is ReplicationState.DISCONNECTED else ""
        return told or REASONS[reason].hint

    def not_ready(self) -> str:
        """Why it does not protect the source now; empty when it does."""
        state, reason = derive_state(self.replication.facts())
        if state in _PROTECTING:
            return ""
        detail = f": {self.replication.detail}" if self.replication.detail else ""
        return f"{state.value} ({reason}){detail}"

    @property
    def generation(self) -> int:
        """That this source ships under."""
        return self.replication.generation

    @property
    def branch(self) -> int:
        """That this generation writes at the target, as far as it was told."""
        return self.replication.branch

    @property
    def is_fenced(self) -> bool:
        """It neither serves nor ships until it is released."""
        return not self._charge.fence.may_ship

    @property
    def is_serving(self) -> bool:
        """Whether clients may use the volumes now; False where they are not the agent's to serve."""
        return self.capture.is_serving

    # ---- what an operator may ask ----------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop shipping until `resume`, also over restarts; capture goes on."""
        self.replication.pause()

    def resume(self) -> None:
        """Ship again, whatever paused or stopped it.

        Raises:
            DrengineError: SOURCE_FENCED, and it is not paused.
        """
        self.replication.resume()

    def sync(self) -> None:
        """Scan now; a live tracker compares everything with the target.

        Raises:
            DrengineError: SOURCE_FENCED; COMMAND_REFUSED, nothing is shipped until `resume`.
        """
        self.replication.sync()

    async def cut(self, label: str) -> int:
        """Cut a labelled point; returns its stream position once it is durable.

        Raises:
            DrengineError: COMMAND_REFUSED, there is no session or it ended.
        """
        return await self.replication.cut(label)

    def tune(self, config: AgentConfig, settings: Mapping[str, tuple[str, str]]) -> None:
        """Go by this configuration's `bandwidth`, `point_interval` and `cuts` from now on.

        Args:
            config: the agent's own, with what its site decided.
            settings: each with its value and where it comes from, to be shown.
        """
        self.config, self.settings = config, settings
        self.set_bandwidth(config.schedule)
        self.replication.tune(config)

    def set_bandwidth(self, schedule: BandwidthSchedule) -> None:
        """Take a new limit from now on."""
        self.uplink.bandwidth.set_schedule(schedule)

    # ---- being in charge, and not (docs/failback.md) ---------------------------------------------------------

    async def fence(self, generation: int, reason: str = "operator", *, run: str = "", by: str = "") -> None:
        """Stop serving and shipping, at once and until `release`, also over restarts.

        `run` and `by`: on whose behalf, see FenceRecord.

        Raises:
            DrengineError: SOURCE_FENCED when `generation` is older than ours: whoever says this is behind;
                STATE_DAMAGED: it has stopped, but a restart would not know.
        """
        if generation < self.generation:
            raise DrengineError(SOURCE_FENCED, f"generation {generation} is over, this source is at {self.generation}")
        try:
            await self._charge.stand_down(self.capture, self.generation, reason, run=run, by=by)
        finally:
            self.replication.interrupt()
            await self.replication.halted()

    async def quiesce(self, label: str = "", *, run: str = "", by: str = "") -> dict[str, object]:
        """For a planned switch: stop serving, cut a last point and wait until it is durable; its id and position.

        Raises:
            DrengineError: COMMAND_REFUSED, SOURCE_FENCED; the source serves as before.
        """
        return await self.way_home.quiesce(label, run=run, by=by)

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

    # ---- running ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Replicate until `stop`; leaves a state that the next run can prove."""
        try:
            await self.replication.run()
        finally:
            await self.way_home.close()
            await self.replication.close()
            self._directory.close()

    def stop(self) -> None:
        """Ship what is there, within `drain`, and end."""
        self.replication.stop()


_PROTECTING = {
    ReplicationState.INITIAL_SYNC,
    ReplicationState.BACKLOG,
    ReplicationState.CONTINUOUS,
    ReplicationState.RESCAN,
}


def _shown(volume: Volume) -> dict[str, object]:
    return {
        "name": volume.name,
        "number": volume.volume,
        "path": str(volume.path),
        "size_bytes": volume.size_bytes,
        "identity": volume.identity,
        "declared": volume.declared,
        "anonymous": volume.is_weak,
        "sector_bytes": volume.sector_bytes,
    }
