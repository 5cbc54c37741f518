"""Telling somebody that a run got here: a webhook, or a command that reads JSON."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from drengine.failover.needs import Program, programs
from drengine.failover.runbook.sense import Sense
from drengine.failover.runbook.values import WebAddress
from drengine.failover.steps.errors import CHECK_FAILED
from drengine.failover.steps.programs import Ended, run_program
from drengine.failover.steps.step import ActionKind, PlannedStep, StepContext, StepResult
from drengine.failover.steps.texts import filled, launched_details
from drengine.redaction import without_secrets
from drengine.transport.web import Deadline, post


class Notification(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tell somebody: a webhook that gets the run as JSON, or a command that gets it on standard input."""

    url: WebAddress = ""
    """Webhook, http or https."""
    command: list[str] = []
    """Program and arguments; no shell."""


class NotifyStep(ActionKind[Notification, Ended]):
    """Sends what the run is and how far it got. Sent again after an interruption: better twice than never."""

    name = "notify"
    acts = False
    help = "Tell somebody."
    by_hand = True
    schema: ClassVar[Mapping[str, Any]] = {"oneOf": [{"required": ["url"]}, {"required": ["command"]}]}

    def title(self, source: str, settings: Notification) -> str:
        return "notify"

    def examine(self, settings: Notification, sense: Sense) -> None:
        if bool(settings.url) == bool(settings.command):
            sense.error("one-action", "it needs either url or command", "Give one of them.")
        if settings.url:
            sense.url(settings.url, "url")
        if settings.command:
            sense.argv(settings.command, "command")

    def needs(self, settings: Notification) -> tuple[Program, ...]:
        return programs(settings.command)

    async def act(self, step: PlannedStep[Notification], context: StepContext) -> StepResult[Ended]:
        message = json.dumps(_message(step, context)).encode()
        settings = step.settings
        if settings.command:
            return await run_program(settings.command, step, context, given=message)
        try:
            status = await asyncio.to_thread(_post, filled(settings.url, {}), message, step.timeout_seconds)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return StepResult(False, without_secrets(f"{settings.url}: {error}"), CHECK_FAILED.id)
        return StepResult(True, without_secrets(f"{settings.url} took it ({status})"))


def _message(step: PlannedStep[Notification], context: StepContext) -> dict[str, Any]:
    return {
        "run": context.run,
        "mode": context.mode.value,
        "runbook": context.runbook.name,
        "step": step.title,
        "sources": sorted(context.runbook.sources),
        "launched": {source: dict(details) for source, details in launched_details(context).items()},
    }


def _post(url: str, body: bytes, seconds: float) -> int:
    deadline = Deadline(seconds)
    ending = threading.Timer(seconds, deadline.cut)
    ending.daemon = True
    ending.start()
    try:
        status = post(url, {"Content-Type": "application/json"}, body, deadline).status
    finally:
        ending.cancel()
    if not 200 <= status < 300:
        raise ValueError(f"it answered {status}")
    return status


NOTIFY = NotifyStep()
