"""The REST API: the same questions and orders as the commands, with the same answers and ids of failures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi import Path as PathPart
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from drengine import __version__
from drengine.console import bodies as take
from drengine.console.errors import BAD_REQUEST
from drengine.console.fleet import router as fleet_router
from drengine.console.guard import Guard, problem
from drengine.console.places import PREFIX
from drengine.console.pools import LOOKS, PASSWORDS, off
from drengine.console.readiness import router as readiness_router
from drengine.failover import answers as give
from drengine.failover.daemon import Orchestrator
from drengine.failover.engine import Engine
from drengine.failover.errors import (
    APPROVAL_NEEDED,
    APPROVAL_STALE,
    BAD_APPROVAL,
    BAD_ONTO,
    RUN_STATE,
    SELF_APPROVAL,
    UNKNOWN_CHECK,
    WOULD_LOSE,
)
from drengine.failover.orders import Orders
from drengine.failover.readiness import Readiness
from drengine.failover.registry.errors import LEASE_HELD, LEASE_LOST, REGISTRY_UNAVAILABLE, RUN_ACTIVE, UNKNOWN_RUN
from drengine.failover.registry.values import StoredRunbook
from drengine.failover.report.collect import report_as
from drengine.failover.report.keep import Form, summaries
from drengine.failover.report.values import ReportSummary
from drengine.failover.run import JournalEntry, RunRecord
from drengine.failover.run import Request as Asked
from drengine.failover.runbook.errors import BAD_RUNBOOK, UNKNOWN_RUNBOOK
from drengine.failover.runbook.values import Mode
from drengine.fleet.errors import (
    DOWNGRADE,
    RETIRE_REFUSED,
    ROLLOUT_ACTIVE,
    ROLLOUT_UNUSABLE,
    UNKNOWN_ROLLOUT,
    UPGRADE_IMPOSSIBLE,
)
from drengine.model.errors import BAD_NAME, BAD_POINT, DrengineError
from drengine.model.points import PointSelector
from drengine.monitoring.discovery import SharingTarget, TargetGroup, target_groups
from drengine.people.errors import (
    ACCOUNTS_UNUSABLE,
    NOT_PERMITTED,
    NOT_SIGNED_IN,
    PROVIDER_UNUSABLE,
    SIGN_IN_FAILED,
    SIGN_IN_LIMIT,
)
from drengine.people.roles import Action, Person, permit
from drengine.policy.errors import BAD_POLICY, POLICY_UNUSABLE
from drengine.policy.kept import retired_sources
from drengine.store.answers import PointAnswer, point_answer
from drengine.store.errors import INVENTORY_UNKNOWN, UNKNOWN_POINT, UNKNOWN_SOURCE
from drengine.store.log.branches import BranchInfo
from drengine.store.store import SourceInfo
from drengine.store.targets import TargetState

STATUS = {
    kind.id: status
    for status, kinds in (
        (401, (NOT_SIGNED_IN, SIGN_IN_FAILED)),
        (403, (NOT_PERMITTED, SELF_APPROVAL, APPROVAL_NEEDED)),
        (404, (UNKNOWN_RUN, UNKNOWN_RUNBOOK, UNKNOWN_SOURCE, UNKNOWN_POINT, UNKNOWN_ROLLOUT, INVENTORY_UNKNOWN)),
        (
            409,
            (
                RUN_ACTIVE,
                RUN_STATE,
                LEASE_HELD,
                LEASE_LOST,
                WOULD_LOSE,
                APPROVAL_STALE,
                RETIRE_REFUSED,
                ROLLOUT_ACTIVE,
                DOWNGRADE,
                UPGRADE_IMPOSSIBLE,
            ),
        ),
        (422, (BAD_RUNBOOK, BAD_APPROVAL, BAD_NAME, BAD_POINT, BAD_POLICY, BAD_REQUEST, BAD_ONTO, UNKNOWN_CHECK)),
        (429, (SIGN_IN_LIMIT,)),
        (503, (REGISTRY_UNAVAILABLE, ACCOUNTS_UNUSABLE, POLICY_UNUSABLE, ROLLOUT_UNUSABLE, PROVIDER_UNUSABLE)),
    )
    for kind in kinds
}
"""HTTP status of failures; others are 500."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": take.Problem, "description": text}
    for status, text in (
        (401, "By nobody: there is no proof, or it counts no more."),
        (403, "By somebody who may not, or from a page of another host."),
        (404, "There is no such thing."),
        (409, "Not in this state."),
        (413, "Too large."),
        (422, "Not right as it was asked."),
        (429, "Too often."),
        (500, "It failed; the message says why."),
        (503, "The registry can't be reached."),
    )
}
T = TypeVar("T")
log = logging.getLogger("drengine.console")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
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
    app.include_router(open_router, prefix=PREFIX)
    app.include_router(router, prefix=PREFIX)
    app.include_router(readiness_router, prefix=PREFIX, responses=REFUSALS, dependencies=[Depends(_may_look)])
    app.include_router(fleet_router, prefix=PREFIX, responses=REFUSALS, dependencies=[Depends(_may_look)])
    app.add_middleware(Guard, door=orchestrator.engine.door)
    app.add_exception_handler(DrengineError, _refused)
    app.add_exception_handler(RequestValidationError, _misunderstood)
    app.add_exception_handler(HTTPException, _not_there)
    return app


