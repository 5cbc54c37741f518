"""The REST API: the same questions and orders as the commands, with the same answers and ids of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as PathPart
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from drengine import __version__
from drengine.console import answers as give
from drengine.console.errors import BAD_REQUEST
from drengine.console.guard import OPERATOR_HEADER, Guard, operator_of, problem
from drengine.console.render import (
    branch_answer,
    entry_answer,
    party_answer,
    plan_answer,
    point_answer,
    request_answer,
    run_answer,
    run_detail,
    runbook_answer,
    validation,
)
from drengine.failover import requests as asks
from drengine.failover.daemon import Orchestrator
from drengine.failover.errors import BAD_APPROVAL, RUN_STATE, WOULD_LOSE
from drengine.failover.preview import losses, preview
from drengine.failover.registry.errors import LEASE_HELD, LEASE_LOST, REGISTRY_UNAVAILABLE, RUN_ACTIVE, UNKNOWN_RUN
from drengine.failover.report.collect import report_of
from drengine.failover.report.keep import kept_reports, read_kept, summary
from drengine.failover.report.page import report_page
from drengine.failover.report.values import report_json
from drengine.failover.run import RunRecord
from drengine.failover.runbook.errors import BAD_RUNBOOK, UNKNOWN_RUNBOOK
from drengine.failover.runbook.findings import Finding, Place
from drengine.failover.runbook.reader import Examined, examine
from drengine.failover.runbook.values import Mode
from drengine.failover.session import Session
from drengine.model.errors import BAD_NAME, BAD_POINT, DrengineError
from drengine.model.points import PointSelector
from drengine.store.errors import UNKNOWN_POINT, UNKNOWN_SOURCE

PREFIX = "/api/v1"
STATUS = {
    kind.id: status
    for status, kinds in (
        (404, (UNKNOWN_RUN, UNKNOWN_RUNBOOK, UNKNOWN_SOURCE, UNKNOWN_POINT)),
        (409, (RUN_ACTIVE, RUN_STATE, LEASE_HELD, LEASE_LOST, WOULD_LOSE)),
        (422, (BAD_RUNBOOK, BAD_APPROVAL, BAD_NAME, BAD_POINT, BAD_REQUEST)),
        (503, (REGISTRY_UNAVAILABLE,)),
    )
    for kind in kinds
}
"""HTTP status of failures; others are 500."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": give.Problem, "description": text}
    for status, text in (
        (403, "Not from this host, or by nobody."),
        (404, "There is no such thing."),
        (409, "Not in this state."),
        (413, "Too large."),
        (422, "Not right as it was asked."),
        (500, "It failed; the message says why."),
        (503, "The registry can't be reached."),
    )
}
T = TypeVar("T")
Operator = Annotated[
    str, Header(alias=OPERATOR_HEADER, min_length=1, max_length=800, description="Who asks; kept with what is asked.")
]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most, newest first.")]
After = Annotated[int, Query(ge=0, le=2**31 - 1, description="Only those behind this number.")]


def make_app(orchestrator: Orchestrator) -> FastAPI:
    """The application of an orchestrator. Its loop is the one in which this is served."""
    app = FastAPI(
        title="drengine",
        version=__version__,
        description="Drills, failovers and the way home. Times are nanoseconds since the epoch.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.orchestrator = orchestrator
    app.include_router(router, prefix=PREFIX)
    app.add_middleware(Guard)
    app.add_exception_handler(DrengineError, _refused)
    app.add_exception_handler(RequestValidationError, _misunderstood)
    app.add_exception_handler(HTTPException, _not_there)
    return app


def _orchestrator(request: Request) -> Orchestrator:
    orchestrator: Orchestrator = request.app.state.orchestrator
    return orchestrator


def _session(request: Request) -> Session:
    return _orchestrator(request).session


def _who(operator: Operator) -> str:
    return operator_of(operator)


AnOrchestrator = Annotated[Orchestrator, Depends(_orchestrator)]
ASession = Annotated[Session, Depends(_session)]
Who = Annotated[str, Depends(_who)]
router = APIRouter(responses=REFUSALS)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, DrengineError)
    status = STATUS.get(error.kind.id, 500)
    return _problem(status, error.kind.id, error.message, error.hint)


