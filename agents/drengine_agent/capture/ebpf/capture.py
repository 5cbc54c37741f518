"""Capture of live disks inside the kernel."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from drengine.config.bandwidth import BandwidthSchedule
from drengine.linux.devices import boot_id
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import PointKind
from drengine_agent.bandwidth import TokenBucket
from drengine_agent.beneath import beneath, identity
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.capture import Capture, Opening
from drengine_agent.capture.ebpf.figures import EbpfFigures
from drengine_agent.capture.ebpf.layout import BLOCK_BYTES
from drengine_agent.capture.ebpf.live import LiveVolume, ReadLimit, ReadSpeed
from drengine_agent.capture.ebpf.program import COPIES
from drengine_agent.capture.ebpf.tracker import EbpfTracker
from drengine_agent.config import AgentConfig
from drengine_agent.cuts.budget import FreezeBudget
from drengine_agent.cuts.config import CutOptions
from drengine_agent.cuts.freezer import Freezer
from drengine_agent.cuts.hooks import Hooks
from drengine_agent.cuts.mounts import file_systems_on
from drengine_agent.cuts.still import Stillness
from drengine_agent.errors import STATE_ON_VOLUME

log = logging.getLogger("drengine.agent")


class EbpfCapture(Capture):
    """Tracker `ebpf`."""

    idle_seconds = 0.05
    """A look at a quiet disk proves anew that it is quiet, and costs half a millisecond of CPU."""
    figures_class = EbpfFigures

    def __init__(
        self,
        tracker: EbpfTracker,
        volumes: Mapping[int, Volume],
        readers: Mapping[int, LiveVolume],
        limit: ReadLimit,
        stillness: Stillness | None,
    ) -> None:
        super().__init__(tracker, volumes)
        self._ebpf = tracker
        self._readers = readers
        self._limit = limit
        self._stillness = stillness
        self.tracked_boot = boot_id()

    @classmethod
    def open(cls, opening: Opening) -> Self:
        """See Capture.

        Raises:
            DrengineError: STATE_ON_VOLUME, EBPF_UNAVAILABLE, EBPF_REFUSED, FREEZE_REFUSED.
        """
        config, volumes = opening.config, opening.volumes
        refuse_state_on(volumes, config.state_directory)
        policy = config.cuts.policy
        stillness = _stillness(config.cuts, volumes)
        speed = ReadSpeed()
        limit = _read_limit(config, opening.clock)
        readers = {number: LiveVolume(volume, limit, speed) for number, volume in volumes.items()}
        tracker = EbpfTracker(
            config.party,
            {number: volume.path for number, volume in volumes.items()},
            readers,
            opening.clock,
            policy=policy,
            stillness=stillness,
            budget=FreezeBudget(
                longest_seconds=config.cuts.longest_freeze,
                memory_bytes=policy.set_aside_bytes,
                read_speed=lambda: speed.bytes_per_second,
            ),
            flip_seconds=config.point_interval,
            explain=lambda doubt: _explain(doubt, opening.tracked_boot),
        )
        try:
            tracker.open([volume.geometry for volume in volumes.values()])
            if stillness is not None:
                _start(stillness, must=config.cuts.must_freeze)
        except BaseException:
            tracker.close()
            for reader in readers.values():
                reader.close()
            raise
        return cls(tracker, volumes, readers, limit, stillness)

    @property
    def readers(self) -> Mapping[int, LiveVolume]:
        """See Capture: past the page cache, at the pace that is allowed."""
        return self._readers

    def check(self) -> None:
        super().check()
        self._ebpf.check()

    def hurry(self) -> None:
        self._ebpf.request_cut()

    def tune(self, config: AgentConfig) -> None:
        if self._stillness is None:
            self._stillness = _stillness(config.cuts, self.volumes)
            if self._stillness is not None:
                _start(self._stillness, must=False)
        self._ebpf.tune(config.cuts.policy, self._stillness, config.point_interval)

    def figures(self) -> EbpfFigures:
        counts, seen, dirty_bytes = self._ebpf.counts, self._ebpf.statistics(), self._ebpf.backlog_bytes()
        return EbpfFigures(
            cut_kinds=[kind.value for kind in self._ebpf.abilities.point_kinds],
            cuts_failed=dict(counts.failed),
            dirty_blocks=dirty_bytes // BLOCK_BYTES,
            dirty_bytes=dirty_bytes,
            freezes=counts.freezes,
            freeze_seconds_last=counts.freeze_seconds_last,
            freeze_seconds_longest=counts.freeze_seconds_longest,
            direct_read_bytes=self._limit.read_bytes,
            read_waited_seconds=self._limit.waited_seconds,
            tracker_events=seen.counted // COPIES if seen else 0,
            tracker_runs=seen.run_count if seen else 0,
            tracker_run_seconds=seen.run_ns / 1e9 if seen else 0.0,
            tracker_runs_missed=seen.runs_missed if seen else 0,
            tracker_healed=seen.healed if seen else 0,
            tracker_passed_out=seen.passed_out if seen else 0,
            tracker_passed_in=seen.passed_in if seen else 0,
        )

    def let_go(self) -> None:
        for reader in self._readers.values():
            reader.close()


def _stillness(options: CutOptions, volumes: Mapping[int, Volume]) -> Stillness | None:
    """What other cuts than quiet ones need; None where there are none."""
    if not set(options.policy.kinds) - {PointKind.QUIET}:
        return None
    hooks = Hooks(options.hook_before, options.hook_after, options.postgres, options.hook_timeout)
    devices = [volume.path for volume in volumes.values()]
    freezer = Freezer(longest_seconds=options.longest_freeze)
    return Stillness(freezer, hooks, lambda: [each.at for each in file_systems_on(devices)])


def _start(stillness: Stillness, *, must: bool) -> None:
    """Where nobody asked for freezing by name, a host that can't goes on with quiet cuts; the state tells why."""
    try:
        stillness.start()
    except DrengineError as error:
        if must:
            raise
        log.warning("no frozen cuts here, only quiet ones: %s", error.message)


def _read_limit(config: AgentConfig, clock: Clock) -> ReadLimit:
    return ReadLimit(TokenBucket(BandwidthSchedule.parse(config.ebpf.read_limit), clock))


def _explain(doubt: str, tracked_boot: str) -> str:
    """Why nothing is tracked: only who remembers another run knows whether something was."""
    if doubt != "untracked" or not tracked_boot:
        return doubt
    return "tracking-lost" if tracked_boot == boot_id() else "rebooted"


def refuse_state_on(volumes: Mapping[int, Volume], directory: Path) -> None:
    """What the agent writes by itself must not be a change that it then ships, which makes it write again (fault 29).

    Raises:
        DrengineError: STATE_ON_VOLUME.
    """
    below = beneath(directory)
    for volume in volumes.values():
        if identity(volume.path) in below:
            raise DrengineError(STATE_ON_VOLUME, f"{directory} lies on volume {volume.name} ({volume.path})")