def _orchestrator(request: Request) -> Orchestrator:
    orchestrator: Orchestrator = request.app.state.orchestrator
    return orchestrator


def _engine(request: Request) -> Engine:
    return _orchestrator(request).engine


def _who(request: Request, bearer: Bearer) -> Person:
    """Whom the guard found; the header is a parameter so that OpenAPI speaks of it."""
    person: Person = request.scope["person"]
    return person


AnOrchestrator = Annotated[Orchestrator, Depends(_orchestrator)]
AnEngine = Annotated[Engine, Depends(_engine)]
Who = Annotated[Person, Depends(_who)]


def _orders(engine: AnEngine, who: Who) -> Orders:
    return Orders(engine, who)


def _may_look(who: Who) -> None:
    permit(who, Action.LOOK)


TheOrders = Annotated[Orders, Depends(_orders)]
router = APIRouter(responses=REFUSALS, dependencies=[Depends(_may_look)])
open_router = APIRouter(responses=REFUSALS)
"""What needs no role."""


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, DrengineError)
    status = STATUS.get(error.kind.id, 500)
    return _problem(status, problem(error.kind, error.message, error.hint))


async def _misunderstood(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(each)[:60] for each in first["loc"][:6])
    return _problem(422, problem(BAD_REQUEST, f"{place}: {first['msg']}"[:400]))


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, problem(BAD_REQUEST, str(error.detail)[:400]), error.headers)


def _problem(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, dict(headers or {}), "application/json")


# ---- runs ----------------------------------------------------------------------------------------------------------


@open_router.get("/health")
async def health(engine: AnEngine) -> take.Health:
    """Whether the orchestrator answers."""
    return take.Health(version=__version__, store=str(engine.config.store))


@open_router.get("/login")
async def sign_in_ways(engine: AnEngine) -> take.SignInWays:
    """Say how people sign in."""
    return take.SignInWays(issuer=engine.config.oidc.issuer, client=engine.config.oidc.client)


@open_router.post("/login")
async def sign_in(request: Request, engine: AnEngine, body: take.SignIn) -> take.SignedIn:
    """Get a token for a password."""
    peer = str((request.scope.get("client") or ("",))[0])
    seconds = engine.config.login_ttl
    token, text = await off(lambda: engine.door.sign_in(body.name, body.password, peer, seconds), PASSWORDS)
    return take.SignedIn(token=text, name=token.account, expires_ns=token.expires_ns)


@router.post("/logout")
async def sign_out(engine: AnEngine, who: Who) -> take.Me:
    """End the token that is shown; it counts no more."""
    await off(lambda: engine.door.sign_out(who))
    return _me(who)


@router.get("/me")
async def show_me(who: Who) -> take.Me:
    """Say who asks, how that was proved, and which roles he has."""
    return _me(who)


def _me(who: Person) -> take.Me:
    return take.Me(name=who.name, proof=who.proof, roles=sorted(who.roles))


@router.get("/runs")
async def list_runs(
    orders: TheOrders,
    mode: Annotated[Mode | None, Query()] = None,
    runbook: Annotated[str | None, Query(pattern=take.NAME_PATTERN)] = None,
    unfinished: Annotated[bool, Query(description="Only those that hold their sources.")] = False,
    limit: Limit = 100,
) -> list[give.Run]:
    """List runs, newest first."""
    return await off(lambda: orders.runs(mode=mode, runbook=runbook, unfinished=unfinished, limit=limit))


