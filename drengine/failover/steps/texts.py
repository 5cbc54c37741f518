"""Texts of a runbook when they are used: references filled in, secrets left out of what people read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from drengine.failover.steps.errors import BAD_REFERENCE
from drengine.failover.steps.launched import Launched
from drengine.failover.steps.step import PlannedStep, StepContext
from drengine.model.errors import DrengineError

_REFERENCE = re.compile(r"\$\{([a-z0-9][a-z0-9._-]*)\.([a-z0-9_]+)\}", re.ASCII)
_USERINFO = re.compile(r"(\w[\w+.-]*://[^\s:/@]*):[^\s@/]*@")
_PASSWORD = re.compile(
    r"((?:password|passwd|secret|token|authorization)\s*[=:]\s*)"
    r"(?:(?:bearer|basic|digest)\s+)?"
    r"('[^']*'|\S+)",
    re.I,
)

Details = Mapping[str, Mapping[str, Any]]


def launched_details(context: StepContext) -> Details:
    """What launch drivers told about the workloads of this run, by source."""
    return {
        id.removeprefix("launch:"): result.details
        for id, result in context.results.items()
        if id.startswith("launch:") and isinstance(result, Launched)
    }


def filled(text: str, details: Details) -> str:
    """`text` with each ``${SOURCE.KEY}`` replaced by that detail. Everything else stands for itself: no shell.

    Raises:
        DrengineError: BAD_REFERENCE.
    """

    def replace(match: re.Match[str]) -> str:
        known = details.get(match[1], {})
        if match[2] not in known:
            there = ", ".join(sorted(f"{source}.{key}" for source in details for key in details[source])) or "none yet"
            raise DrengineError(BAD_REFERENCE, f"{match[0]} is not known here; known are: {there}")
        return str(known[match[2]])

    return _REFERENCE.sub(replace, text)


def without_secrets(text: str) -> str:
    """`text` fit for logs and reports: passwords of URLs and of `password=...` pairs are masked (fault 59)."""
    return _PASSWORD.sub(r"\1***", _USERINFO.sub(r"\1:***@", text))


def environment_of(step: PlannedStep[Any], context: StepContext) -> dict[str, str]:
    """What a runbook's command learns about its run."""
    found = {
        "DRENGINE_RUN": context.run,
        "DRENGINE_MODE": context.mode.value,
        "DRENGINE_RUNBOOK": context.runbook.name,
        "DRENGINE_STEP": step.id,
        "DRENGINE_WAVE": step.wave,
        "DRENGINE_SOURCE": step.source,
        "DRENGINE_ATTEMPT": str(context.attempt),
    }
    for source, details in launched_details(context).items():
        prefix = "DRENGINE_" + re.sub(r"[^A-Z0-9]", "_", source.upper())
        found |= {f"{prefix}_{key.upper()}": str(value) for key, value in details.items()}
    return found
