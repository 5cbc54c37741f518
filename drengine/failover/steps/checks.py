"""Checks: HTTP, TCP, SQL. Each asks again until it passes or its time is up, and says what it saw last."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from drengine.failover.steps.errors import CHECK_FAILED
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.texts import filled, launched_details, without_secrets

TRY_SECONDS_MAX = 10.0
BODY_BYTES_MAX = 1 << 20
SHOWN_CHARACTERS_MAX = 400


class Mismatch(Exception):
    """It answered, but not what was expected."""


class Check(ABC):
    """Asks until the answer fits."""

    kind: ClassVar[StepKind]

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """A check is about now: an earlier one proves nothing."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        clock = context.site.clock
        settings = _filled(step.settings[self.kind.value], launched_details(context))
        until = clock.monotonic() + step.timeout_seconds
        tries = 0
        while True:
            tries += 1
            left = until - clock.monotonic()
            try:
                seen = await asyncio.to_thread(self.ask, settings, max(0.05, min(left, TRY_SECONDS_MAX)))
                return StepResult(True, without_secrets(seen), data={"tries": tries})
            except Exception as error:  # noqa: BLE001 - whatever a driver or library raises is an answer that did not fit
                last = without_secrets(f"{_said(error)}")[:SHOWN_CHARACTERS_MAX]
            if clock.monotonic() + step.every_seconds >= until:
                return StepResult(
                    False, f"{self.kind.value} check: {last}", CHECK_FAILED.id, data={"tries": tries}, output=last
                )
            context.say(f"{step.title}: {last}")
            await clock.sleep(step.every_seconds)

    @abstractmethod
    def ask(self, settings: Mapping[str, Any], seconds: float) -> str:
        """Ask once; what was seen. Raises whatever says that it did not pass."""


class HttpStep(Check):
    """An HTTP answer with the expected status and text. Redirects are followed; proxies of the environment are not."""

    kind: ClassVar[StepKind] = StepKind.HTTP

    def ask(self, settings: Mapping[str, Any], seconds: float) -> str:
        """See Check."""
        url, expected = settings["url"], settings.get("status", 200)
        if not url.startswith(("http://", "https://")):
            raise Mismatch(f"{url} is neither http nor https")
        request = urllib.request.Request(url, headers=dict(settings.get("headers", {})))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=seconds) as answer:
                status, body = answer.status, answer.read(BODY_BYTES_MAX)
        except urllib.error.HTTPError as error:
            with error:
                status, body = error.code, error.read(BODY_BYTES_MAX)
        if status != expected:
            raise Mismatch(f"{url} answered {status}, not {expected}")
        wanted = settings.get("contains", "")
        if wanted.encode() not in body:
            raise Mismatch(f"{url} answered {status} without {wanted!r}: {body[:200].decode(errors='replace')!r}")
        return f"{url} answered {status}"


class TcpStep(Check):
    """Something accepts a connection."""

    kind: ClassVar[StepKind] = StepKind.TCP

    def ask(self, settings: Mapping[str, Any], seconds: float) -> str:
        """See Check."""
        with socket.create_connection((settings["host"], int(settings["port"])), timeout=seconds):
            return f"{settings['host']}:{settings['port']} accepts connections"


class SqlStep(Check):
    """A query on PostgreSQL or SQLite (`sqlite:///path`) with the expected first value."""

    kind: ClassVar[StepKind] = StepKind.SQL

    def ask(self, settings: Mapping[str, Any], seconds: float) -> str:
        """See Check."""
        from sqlalchemy import create_engine, text  # noqa: PLC0415 - only runbooks with SQL checks pay for it
        from sqlalchemy.pool import NullPool  # noqa: PLC0415

        url = settings["dsn"].replace("postgresql://", "postgresql+psycopg://", 1)
        limits = {"connect_timeout": max(1, int(seconds))} if url.startswith("postgresql") else {}
        engine = create_engine(url, poolclass=NullPool, connect_args=limits)
        with engine.connect() as connection:
            row = connection.execute(text(settings["query"])).first()
        if row is None:
            raise Mismatch("the query gave no row")
        value, expected = str(row[0]), settings.get("expect", "")
        if expected and value != expected:
            raise Mismatch(f"the query gave {value!r}, not {expected!r}")
        return f"the query gave {value!r}"


def _filled(value: Any, details: Mapping[str, Mapping[str, Any]]) -> Any:
    if isinstance(value, str):
        return filled(value, details)
    if isinstance(value, Mapping):
        return {key: _filled(each, details) for key, each in value.items()}
    return value


def _said(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__
