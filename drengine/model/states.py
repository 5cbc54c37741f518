"""Replication states and reasons, the same in code, metrics and consoles."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ReplicationState(enum.StrEnum):
    """The nine states of a source's replication."""

    STOPPED = "STOPPED"
    INITIATING = "INITIATING"
    INITIAL_SYNC = "INITIAL_SYNC"
    BACKLOG = "BACKLOG"
    CONTINUOUS = "CONTINUOUS"
    PAUSED = "PAUSED"
    RESCAN = "RESCAN"
    STALLED = "STALLED"
    DISCONNECTED = "DISCONNECTED"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a state is not healthy: a bounded code (a metric label) and what to do."""

    code: str
    hint: str


REASONS: dict[str, Reason] = {
    reason.code: reason
    for reason in (
        Reason("none", ""),
        Reason("operator", "An operator asked for it: a pause ends with `resume`, a comparison by itself."),
        Reason("unclean-stop", "The agent or host stopped without closing its tracking; differences are being found."),
        Reason("rebooted", "The host rebooted; differences are being found by a verified rescan."),
        Reason("journal-full", "Writes outran the network for longer than the journal holds; enlarge it or the link."),
        Reason("journal-damaged", "The journal failed its checks; differences are being found by a rescan."),
        Reason("index-lost", "The local hash index is missing or damaged; the target's hashes are being compared."),
        Reason("epoch-changed", "The target knows another tracking state; differences are being found."),
        Reason("geometry-changed", "A volume was resized; the new geometry is being synchronised."),
        Reason("untracked", "The volumes were not tracked until now; differences are being found."),
        Reason("tracking-lost", "Changes may have passed the tracker unseen; differences are being found by a rescan."),
        Reason("tracker-version", "The tracking state is of another version; differences are being found by a rescan."),
        Reason("passthrough", "A command that passes by block tracking wrote to a disk; see docs/ebpf.md."),
        Reason("volume-missing", "A volume's path does not open; attach it or remove it from the configuration."),
        Reason(
            "volume-replaced",
            "Another device is under the volume's path; attach the right one, or `drengine-agent adopt` it.",
        ),
        Reason("reversed", "The disks were made equal to the recovered side; a comparison proves it."),
        Reason("changed-outside", "A volume was written while the agent was stopped; a rescan finds the differences."),
        Reason("read-error", "The source's disk returns errors; no point is cut until the blocks can be read."),
        Reason("target-unreachable", "The target does not answer; check its address, service and network."),
        Reason("agent-unreachable", "The agent is silent; check the source, its service and the network."),
        Reason("target-refused", "The target refused this session; its message says why."),
        Reason(
            "source-elsewhere",
            "Another target holds the source and does not answer here; one takes it over when that one's lock is over.",
        ),
        Reason("target-full", "The target's store has no space; free some or shorten retention."),
        Reason("target-failed", "The target's store reported an I/O failure; look at its log."),
        Reason("target-away", "The target's store is not at its path; put it back or mount it there."),
        Reason("target-read-only", "The target's store cannot be written; remount it, or correct its owner."),
        Reason("target-exhausted", "The target is out of file descriptors or memory; raise its limits."),
        Reason(
            "fenced",
            "It serves and ships nothing until it is released; `drengine-agent status` says why, and what ends it.",
        ),
        Reason(
            "fence-unproved",
            "Whoever answers as the target says that this source was failed over, and can't prove to be it; see "
            "docs/security.md. If it is true, `drengine-agent fence`.",
        ),
        Reason("outside-data-network", "The target's address is outside the configured data networks."),
        Reason("plain-refused", "A target beyond loopback needs certificates; name them in `[tls]`."),
        Reason("tls-failed", "A certificate was refused or can't be used; the detail names the cause."),
        Reason("bandwidth-limit", "The configured bandwidth limit is below the rate of change."),
        Reason("no-cut", "The disks were never quiet, and `cuts.kinds` allows no freeze: set it to `auto`."),
        Reason("busy", "Changes come faster than they are shipped: more bandwidth, or raise `cuts.longest_freeze`."),
        Reason("freeze-refused", "The file systems can't be frozen for a cut; the agent's log names which and why."),
        Reason("freeze-too-long", "A freeze would last longer than `cuts.longest_freeze`: raise it if you can."),
        Reason("hook-failed", "A hook of an application cut failed; see the agent's log."),
        Reason("internal", "An unexpected failure; see the log and report it."),
    )
}
"""Every reason code. Label values are bounded by this table; an unknown code is a defect."""
