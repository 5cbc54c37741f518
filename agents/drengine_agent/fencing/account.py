"""Why a source is not in charge, in words, and how that ends: what its status tells whoever finds it so."""

from __future__ import annotations

from collections.abc import Mapping

from drengine.terminal import human_time
from drengine_agent.fencing.fence import FenceRecord, Standing

_FAILED_OVER = "if it was failed over, `drengine failback RUNBOOK` brings it home"
_BY_HAND = "`drengine-agent release`, once nobody else is in charge"
_WHY: Mapping[str, tuple[str, str]] = {
    "operator": ("somebody fenced it on this host", _BY_HAND),
    "stale": (
        "the target has a newer generation: it was failed over, or what is noted here is of the past",
        f"{_FAILED_OVER}; if it is in charge, and was only restored from a point of the past: `drengine-agent release "
        "--generation N`, with the generation of `drengine status`",
    ),
    "lease": ("the broker was silent for longer than `control.lease`", f"{_FAILED_OVER}; else {_BY_HAND}"),
    "moved": (
        "the source lives on another host now, for good",
        "it does not: give this host another name (docs/failback.md#home-to-new-hardware)",
    ),
    "spare": (
        "this host stands ready to become the home of a source (`spare` in its agent's file)",
        "`drengine failback RUNBOOK --onto HOST`, when a source needs a new home",
    ),
    "settled": (
        "this host becomes the home of a source, and its content is missing",
        "`drengine failback RUNBOOK --onto HOST` brings it",
    ),
    "replaced": ("a disk was replaced, and its content is missing", "`drengine failback RUNBOOK` brings it home"),
}
"""By the reason of the record: what happened, and how the source is released."""


def why_it_stands(record: FenceRecord) -> str:
    """Who or what fenced or quiesced it, and when; empty for a source that is in charge."""
    if record.standing is Standing.IN_CHARGE:
        return ""
    why = _WHY.get(record.reason, (record.reason, ""))[0]
    if record.run:
        did = "stopped it for a planned switch" if record.standing is Standing.QUIESCED else "fenced it"
        why = f"run {record.run}{f', begun by {record.by},' if record.by else ''} {did}"
    return f"{why}, at {human_time(record.since_ns)[:19]}Z" if record.since_ns else why


def how_it_ends(record: FenceRecord) -> str:
    """What somebody can type so that the source serves and ships again; empty for one that is in charge."""
    if record.standing is Standing.IN_CHARGE:
        return ""
    if record.reversing:
        return "the reversal has to end first: `drengine failback RUNBOOK`, or go on with the run that began it"
    if record.run:
        undo = f"`drengine rollback {record.run}` where that run promoted nothing, or can be undone"
        return f"{undo}; {_FAILED_OVER}; by hand: {_BY_HAND}"
    return _WHY.get(record.reason, ("", _BY_HAND))[1]
