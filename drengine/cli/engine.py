"""What the commands about runs share: options, a session, carrying a run out in sight of people, telling its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from drengine.terminal import emit_json, human_duration, note

if TYPE_CHECKING:
    from drengine.failover.config import OrchestratorConfig
    from drengine.failover.run import RunRecord
    from drengine.failover.session import Session
    from drengine.failover.snapshot import Snapshot

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="DRENGINE_CONFIG", help="TOML file with the orchestrator's options."),
]
EngineStoreOption = Annotated[
    Path | None, typer.Option("--store", "-s", envvar="DRENGINE_STORE", help="The store's directory.")
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", envvar="DRENGINE_STATE", help="Directory of the registry, instances and reports."),
]
ExportOption = Annotated[
    str | None,
    typer.Option("--export", envvar="DRENGINE_EXPORT", help="The target's NBD address: HOST:PORT or unix:PATH."),
]
ByOption = Annotated[
    str | None, typer.Option("--by", help="Who does this; by default DRENGINE_OPERATOR or the user's name.")
]
RunArgument = Annotated[str, typer.Argument(help="The run's id; `drengine runs` lists them.")]
RunbookArgument = Annotated[str, typer.Argument(help="A runbook's file, or the name under which it was kept.")]
WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait for approvals, or end with 108 when one is needed.")
]


def load_config(
    config: Path | None, store: Path | None = None, state: Path | None = None, export: str | None = None
) -> OrchestratorConfig:
    """From a file and the command line, which wins.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    from drengine.failover.config import load_orchestrator_config  # noqa: PLC0415

    given = {"store": store, "state": state, "export": export}
    return load_orchestrator_config(config, {name: str(value) for name, value in given.items() if value is not None})


def in_session(config: OrchestratorConfig, work: Callable[[Session], Awaitable[T]]) -> T:
    """Open a session, do the work in it, close it.

    An interrupt ends it as soon as what can't be left alone is through; a second one at once. The run's journal knows
    how far it is in either case.
    """
    from drengine.failover.session import open_session  # noqa: PLC0415

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in one
        _end_on_signals(task)
        async with open_session(config) as session:
            return await work(session)

    try:
        return asyncio.run(run())
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error


def _end_on_signals(task: asyncio.Task[Any]) -> None:
    from drengine.process.signals import ask_on_signals  # noqa: PLC0415

    def end() -> None:
        note("ending; `drengine run resume RUN` goes on. Again: at once")
        task.cancel()

    with suppress(ValueError, RuntimeError):  # not the main thread
        ask_on_signals(end, insist=True)


async def begin(
    session: Session, mode: str, runbook: str, by: str | None, *, wait: bool, json: bool, **options: Any
) -> RunRecord:
    """Create a run of a runbook and carry it out."""
    from drengine.failover.runbook.values import Mode  # noqa: PLC0415

    who = session.config.operator_name(by)
    book, version = await asyncio.to_thread(session.load_runbook, runbook)
    given = {name: value for name, value in options.items() if value}
    run = await asyncio.to_thread(session.create_run, Mode(mode), book, version, who, given)
    return await watched(session, run, wait=wait, json=json)


async def watched(session: Session, run: RunRecord, *, wait: bool, json: bool, patient: bool = False) -> RunRecord:
    """Carry a run out, shown live at a terminal, line by line elsewhere."""
    from drengine.cli.live import view  # noqa: PLC0415

    with view(run, quiet=json) as watch:
        return await session.execute(run, wait=wait, watch=watch, patient=patient)


async def watched_here(session: Session, run: RunRecord, *, json: bool, elsewhere: str) -> RunRecord | None:
    """Carry out what was asked of a run; None while somebody else executes it, of which `elsewhere` is the note."""
    from drengine.failover.registry.errors import LEASE_HELD  # noqa: PLC0415
    from drengine.model.errors import DrengineError  # noqa: PLC0415

    try:
        return await watched(session, run, wait=True, json=json)
    except DrengineError as error:
        if error.kind is not LEASE_HELD:
            raise
        note(elsewhere)
        return None


