"""Opening a source's volumes with a tracker, and closing them again: the one place that knows which trackers exist."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from drengine.linux.devices import boot_id
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import PointKind, VolumeGeometry
from drengine_agent.bandwidth import BandwidthSchedule, TokenBucket
from drengine_agent.beneath import beneath, identity
from drengine_agent.capture.backing import WEAK_HINT, Volume
from drengine_agent.capture.ebpf.layout import BLOCK_BYTES
from drengine_agent.capture.ebpf.live import LiveVolume, ReadLimit
from drengine_agent.capture.ebpf.program import COPIES
from drengine_agent.capture.ebpf.tracker import EbpfTracker
from drengine_agent.capture.indexes import HashIndexes
from drengine_agent.capture.scan.tracker import ScanTracker
from drengine_agent.capture.tap.server import TapServer
from drengine_agent.capture.tap.tracker import Tap, TapOptions
from drengine_agent.capture.tracker import Tracker
from drengine_agent.config import AgentConfig
from drengine_agent.cuts.freezer import Freezer
from drengine_agent.cuts.hooks import Hooks
from drengine_agent.cuts.mounts import file_systems_on
from drengine_agent.cuts.still import Stillness
from drengine_agent.daemon.state import AgentState, KnownVolume
from drengine_agent.errors import STATE_ON_VOLUME

log = logging.getLogger("drengine.agent")

IDLE_SECONDS = 0.05
"""A look at a quiet disk proves anew that it is quiet, and costs half a millisecond of CPU."""


@dataclass(slots=True)
class Capture:
    """Open volumes and their tracker.

    Attributes:
        readers: how the pipeline reads them, where that is another way than the volumes' own.
        request_round: begin a round of scanning now; None for trackers that are live.
        request_cut: force a cut soon if the operator allows it; None for trackers that need no forcing.
        check: look whether the volumes are still what they were.
        details: figures of this tracker for `status` and metrics.
        idle_seconds: how often the tracker is asked while there is nothing to do.
        make_server: makes what serves the volumes, its clients held back or not; None if they are not ours to serve.
        server: what serves them now.
    """

    tracker: Tracker
    volumes: Mapping[int, Volume]
    indexes: HashIndexes | None
    check: Callable[[], None]
    details: Callable[[], dict[str, object]]
    request_round: Callable[[], None] | None = None
    request_cut: Callable[[], None] | None = None
    make_server: Callable[[bool], TapServer] | None = None
    server: TapServer | None = None
    readers: Mapping[int, LiveVolume] | None = None
    idle_seconds: float = 0.02

    @property
    def geometry(self) -> tuple[VolumeGeometry, ...]:
        """The volumes as they are declared."""
        return tuple(volume.geometry for volume in self.volumes.values())

    def serve(self, *, held: bool = False) -> None:
        """Let clients use the volumes, once `admit` was called if they are `held` back until then.

        Raises:
            DrengineError: NBD_LISTEN.
        """
        if self.make_server is not None and self.server is None:
            server = self.make_server(held)
            server.start()
            self.server = server

    def admit(self) -> None:
        """Hold clients back no longer."""
        if self.server is not None:
            self.server.admit()

    def stop_serving(self, *, cut: bool) -> None:
        """Serve nobody any more: in peace, or `cut` off with nothing more said to anyone."""
        server, self.server = self.server, None
        if server is not None:
            if cut:
                server.cut()
            else:
                server.stop()

    def close(self) -> None:
        """Serve nobody any more, stop tracking cleanly, let go of the volumes."""
        self.stop_serving(cut=False)
        self.tracker.close()
        if self.indexes is not None:
            self.indexes.close(clean=True)
        for reader in (self.readers or {}).values():
            reader.close()
        for volume in self.volumes.values():
            volume.close()


def open_capture(config: AgentConfig, state: AgentState, clock: Clock) -> Capture:
    """Open everything; notes the volumes' numbers and identities in `state`.

    Raises:
        DrengineError: a volume is missing, replaced, in use or unsupported; the journal or the address can't be used.
    """
    opened: list[Volume] = []
    try:
        for wanted in config.volume:
            known = state.volumes.get(wanted.name)
            volume = Volume.open(
                state.number_of(wanted.name),
                wanted.name,
                wanted.path,
                writable=config.tracker == "nbd",
                identity=known.identity if known else "",
                evidence=known.evidence_known if known else None,
                declared=known.declared if known else "",
            )
            opened.append(volume)
            known = known or KnownVolume(volume.volume, volume.identity)
            state.volumes[wanted.name] = msgspec.structs.replace(known, evidence=volume.evidence)
            _tell_about(volume, known, accepted=wanted.anonymous)
        volumes = {volume.volume: volume for volume in opened}
        if config.tracker == "ebpf":
            return _open_ebpf(config, volumes, clock, state)
        return _open_tap(config, volumes, clock) if config.tracker == "nbd" else _open_scan(config, volumes, clock)
    except BaseException:
        for volume in opened:
            volume.close()
        raise


def _tell_about(volume: Volume, known: KnownVolume, *, accepted: bool) -> None:
    """What an auditor, or whoever may swap disks, wants to read in the log."""
    if known.declared:
        at = datetime.fromtimestamp(known.adopted_ns / 1e9, UTC).isoformat(timespec="seconds")
        log.info("volume %s: %s, adopted at %s in place of %s", volume.name, known.identity, at, known.declared)
    if volume.is_weak and not accepted:
        log.warning("volume %s: nothing tells %s from another disk. %s", volume.name, volume.path, WEAK_HINT)


class VolumeResizedError(Exception):
    """A volume that is scanned or tracked has another size: open everything again and declare it."""


def _open_scan(config: AgentConfig, volumes: dict[int, Volume], clock: Clock) -> Capture:
    indexes = HashIndexes(config.state_directory / "index", [volume.geometry for volume in volumes.values()])
    tracker = ScanTracker(
        volumes,
        indexes,
        clock,
        interval_seconds=config.scan.interval,
        assume_quiescent=config.scan.assume_quiescent,
    )

    return Capture(tracker, volumes, indexes, lambda: _check_sizes(volumes), dict, tracker.request_round)


def _check_sizes(volumes: Mapping[int, Volume]) -> None:
    for volume in volumes.values():
        if volume.check() != volume.size_bytes:
            raise VolumeResizedError(volume.name)


def _open_ebpf(config: AgentConfig, volumes: dict[int, Volume], clock: Clock, state: AgentState) -> Capture:
    refuse_state_on(volumes, config.state_directory)
    policy = config.cuts.policy
    stillness = None
    if set(policy.kinds) - {PointKind.QUIET}:
        hooks = Hooks(config.cuts.hook_before, config.cuts.hook_after, config.cuts.postgres, config.cuts.hook_timeout)
        devices = [volume.path for volume in volumes.values()]
        freezer = Freezer(longest_seconds=config.cuts.longest_freeze)
        stillness = Stillness(freezer, hooks, lambda: [each.at for each in file_systems_on(devices)])
    limit = ReadLimit(TokenBucket(BandwidthSchedule.parse(config.ebpf.read_limit), clock))
    readers = {number: LiveVolume(volume, limit) for number, volume in volumes.items()}
    tracker = EbpfTracker(
        config.source,
        {number: volume.path for number, volume in volumes.items()},
        readers,
        clock,
        policy=policy,
        stillness=stillness,
        flip_seconds=config.point_interval,
        explain=lambda doubt: _explain(doubt, state),
    )
    try:
        tracker.open([volume.geometry for volume in volumes.values()])
        state.tracked_boot = boot_id()
        if stillness is not None:
            stillness.start()
    except BaseException:
        tracker.close()
        for reader in readers.values():
            reader.close()
        raise

    def check() -> None:
        _check_sizes(volumes)
        tracker.check()

    def details() -> dict[str, object]:
        counts, seen = tracker.counts, tracker.statistics()
        return {
            "dirty_blocks": tracker.backlog_bytes() // BLOCK_BYTES,
            "dirty_bytes": tracker.backlog_bytes(),
            "cut_kinds": [kind.value for kind in policy.kinds],
            "cuts_failed": dict(counts.failed),
            "freezes": counts.freezes,
            "freeze_seconds_last": counts.freeze_seconds_last,
            "freeze_seconds_longest": counts.freeze_seconds_longest,
            "direct_read_bytes": limit.read_bytes,
            "read_waited_seconds": limit.waited_seconds,
            "tracker_events": seen.counted // COPIES if seen else 0,
            "tracker_runs": seen.run_count if seen else 0,
            "tracker_run_seconds": seen.run_ns / 1e9 if seen else 0.0,
            "tracker_runs_missed": seen.runs_missed if seen else 0,
            "tracker_healed": seen.healed if seen else 0,
            "tracker_passed_out": seen.passed_out if seen else 0,
            "tracker_passed_in": seen.passed_in if seen else 0,
        }

    return Capture(
        tracker,
        volumes,
        None,
        check,
        details,
        request_cut=tracker.request_cut,
        readers=readers,
        idle_seconds=IDLE_SECONDS,
    )


def _explain(doubt: str, state: AgentState) -> str:
    """Why nothing is tracked: only who remembers another run knows whether something was."""
    if doubt != "untracked" or not state.tracked_boot:
        return doubt
    return "tracking-lost" if state.tracked_boot == boot_id() else "rebooted"


def refuse_state_on(volumes: Mapping[int, Volume], directory: Path) -> None:
    """What the agent writes by itself must not be a change that it then ships, which makes it write again (fault 29).

    Raises:
        DrengineError: STATE_ON_VOLUME.
    """
    below = beneath(directory)
    for volume in volumes.values():
        if identity(volume.path) in below:
            raise DrengineError(STATE_ON_VOLUME, f"{directory} lies on volume {volume.name} ({volume.path})")


def _open_tap(config: AgentConfig, volumes: dict[int, Volume], clock: Clock) -> Capture:
    tap = Tap(
        list(volumes.values()), config.state_directory / "tap", TapOptions(journal_bytes=config.nbd.journal), clock
    )
    tap.open([volume.geometry for volume in volumes.values()])
    listen = config.nbd.listen

    def make_server(held: bool) -> TapServer:
        return TapServer(
            tap,
            listen.path or (listen.host, listen.port),
            sync=config.nbd.protocol == "sync",
            sync_fallback_seconds=config.nbd.sync_fallback,
            held=held,
        )

    def details() -> dict[str, object]:
        status = tap.status()
        return {
            "journal_used_bytes": status.journal_used_bytes,
            "journal_capacity_bytes": status.journal_capacity_bytes,
            "journaling": status.journaling,
            "captured_bytes": status.captured_bytes,
            "nbd": _shown(capture.server.address) if capture.server else "",
            "nbd_protocol": capture.server.protocol_state if capture.server else "",
        }

    capture = Capture(tap, volumes, None, tap.check, details, make_server=make_server)
    return capture


def _shown(address: str | Path | tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else f"unix:{address}"


def volume_reason(error: DrengineError) -> str | None:
    """The state's reason for a volume's failure; None if the error is about something else."""
    return {
        "volume-missing": "volume-missing",
        "volume-replaced": "volume-replaced",
        "volume-resized": "geometry-changed",
    }.get(error.kind.id)
