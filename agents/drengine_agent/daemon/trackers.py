"""Opening a source's volumes, captured in the way that the configuration names."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import msgspec

from drengine.config.options import BAD_CONFIG
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine_agent.capture.backing import WEAK_HINT, Volume
from drengine_agent.capture.capture import Capture, Opening
from drengine_agent.config import AgentConfig
from drengine_agent.daemon.state import AgentState, KnownVolume
from drengine_agent.trackers import TRACKERS

log = logging.getLogger("drengine.agent")


def capture_class(name: str) -> type[Capture]:
    """The way to capture of that name.

    Raises:
        DrengineError: BAD_CONFIG, it can't be loaded.
    """
    found = TRACKERS.load(name)
    if not (isinstance(found, type) and issubclass(found, Capture)):
        raise DrengineError(BAD_CONFIG, f"tracker {name!r} is no Capture (docs/capture.md)")
    return found


def configured_capture(config: AgentConfig) -> type[Capture]:
    """The way to capture that a configuration names, if it can do all that the configuration asks.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    way = capture_class(config.tracker)
    way.check_config(config)
    return way


def open_capture(config: AgentConfig, state: AgentState, clock: Clock) -> Capture:
    """Open everything; notes the volumes' numbers and identities in `state`.

    Raises:
        DrengineError: a volume is missing, replaced, in use or unsupported; the journal or the address can't be used.
    """
    way = configured_capture(config)
    opened: list[Volume] = []
    try:
        for wanted in config.volume:
            known = state.volumes.get(wanted.name)
            volume = Volume.open(
                state.number_of(wanted.name),
                wanted.name,
                wanted.path,
                writable=way.writable,
                identity=known.identity if known else "",
                evidence=known.evidence_known if known else None,
                declared=known.declared if known else "",
            )
            opened.append(volume)
            known = known or KnownVolume(volume.volume, volume.identity)
            state.volumes[wanted.name] = msgspec.structs.replace(known, evidence=volume.evidence)
            _tell_about(volume, known, accepted=wanted.anonymous)
        volumes = {volume.volume: volume for volume in opened}
        capture = way.open(Opening(config, volumes, clock, state.tracked_boot))
    except BaseException:
        for volume in opened:
            volume.close()
        raise
    state.tracked_boot = capture.tracked_boot or state.tracked_boot
    return capture


def _tell_about(volume: Volume, known: KnownVolume, *, accepted: bool) -> None:
    """What an auditor, or whoever may swap disks, wants to read in the log."""
    if known.declared:
        at = datetime.fromtimestamp(known.adopted_ns / 1e9, UTC).isoformat(timespec="seconds")
        log.info("volume %s: %s, adopted at %s in place of %s", volume.name, known.identity, at, known.declared)
    if volume.is_weak and not accepted:
        log.warning("volume %s: nothing tells %s from another disk. %s", volume.name, volume.path, WEAK_HINT)


def volume_reason(error: DrengineError) -> str | None:
    """The state's reason for a volume's failure; None if the error is about something else."""
    return {
        "volume-missing": "volume-missing",
        "volume-replaced": "volume-replaced",
        "volume-resized": "geometry-changed",
    }.get(error.kind.id)
