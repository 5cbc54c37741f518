"""The failures of orders about the fleet. Exit codes 213 to 219, 223."""

from __future__ import annotations

from drengine.model.errors import error_kind

RETIRE_REFUSED = error_kind(
    "retire-refused",
    213,
    "The source is not retired as things stand.",
    "The message says why. Stop its agent first; or --force if it shall end all the same.",
)
TARGET_SILENT = error_kind(
    "target-silent",
    214,
    "The target does not answer where its exports are.",
    "Look whether `drengine target run` runs there, and at `export` in the orchestrator's file.",
    retryable=True,
)
UPGRADE_IMPOSSIBLE = error_kind(
    "upgrade-impossible",
    215,
    "The fleet can't be upgraded like this.",
    "The message says why. `drengine ca serve --agent FILE` hands the new agent out.",
)
DOWNGRADE = error_kind(
    "downgrade-unconfirmed",
    216,
    "Agents would get an older version than they have.",
    "If that is meant, add --yes.",
)
ROLLOUT_STOPPED = error_kind(
    "rollout-stopped",
    217,
    "The upgrade stopped before all rings had it.",
    "Look at the agent that is named, on its host; then `drengine fleet upgrade --resume` goes on.",
)
ROLLOUT_ACTIVE = error_kind(
    "rollout-active",
    218,
    "An upgrade of the fleet is under way.",
    "`drengine fleet upgrade --status` shows it, --stop ends it where it is.",
    retryable=True,
)
UNKNOWN_ROLLOUT = error_kind(
    "unknown-rollout",
    219,
    "There is no such upgrade of the fleet.",
    "`drengine fleet upgrade --to VERSION` begins one.",
)
ROLLOUT_UNUSABLE = error_kind(
    "rollout-unusable",
    223,
    "What is kept of an upgrade can't be read or written.",
    "The message names the file, in the orchestrator's state directory; its disk may be full.",
)