async def _misunderstood(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(each)[:60] for each in first["loc"][:6])
    return _problem(422, BAD_REQUEST.id, f"{place}: {first['msg']}"[:400], BAD_REQUEST.hint)


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, BAD_REQUEST.id, str(error.detail)[:400], BAD_REQUEST.hint, error.headers)


def _problem(status: int, id: str, message: str, hint: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(problem(id, message, hint), status, dict(headers or {}), "application/json")


# ---- runs ----------------------------------------------------------------------------------------------------------


@router.get("/health")
async def health(session: ASession) -> give.Health:
    """Whether the orchestrator answers."""
    return give.Health(version=__version__, store=str(session.config.store))


@router.get("/runs")
async def list_runs(
    session: ASession,
    mode: Annotated[Mode | None, Query()] = None,
    runbook: Annotated[str | None, Query(pattern=give.NAME_PATTERN)] = None,
    unfinished: Annotated[bool, Query(description="Only those that hold their sources.")] = False,
    limit: Limit = 100,
) -> list[give.RunAnswer]:
    """List runs, newest first."""
    registry = session.registry
    found = await _off(lambda: registry.runs(mode=mode, runbook=runbook, unfinished=unfinished, limit=limit))
    return [run_answer(each) for each in found]


@router.post("/runs", status_code=201)
async def start_run(orchestrator: AnOrchestrator, body: give.StartRun, who: Who) -> give.RunAnswer:
    """Begin a drill, failover, migration, reprotect or failback; it is carried out by this orchestrator."""
    session = orchestrator.session

    def create() -> RunRecord:
        stored = session.registry.runbook(body.runbook)
        book, _ = session.read_runbook(body.runbook)
        given = {"point": body.point, "force": body.force, "hold": body.hold}
        given |= {"discard_divergent": body.discard_divergent}
        options = {key: value for key, value in given.items() if value}
        return session.create_run(body.mode, book, stored.version, who, options)

    run = await _off(create)
    orchestrator.carry_out(run)
    return run_answer(run)


@router.get("/runs/{run}")
async def show_run(session: ASession, run: give.RunId) -> give.RunDetail:
    """Show a run: its state, what was measured, each step with its result."""
    return await _off(lambda: run_detail(session.registry.run(run), session.snapshot(run)))


@router.get("/runs/{run}/journal")
async def show_journal(session: ASession, run: give.RunId, after: After = 0) -> list[give.EntryAnswer]:
    """Give a run's journal, in order."""

    def read() -> list[give.EntryAnswer]:
        session.registry.run(run)
        return [entry_answer(each) for each in session.registry.entries(run, after)]

    return await _off(read)


@router.get("/runs/{run}/requests")
async def show_requests(session: ASession, run: give.RunId, after: After = 0) -> list[give.RequestAnswer]:
    """Give what people asked of a run, in order."""

    def read() -> list[give.RequestAnswer]:
        session.registry.run(run)
        return [request_answer(each) for each in session.registry.requests(run, after)]

    return await _off(read)


@router.post("/runs/{run}/approve")
async def approve(session: ASession, run: give.RunId, body: give.Approve, who: Who) -> give.RequestAnswer:
    """Approve a step that waits for it."""
    made, _ = await _off(lambda: asks.approve(session, run, who, step=body.step, note=body.note))
    return request_answer(made)


@router.post("/runs/{run}/abort")
async def abort(orchestrator: AnOrchestrator, run: give.RunId, body: give.Ask, who: Who) -> give.RunAnswer:
    """End a run where it is; a drill is cleaned up."""
    return await _asked(orchestrator, lambda session: asks.ask_abort(session, run, who, body.note))


@router.post("/runs/{run}/resume")
async def resume(orchestrator: AnOrchestrator, run: give.RunId, body: give.Resume, who: Who) -> give.RunAnswer:
    """Go on with a run that stopped or was left."""
    return await _asked(orchestrator, lambda session: asks.ask_resume(session, run, who, force=body.force))


@router.post("/runs/{run}/rollback")
async def rollback(orchestrator: AnOrchestrator, run: give.RunId, body: give.Rollback, who: Who) -> give.RunAnswer:
    """Undo a failover; refused with what would be lost, unless `yes`."""

    def ask(session: Session) -> RunRecord:
        lost = losses(session, session.registry.run(run))
        if lost and not body.yes:
            told = "; ".join(f"{each.source}: {each.records} changes on the recovered side" for each in lost)
            raise DrengineError(WOULD_LOSE, told)
        return asks.ask_rollback(session, run, who, body.note)

    return await _asked(orchestrator, ask)


@router.post("/runs/{run}/commit")
async def commit(session: ASession, run: give.RunId, body: give.Ask, who: Who) -> give.RunAnswer:
    """Accept a failover: it can't be rolled back any more."""
    return run_answer(await _off(lambda: asks.commit(session, run, who, body.note)))


async def _asked(orchestrator: Orchestrator, ask: Callable[[Session], RunRecord]) -> give.RunAnswer:
    """Note what was asked; whoever executes the run heeds it, and if nobody does, this orchestrator goes on with it."""
    run = await _off(lambda: ask(orchestrator.session))
    orchestrator.carry_out(run)
    return run_answer(await _off(lambda: orchestrator.session.registry.run(run.id)))


# ---- runbooks ------------------------------------------------------------------------------------------------------


@router.get("/runbooks")
async def list_runbooks(session: ASession) -> list[give.RunbookAnswer]:
    """List the runbooks that are kept, each in its current version."""
    found = await _off(session.registry.runbooks)
    return [
        give.RunbookAnswer(name=each.name, version=each.version, at_ns=each.at_ns, text=each.text) for each in found
    ]


@router.post("/runbooks/validate")
async def validate(session: ASession, body: give.RunbookText, who: Who) -> give.Validation:
    """Say what is wrong with a runbook; nothing is kept."""
    examined = await _off(lambda: _examined(session, body.text))
    return give.Validation(valid=examined.runbook is not None, findings=validation(examined))


@router.get("/runbooks/{name}")
async def show_runbook(
    session: ASession, name: give.RunbookName, version: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None
) -> give.RunbookAnswer:
    """Give a runbook, in its current version or another."""
    found = await _off(lambda: session.registry.runbook(name, version))
    return runbook_answer(found)


@router.put("/runbooks/{name}")
async def save_runbook(session: ASession, name: give.RunbookName, body: give.RunbookText, who: Who) -> give.Saved:
    """Keep a runbook; refused when it could not be run."""
    examined = await _off(lambda: _examined(session, body.text))
    if examined.runbook is None:
        first = next(each for each in examined.findings if not each.warning)
        raise DrengineError(BAD_RUNBOOK, first.told(name), hint=first.hint)
    if examined.runbook.name != name:
        told = f"the runbook's own name is {examined.runbook.name!r}, not {name!r}"
        raise DrengineError(BAD_RUNBOOK, told, hint="Put it under its own name.")
    version = await _off(lambda: session.registry.save_runbook(name, body.text))
    return give.Saved(valid=True, findings=validation(examined), name=name, version=version)


@router.get("/runbooks/{name}/plan")
async def show_plan(
    session: ASession,
    name: give.RunbookName,
    mode: Annotated[Mode, Query()] = Mode.DRILL,
    point: Annotated[str, Query(max_length=300)] = "",
) -> give.PlanAnswer:
    """Say what a run would do now, step by step; nothing is touched."""

    def look() -> give.PlanAnswer:
        book, _ = session.read_runbook(name)
        return plan_answer(mode, name, preview(session, mode, book, {"point": point} if point else {}))

    return await _off(look)


def _examined(session: Session, text: str) -> Examined:
    names = [each.name for each in session.site.store.sources()]
    examined = examine(text, drivers=session.site.drivers)
    if examined.runbook is None:
        return examined
    missing = [
        Finding(
            "not-registered",
            Place(1, 1),
            f"sources.{name}",
            f"no source {name!r} replicates here yet",
            "Protect it first.",
            warning=True,
        )
        for name in examined.runbook.sources
        if name not in names
    ]
    return Examined(examined.runbook, (*examined.findings, *missing))


# ---- what there is -------------------------------------------------------------------------------------------------


@router.get("/parties")
async def list_parties(session: ASession) -> list[give.PartyAnswer]:
    """List agents, recovery hosts and targets, as they were last heard of."""
    return [party_answer(each) for each in await _off(session.registry.parties)]


@router.get("/sources")
async def list_sources(session: ASession) -> list[give.SourceAnswer]:
    """List the sources in the store, with who may write them."""
    found = await _off(session.site.store.sources)
    return [
        give.SourceAnswer(name=each.name, generation=each.generation, active_branch=each.active_branch)
        for each in found
    ]


@router.get("/sources/{source}/points")
async def list_points(
    session: ASession,
    source: give.SourceName,
    branch: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    limit: Limit = 100,
) -> list[give.PointAnswer]:
    """List a source's recovery points, newest first."""
    found = await _off(lambda: session.site.store.points(source, branch=branch))
    return [point_answer(each) for each in found[: -limit - 1 : -1]]


@router.get("/sources/{source}/points/{point}")
async def show_point(
    session: ASession, source: give.SourceName, point: Annotated[str, PathPart(max_length=300)]
) -> give.PointAnswer:
    """Give one point: by its id, `latest`, a time (the newest at or before it), or its label."""
    return point_answer(await _off(lambda: session.site.store.find_point(source, PointSelector.parse(point))))


@router.get("/sources/{source}/branches")
async def list_branches(session: ASession, source: give.SourceName) -> list[give.BranchAnswer]:
    """List a source's branches."""

    def read() -> list[give.BranchAnswer]:
        session.site.store.source(source)
        return [branch_answer(each) for each in session.site.store.branches(source)]

    return await _off(read)


# ---- reports -------------------------------------------------------------------------------------------------------


@router.get("/reports")
async def list_reports(session: ASession, limit: Limit = 100) -> list[give.ReportAnswer]:
    """List the reports that are kept, newest first."""
    directory, found = session.config.reports, []
    for run in (await _off(lambda: kept_reports(directory)))[:limit]:
        try:
            report = await summary(directory, run)
        except DrengineError:  # damaged, or removed meanwhile: the others are listed all the same
            continue
        told = [each.text for each in report.warnings]
        found.append(
            give.ReportAnswer(run=run, verdict=report.verdict, good=report.good, warnings=told, made_ns=report.made_ns)
        )
    return found


@router.get("/reports/{run}", response_model=dict[str, Any])
async def show_report(session: ASession, run: give.RunId) -> Response:
    """Give a run's report as values, as the run stands now."""
    return Response(await _report(session, run, "json"), media_type="application/json")


@router.get("/reports/{run}/page", responses={200: {"content": {"text/html": {}}}}, response_class=Response)
async def show_report_page(session: ASession, run: give.RunId) -> Response:
    """Give a run's report as one page, as the run stands now."""
    policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
    return Response(await _report(session, run, "html"), media_type="text/html", headers=policy)


async def _report(session: Session, run: str, form: str) -> bytes:
    """As the run stands now; where the registry can't tell any more, as it was kept."""
    try:
        report = await _off(lambda: report_of(session.registry, run, session.site.clock.now_ns()))
    except DrengineError:
        if run not in await _off(lambda: kept_reports(session.config.reports)):
            raise
        return await read_kept(session.config.reports, run, form)
    return report_json(report) if form == "json" else report_page(report).encode()


def _off(work: Callable[[], T]) -> Awaitable[T]:
    """Registry and store are asked in threads: the loop carries runs out meanwhile."""
    return asyncio.to_thread(work)
