"""What tracking of live disks tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drengine_agent.capture.figures import Figures, counter, gauge
from drengine_agent.capture.tracker import STALL_REASONS

_PASSED = ("agent_tracker_passthrough_total", "Pass-through commands to tracked disks, by where their data went.")


@dataclass(frozen=True, kw_only=True)
class EbpfFigures(Figures):
    """What tracking of live disks tells; `cut_kinds` are those that may be made."""

    cut_kinds: list[str]
    cuts_failed: Mapping[str, int] = counter(
        "agent_cuts_failed_total",
        "Forced cuts that came to nothing, by reason.",
        by=("reason", sorted(STALL_REASONS)),
    )
    dirty_blocks: int = gauge("agent_dirty_blocks", "Blocks of 4 KiB that the kernel marked and that are not durable.")
    dirty_bytes: int = gauge("agent_dirty_bytes", "Bytes in blocks that the kernel marked and that are not durable.")
    freezes: int = counter("agent_freezes_total", "Freezes of the file systems on tracked disks.")
    freeze_seconds_last: float = gauge("agent_freeze_last_seconds", "How long the last freeze lasted.")
    freeze_seconds_longest: float = gauge(
        "agent_freeze_longest_seconds", "How long the longest freeze lasted since the start."
    )
    direct_read_bytes: int = counter(
        "agent_direct_read_bytes_total", "Bytes read from tracked disks, past the page cache."
    )
    read_waited_seconds: float = counter(
        "agent_read_wait_seconds_total", "Seconds that reads waited for `ebpf.read_limit`."
    )
    tracker_events: int = counter("agent_tracker_events_total", "Changes of tracked disks that the kernel counted.")
    tracker_runs: int = counter(
        "agent_tracker_runs_total",
        "Runs of the tracker's programs, for all disks of the host; only with kernel.bpf_stats_enabled.",
    )
    tracker_run_seconds: float = counter(
        "agent_tracker_run_seconds_total", "Time of these runs; only with kernel.bpf_stats_enabled."
    )
    tracker_runs_missed: int = counter(
        "agent_tracker_runs_missed_total", "Runs that the kernel left out; copies did their work."
    )
    tracker_healed: int = counter(
        "agent_tracker_healed_total",
        "Times that changes were left out by all copies, found by the audit, and handed out again.",
    )
    tracker_passed_out: int = counter(*_PASSED, labels={"direction": "out"})
    tracker_passed_in: int = counter(*_PASSED, labels={"direction": "in"})
