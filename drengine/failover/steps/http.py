"""Checking an HTTP answer."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from drengine.control.probes import HttpProbe, Seen, ask_http
from drengine.failover.runbook.sense import Sense
from drengine.failover.runbook.values import WebAddress
from drengine.failover.steps.checks import Check
from drengine.transport.web import Deadline

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)


class HttpCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Passes when the answer fits."""

    url: WebAddress
    """http or https; ${SOURCE.KEY} stands for what the source's launch told."""
    status: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 100, "maximum": 599})] = 200
    """Expected status."""
    contains: str = ""
    """Text that the answer has to contain."""
    headers: dict[str, str] = {}
    """Sent with the request."""


class HttpStep(Check[HttpCheck]):
    """An HTTP answer with the expected status and text. Redirects are followed, without `headers` where they lead to
    another server; proxies of the environment are not used.
    """

    name = "http"
    help = "Check an HTTP answer."
    goes_inside = True

    def title(self, source: str, settings: HttpCheck) -> str:
        return f"check {settings.url}"

    def examine(self, settings: HttpCheck, sense: Sense) -> None:
        sense.url(settings.url, "url")
        if not 100 <= settings.status <= 599:
            sense.error("bad-value", f"{settings.status} is no HTTP status", "100 to 599 are.", "status")
        for name, value in settings.headers.items():
            if not _HEADER.fullmatch(name) or "\n" in value or "\r" in value:
                sense.error("bad-value", "it can't be sent as a header", "NAME: one line.", "headers", name)
        sense.references([settings.contains, *settings.headers.values()])

    def ask(self, settings: HttpCheck, deadline: Deadline) -> Seen:
        return ask_http(msgspec.convert(msgspec.to_builtins(settings), HttpProbe), deadline)


HTTP = HttpStep()
