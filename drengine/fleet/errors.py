"""The failures of orders about the fleet. Exit codes 213 to 217."""

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
