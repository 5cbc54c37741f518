"""Failures of the agent that a person can meet. Exit codes 80 to 89, 166, 167; the trackers' own are 70 to 79."""

from __future__ import annotations

import shlex

from drengine.model.errors import error_kind
from drengine.model.homes import NEW_HOME_UNFIT
from drengine.model.points import VolumeGeometry


def adoption_hint(known: VolumeGeometry) -> str:
    """What to do where the target knows a volume as another disk than the one that is here."""
    known_as = shlex.quote(known.identity)
    return f"If this disk replaces that one: `drengine-agent adopt --volume {known.name} --known-as {known_as}`."


NOT_AGREED = error_kind(
    "not-agreed",
    NEW_HOME_UNFIT,
    "Nobody has agreed that these disks are overwritten; nothing was done.",
    "Look once more which disks they are, then say --yes.",
)
UPGRADE_REFUSED = error_kind(
    "upgrade-refused",
    224,
    "The agent does not replace itself by what an orchestrator ordered.",
    "The message says why; nothing was changed. On that host, `drengine-agent upgrade` from the new file does it.",
)
AGENT_RUNNING = error_kind(
    "agent-running",
    82,
    "Another agent is running with this state directory.",
    "Stop it first (`drengine-agent status` shows its pid), or give this one a state directory of its own.",
)
AGENT_NOT_RUNNING = error_kind(
    "agent-not-running",
    83,
    "No agent answers on the control socket.",
    "Start it with `drengine-agent run --config FILE`, or name its configuration with --config.",
    retryable=True,
)
COMMAND_REFUSED = error_kind(
    "agent-command-refused",
    84,
    "The agent can't do that now.",
    "`drengine-agent status` shows its state and the reason.",
    retryable=True,
)
STATE_DAMAGED = error_kind(
    "agent-state-damaged",
    85,
    "The agent's state directory can't be used.",
    "Check its permissions and free space; a missing or old state is safe to delete: the next run rescans.",
)
SESSION_REFUSED = error_kind(
    "session-refused",
    86,
    "The target refused the session.",
    "The target's message says why; its log says more.",
)
NOT_A_REPLACEMENT = error_kind(
    "not-a-replacement",
    53,
    "There is no other disk to be adopted for this volume.",
    "`drengine-agent check-config` names the volumes; a disk that was recognised needs no adoption.",
)
REVERSE_REFUSED = error_kind(
    "reverse-refused",
    119,
    "The source's disks can't be read whole or overwritten now.",
    "The message says what is in the way; docs/failback.md tells the way home. Nothing is served meanwhile.",
)
CONFIG_EXISTS = error_kind(
    "config-exists",
    87,
    "The configuration file is there already.",
    "Edit it, or name another file with --config.",
)
STATE_ON_VOLUME = error_kind(
    "state-on-volume",
    78,
    "The agent's state directory lies on a volume that it is to track.",
    "Choose another `state_directory`: another disk, or /run/drengine-agent; losing it costs nothing but a comparison.",
)
SESSION_MISSING = error_kind(
    "session-missing",
    166,
    "The agent has no session with its target.",
    "Make the target reachable from here, or correct --target and --data-network; then run the same command again.",
    retryable=True,
)
BROKER_REFUSED = error_kind(
    "broker-refused",
    167,
    "The broker answers, and does not let this agent in.",
    "Its log says why: it must know this host's name and CA. Or install without --broker.",
)
