"""Telling somebody that a run got here: a webhook, or a command that reads JSON."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any, ClassVar

from drengine.failover.steps.command import result_of, run_cancellable
from drengine.failover.steps.errors import CHECK_FAILED
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.texts import environment_of, launched_details, without_secrets


class NotifyStep:
    """Sends what the run is and how far it got. Told again after an interruption: better twice than never."""

    kind: ClassVar[StepKind] = StepKind.NOTIFY

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See StepHandler."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        told = json.dumps(_told(step, context)).encode()
        settings = step.settings["notify"]
        if settings.get("command"):
            argv = list(settings["command"])
            finished = await run_cancellable(argv, step.timeout_seconds, environment_of(step, context), told)
            return result_of(argv[0], finished, step.timeout_seconds)
        try:
            status = await asyncio.to_thread(_post, settings["url"], told, step.timeout_seconds)
        except (OSError, ValueError) as error:
            return StepResult(False, without_secrets(f"{settings['url']}: {error}"), CHECK_FAILED.id)
        return StepResult(True, without_secrets(f"{settings['url']} took it ({status})"))


def _told(step: PlannedStep, context: StepContext) -> dict[str, Any]:
    return {
        "run": context.run,
        "mode": context.mode.value,
        "runbook": context.runbook.name,
        "step": step.title,
        "sources": sorted(context.runbook.sources),
        "launched": {source: dict(details) for source, details in launched_details(context).items()},
    }


def _post(url: str, body: bytes, seconds: float) -> int:
    if not url.startswith(("http://", "https://")):
        raise ValueError("neither http nor https")
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=seconds) as answer:
        return int(answer.status)
