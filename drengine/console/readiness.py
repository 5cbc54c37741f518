"""How ready the runbooks are, by REST and as a page."""

from __future__ import annotations

from html import escape
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from drengine.failover.daemon import Orchestrator
from drengine.failover.readiness import Checked, Readiness
from drengine.failover.report.style import STYLE
from drengine.terminal import human_time

router = APIRouter()


def _newest(request: Request) -> list[Readiness]:
    orchestrator: Orchestrator = request.app.state.orchestrator
    return sorted(orchestrator.watch.newest.values(), key=lambda each: (each.ready, each.runbook))


Newest = Annotated[list[Readiness], Depends(_newest)]


@router.get("/ready")
async def list_readiness(newest: Newest) -> list[Readiness]:
    """Say how ready each runbook was when the orchestrator looked last; what is not ready comes first."""
    return newest


@router.get("/ready/page", responses={200: {"content": {"text/html": {}}}}, response_class=Response)
async def show_readiness_page(newest: Newest) -> Response:
    """Give the same as one page."""
    policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
    return Response(readiness_page(newest), media_type="text/html", headers=policy)


def readiness_page(found: list[Readiness]) -> str:
    """The page; everything from outside is escaped."""
    body = "".join(map(_section, found)) or "<p>No runbook was looked at yet.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Readiness</title><style>{STYLE}</style></head>"
        f'<body><main><p class="kind">Before it is needed</p><h1>Readiness</h1>{body}</main></body></html>\n'
    )


def _section(found: Readiness) -> str:
    look, word = ("good", "READY") if found.ready else ("bad", "NOT READY")
    if found.ready and any(not each.ok for each in found.checks):
        look, word = "open", "READY WITH WARNINGS"
    rows = "".join(map(_row, found.checks))
    return (
        f'<section><h2>{escape(found.runbook)}: {found.mode.value} <span class="badge {look}">{word}</span></h2>'
        f'<p class="how">looked at {human_time(found.at_ns)}, in {found.seconds:.1f} s</p><div class="wide">'
        f"<table><tr><th>check<th><th>found<th>what to do</tr>{rows}</table></div></section>"
    )


def _row(each: Checked) -> str:
    look = "good" if each.ok else "bad" if each.blocks else "open"
    cells = (escape(each.id), f'<b class="{look}">{each.word}</b>', escape(each.message), escape(each.hint))
    return f"<tr>{''.join(f'<td>{cell}' for cell in cells)}</tr>"