@router.post("/runs", status_code=201)
async def start_run(orchestrator: AnOrchestrator, orders: TheOrders, body: take.StartRun) -> give.RunDetail:
    """Begin a drill, failover, migration, reprotect or failback; it is carried out by this orchestrator."""
    given = body.model_dump(exclude={"mode", "runbook"})
    return await _ordered(orchestrator, orders, lambda: orders.begin(body.mode, body.runbook, **given))


@router.get("/runs/{run}")
async def show_run(orders: TheOrders, run: take.RunId) -> give.RunDetail:
    """Show a run: its state, what was measured, each step with its result."""
    return await off(lambda: orders.show(run))


@router.get("/runs/{run}/journal")
async def show_journal(orders: TheOrders, run: take.RunId, after: After = 0) -> list[JournalEntry]:
    """Give a run's journal, in order."""
    return await off(lambda: orders.journal(run, after))


@router.get("/runs/{run}/requests")
async def show_requests(orders: TheOrders, run: take.RunId, after: After = 0) -> list[Asked]:
    """Give what people asked of a run, in order."""
    return await off(lambda: orders.requests(run, after))


@router.post("/runs/{run}/approve")
async def approve(orders: TheOrders, run: take.RunId, body: take.Approve) -> Asked:
    """Approve a step that waits for it, if it is still about what was seen."""
    return await off(lambda: orders.approve(run, step=body.step, note=body.note, digest=body.digest))


@router.post("/runs/{run}/abort")
async def abort(orchestrator: AnOrchestrator, orders: TheOrders, run: take.RunId, body: take.Ask) -> give.RunDetail:
    """End a run where it is; a drill is cleaned up."""
    return await _ordered(orchestrator, orders, lambda: orders.abort(run, note=body.note))


@router.post("/runs/{run}/resume")
async def resume(orchestrator: AnOrchestrator, orders: TheOrders, run: take.RunId, body: take.Resume) -> give.RunDetail:
    """Go on with a run that stopped or was left."""
    given = body.model_dump(exclude={"note"})
    return await _ordered(orchestrator, orders, lambda: orders.resume(run, **given))


@router.post("/runs/{run}/rollback")
async def rollback(
    orchestrator: AnOrchestrator, orders: TheOrders, run: take.RunId, body: take.Rollback
) -> give.RunDetail:
    """Undo a failover; refused with what would be lost, unless `yes`."""
    return await _ordered(orchestrator, orders, lambda: orders.rollback(run, yes=body.yes, note=body.note))


@router.post("/runs/{run}/commit")
async def commit(orders: TheOrders, run: take.RunId, body: take.Ask) -> give.RunDetail:
    """Accept a failover: it can't be rolled back any more."""
    return await off(lambda: orders.commit(run, note=body.note))


async def _ordered(orchestrator: Orchestrator, orders: Orders, order: Callable[[], RunRecord]) -> give.RunDetail:
    """Give an order; whoever executes the run heeds it, and if nobody does, this orchestrator carries it out."""
    run = await off(order)
    orchestrator.carry_out(run)
    return await off(lambda: orders.show(run.id))


# ---- runbooks ------------------------------------------------------------------------------------------------------


@router.get("/runbooks")
async def list_runbooks(engine: AnEngine) -> list[StoredRunbook]:
    """List the runbooks that are kept, each in its current version."""
    return await off(engine.registry.runbooks)


@router.post("/runbooks/validate")
async def validate(orders: TheOrders, body: take.RunbookText) -> give.Validation:
    """Say what is wrong with a runbook; nothing is kept."""
    return await off(lambda: orders.validate(body.text))


@router.get("/runbooks/{name}")
async def show_runbook(
    engine: AnEngine, name: take.RunbookName, version: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None
) -> StoredRunbook:
    """Give a runbook, in its current version or another."""
    return await off(lambda: engine.registry.runbook(name, version))


@router.put("/runbooks/{name}")
async def save_runbook(orders: TheOrders, name: take.RunbookName, body: take.RunbookText) -> give.Saved:
    """Keep a runbook; refused when it has mistakes."""
    return await off(lambda: orders.keep(name, body.text))


@router.get("/runbooks/{name}/plan")
async def show_plan(
    orders: TheOrders,
    name: take.RunbookName,
    mode: Annotated[Mode, Query()] = Mode.FAILOVER,
    point: Annotated[str, Query(max_length=300)] = "",
    onto: Annotated[list[str] | None, Query(max_length=100)] = None,
    disks: Annotated[list[str] | None, Query(max_length=100)] = None,
) -> give.Plan:
    """Say what a run would do now, step by step; nothing is touched."""
    return await off(lambda: orders.plan(mode, name, point=point, onto=onto or (), disks=disks or ()), LOOKS)