def tell_end(session: Session, run: RunRecord, *, json: bool, fine: tuple[str, ...] = ("completed",)) -> None:
    """Tell how a run ended or why it stopped, as an exit code too.

    Args:
        session, run: which.
        json: print one object and nothing else.
        fine: outcomes that are a success for this command.

    Raises:
        DrengineError: RUN_FAILED, UNFENCED, RUN_WAITING, RUN_ABORTED.
        typer.Exit: with the same exit code, for machines.
    """
    from drengine.failover.requests import must_have_worked  # noqa: PLC0415
    from drengine.model.errors import DrengineError  # noqa: PLC0415

    snapshot = session.snapshot(run.id)
    if json:
        emit_json(describe(run, snapshot))
    else:
        for line in told(run, snapshot):
            print(line)
    if run.outcome.value in fine:
        return
    try:
        must_have_worked(run)
    except DrengineError as error:
        if json:
            raise typer.Exit(error.kind.exit_code) from error
        raise


def describe(run: RunRecord, snapshot: Snapshot) -> dict[str, Any]:
    """A run for machines."""
    from drengine.failover.measure import measure  # noqa: PLC0415

    measures = measure(snapshot)
    waiting = [each.step.id for each in snapshot.steps if each.status.value == "waiting"]
    return {
        "run": run.id,
        "mode": run.mode.value,
        "runbook": run.runbook,
        "version": run.version,
        "sources": list(run.sources),
        "started_by": run.started_by,
        "created_ns": run.created_ns,
        "state": run.state.value,
        "outcome": run.outcome.value,
        "reason": run.reason,
        "waiting_for": waiting,
        "rto_seconds": measures.rto_seconds,
        "outage_seconds": measures.outage_seconds,
        "rpo_seconds": measures.rpo_seconds,
        "rpo_known_by": measures.rpo_known_by,
        "points": {source: dict(point) for source, point in measures.points.items()},
        "fencing": dict(measures.fencing),
        "unfenced": list(measures.unfenced),
        "bytes_shipped_back": measures.bytes_shipped_back,
        "steps": [
            {
                "id": each.step.id,
                "kind": each.step.kind.value,
                "title": each.step.title,
                "wave": each.step.wave,
                "source": each.step.source,
                "status": each.status.value,
                "attempt": each.attempt,
                "message": each.message,
                "code": each.code,
                "seconds": (each.ended_ns - each.began_ns) / 1e9 if each.ended_ns > each.began_ns > 0 else None,
                "data": dict(each.data),
            }
            for each in snapshot.steps
        ],
    }


def told(run: RunRecord, snapshot: Snapshot) -> list[str]:
    """A run's end in a few lines for people; what was not fenced comes first."""
    from drengine.failover.measure import measure  # noqa: PLC0415

    measures = measure(snapshot)
    lines = [f"NOT FENCED: {source} may still be writing; somebody forced it" for source in measures.unfenced]
    lines.append(f"{run.mode.value} {run.id}: {run.state.value} {run.outcome.value}".rstrip() + f" ({run.reason})")
    if measures.rto_seconds is not None:
        lines.append(f"  recovered {human_duration(measures.rto_seconds)} after the declaration (RTO)")
    if measures.outage_seconds is not None:
        lines.append(f"  out of service for {human_duration(measures.outage_seconds)}")
    if measures.rpo_seconds is not None:
        lines.append(f"  at most {human_duration(measures.rpo_seconds)} lost (RPO, {measures.rpo_known_by})")
    for source, evidence in measures.fencing.items():
        lines.append(f"  {source} fenced: {evidence}")
    lines += [f"  {each.step.id} {each.status.value}: {each.message}" for each in snapshot.steps if each.code]
    waiting = [each for each in snapshot.steps if each.status.value == "waiting"]
    lines += [f"  drengine approve {run.id} {each.step.id} --by NAME" for each in waiting]
    return lines
