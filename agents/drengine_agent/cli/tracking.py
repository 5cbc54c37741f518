"""The kernel's tracking seen from outside the agent: what `track`, `untrack` and `status` share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from drengine.terminal import emit_json, human_age, human_bytes
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.facts import WatchFacts
from drengine_agent.capture.ebpf.layout import BLOCK_BYTES, WatchedVolume
from drengine_agent.capture.ebpf.program import COPIES
from drengine_agent.capture.ebpf.watch import Watch
from drengine_agent.config import AgentConfig, load_config
from drengine_agent.daemon.home import as_housed
from drengine_agent.daemon.state import AgentState, KnownVolume


def begin_tracking(options: AgentConfig) -> str:
    """Attach the tracker to a source's volumes and let go of it: it goes on in the kernel.

    Returns:
        `none` when it ran already; else why it began anew, a code of states.REASONS.

    Raises:
        DrengineError: EBPF_UNAVAILABLE, EBPF_REFUSED (also when the agent runs and has it).
    """
    watch = Watch.attach(options.party, _watched(as_housed(options)))
    try:
        return watch.doubt
    finally:
        watch.close()


def tracking_facts(name: str) -> dict[str, Any] | None:
    """What the kernel tracks for the agent of this name, for machines; None when it tracks nothing."""
    facts = Watch.inspect(name)
    return None if facts is None else {**asdict(facts), "epoch": facts.epoch.hex()}


def show_tracking(source: str) -> None:
    """What the kernel tracks for a source, for people."""
    facts = Watch.inspect(source)
    if facts is None:
        print(f"{'tracking':9} nothing is tracked for source {source}")
        return
    for name, text in _rows(facts):
        print(f"{name:9} {text}")


def show_kernel(config: Path, *, json: bool) -> None:
    """What the kernel tracks while no agent runs with this configuration."""
    options = load_config(config)
    if json:
        source = as_housed(options).source
        emit_json({"running": False, "source": source, "tracking": tracking_facts(options.party)})
    elif options.tracker == "ebpf":
        show_tracking(options.party)


def _rows(facts: WatchFacts) -> list[tuple[str, str]]:
    by = "an agent has it open" if facts.owned else "no agent has it open"
    whole = "" if facts.whole else "; it is of another boot or version, and will begin anew"
    dirty = (facts.active_blocks + facts.pending_blocks) * BLOCK_BYTES
    return [
        ("tracking", f"in the kernel for {human_age(facts.attached_ns, time.time_ns())}; {by}{whole}"),
        ("dirty", f"{human_bytes(dirty)}, of which {human_bytes(facts.pending_blocks * BLOCK_BYTES)} handed out"),
        ("memory", human_bytes(facts.memory_bytes)),
        (
            "changes",
            f"{facts.statistics.counted // COPIES} counted, {facts.statistics.faults} that could not be marked",
        ),
        *(("device", f"{each['device']}  {human_bytes(each['size_bytes'])}") for each in facts.volumes),
    ]


def _watched(options: AgentConfig) -> list[WatchedVolume]:
    """The volumes with the numbers that the agent gives them; the state is only read, it may not be mounted yet."""
    state = _state(options.state_directory)
    watched = []
    for volume in options.volume:
        number = state.number_of(volume.name)
        state.volumes.setdefault(volume.name, KnownVolume(number, ""))
        device = BlockDevice.of_path(volume.path)
        watched.append(WatchedVolume(number, device, device.size_bytes))
    return watched


def _state(directory: Path) -> AgentState:
    try:
        return msgspec.json.decode((directory / "state.json").read_bytes(), type=AgentState)
    except (OSError, msgspec.MsgspecError):
        return AgentState()


def shown(source: str, doubt: str) -> Mapping[str, Any]:
    """The answer of `track`, for machines."""
    return {"source": source, "adopted": doubt == "none", "reason": doubt, "tracking": tracking_facts(source)}