@router.post("/runbooks/{name}/ready")
async def look_whether_ready(orders: TheOrders, name: take.RunbookName, body: take.Look) -> Readiness:
    """Look now whether a run would go through; nothing is changed, and it takes 20 s at most."""
    return await off(lambda: orders.ready(body.mode, name, point=body.point, onto=body.onto, disks=body.disks), LOOKS)


# ---- what there is -------------------------------------------------------------------------------------------------


@router.get("/parties")
async def list_parties(orders: TheOrders) -> list[give.Party]:
    """List agents, recovery hosts and targets, as they were last heard of."""
    return await off(orders.parties)


@router.get("/sources")
async def list_sources(engine: AnEngine) -> list[SourceInfo]:
    """List the sources in the store, with who may write them."""
    return await off(engine.site.store.sources)


@router.get("/sources/{source}/points")
async def list_points(
    engine: AnEngine,
    source: take.SourceName,
    branch: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    limit: Limit = 100,
) -> list[PointAnswer]:
    """List a source's recovery points, newest first."""
    found = await off(lambda: engine.site.store.points(source, branch=branch))
    locked = await off(lambda: engine.site.store.locked_seconds(source))
    return [point_answer(each, locked_seconds=locked.get(each.id, 0)) for each in found[: -limit - 1 : -1]]


@router.get("/sources/{source}/points/{point}")
async def show_point(
    engine: AnEngine, source: take.SourceName, point: Annotated[str, PathPart(max_length=300)]
) -> PointAnswer:
    """Give one point: by its id, `latest`, a time (the newest at or before it), or its label."""
    return point_answer(await off(lambda: engine.site.store.find_point(source, PointSelector.parse(point))))


@router.get("/sources/{source}/branches")
async def list_branches(engine: AnEngine, source: take.SourceName) -> list[BranchInfo]:
    """List a source's branches."""
    return await off(lambda: engine.site.store.branches(source))


@router.get("/sources/{source}/inventory", response_model=dict[str, Any])
async def show_inventory(engine: AnEngine, source: take.SourceName) -> Response:
    """Tell what a source's server is made of, as its agent told last."""
    found = await off(lambda: engine.site.store.require_inventory(source))
    return Response(msgspec.json.encode(found), media_type="application/json")


@router.get("/monitoring/targets")
async def list_scrape_targets(orchestrator: AnOrchestrator) -> list[TargetGroup]:
    """List what Prometheus is to ask, in the form of its HTTP service discovery."""
    engine = orchestrator.engine
    retired = await off(lambda: retired_sources(engine.config.store))
    names = {source.name for source in await off(engine.site.store.sources)}
    orchestrator.discovered_at = engine.site.clock.monotonic()
    targets = engine.site.store.targets
    placed = await off(targets.placed)
    sharing = [
        SharingTarget(each.name, each.addresses, each.metrics, each.is_living)
        for each in await off(targets.all)
        if each.state is not TargetState.STOPPED
    ]
    return target_groups(engine.config.monitoring, names - retired, sharing, placed)


# ---- reports -------------------------------------------------------------------------------------------------------


@router.get("/reports")
async def list_reports(engine: AnEngine, limit: Limit = 100) -> list[ReportSummary]:
    """List the reports that are kept, newest first."""
    return await summaries(engine.config.reports, limit, lambda error: log.warning("%s", error.message))


@router.get("/reports/{run}", response_model=dict[str, Any])
async def show_report(engine: AnEngine, run: take.RunId) -> Response:
    """Give a run's report as values, as the run stands now."""
    return Response(await _report(engine, run, Form.JSON), media_type="application/json")


@router.get("/reports/{run}/page", responses={200: {"content": {"text/html": {}}}}, response_class=Response)
async def show_report_page(engine: AnEngine, run: take.RunId) -> Response:
    """Give a run's report as one page, as the run stands now."""
    policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
    return Response(await _report(engine, run, Form.HTML), media_type="text/html", headers=policy)


async def _report(engine: Engine, run: str, form: Form) -> bytes:
    return await report_as(engine.registry, engine.config.reports, run, form, engine.site.clock.now_ns())
