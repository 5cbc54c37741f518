"""What the commands about runs share: options, the orders of an engine, carrying a run out in sight of people.

The commands only parse and show: `drengine.failover.orders` decides. It is imported here, when a command has been
understood, so that `--help` waits for neither numpy nor a database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from drengine.cli.live import view
from drengine.failover.run import Outcome
from drengine.process.signals import ask_on_signals
from drengine.terminal import emit_json, human_duration, note

if TYPE_CHECKING:
    from drengine.failover.answers import RunDetail
    from drengine.failover.config import OrchestratorConfig
    from drengine.failover.orders import Orders
    from drengine.failover.run import RunRecord

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
NoteOption = Annotated[str, typer.Option("--note", help="Kept with the request.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Go on although a source can't be fenced; the report says so first.")
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
    from drengine.failover.config import load_orchestrator_config  # noqa: PLC0415 - as the module says

    given = {"store": store, "state": state, "export": export}
    return load_orchestrator_config(config, {name: str(value) for name, value in given.items() if value is not None})


def runbook_place(text: str) -> Path | str:
    """What a person named: a file, if it has a slash or ends in .yaml, else the name of a runbook that is kept."""
    return Path(text) if text.endswith((".yaml", ".yml")) or "/" in text else text


def with_orders(config: OrchestratorConfig, work: Callable[[Orders], Awaitable[T]]) -> T:
    """Open the engine, do the work with its orders, close it.

    An interrupt ends it as soon as what can't be left alone is through; a second one at once. The run's journal knows
    how far it is in either case.
    """
    from drengine.failover.orders import open_orders  # noqa: PLC0415 - as the module says

    async def run() -> T:
        _end_on_signals(asyncio.current_task())
        async with open_orders(config) as orders:
            return await work(orders)

    try:
        return asyncio.run(run())
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error


def _end_on_signals(task: asyncio.Task[Any] | None) -> None:
    def end() -> None:
        note("ending; `drengine run resume RUN` goes on. Again: at once")
        if task is not None:
            task.cancel()

    with suppress(ValueError, RuntimeError):  # not the main thread
        ask_on_signals(end, insist=True)


def carry_out(
    config: OrchestratorConfig,
    order: Callable[[Orders], RunRecord],
    *,
    json: bool,
    wait: bool = True,
    patient: bool = False,
    fine: Outcome = Outcome.COMPLETED,
    elsewhere: str = "",
) -> None:
    """Give an order, carry its run out in sight of people, and tell how it ended, as an exit code too.

    Args:
        config: of the engine.
        order: what begins or changes the run.
        json: print one object and nothing else.
        wait: for approvals.
        patient: whoever had the run before may be dead, so its lease is waited for.
        fine: the outcome that is a success for this command, beside COMPLETED.
        elsewhere: what to note when somebody else executes the run, who will heed the order; empty: that is an error.

    Raises:
        DrengineError: what the order is refused with; RUN_FAILED, UNFENCED, RUN_WAITING, RUN_ABORTED; LEASE_HELD.
    """

    async def work(orders: Orders) -> None:
        record = await asyncio.to_thread(order, orders)
        with view(record, quiet=json) as watch:
            run = await orders.carry_out(record, wait=wait, watch=watch, patient=patient, leave=bool(elsewhere))
        if run is None:
            note(elsewhere)
            return
        if json:
            emit_json(run)
        else:
            print("\n".join(told(run)))
        failure = None if run.outcome is fine else orders.failure(run)
        if failure is not None:
            raise typer.Exit(failure.kind.exit_code) if json else failure

    with_orders(config, work)


def told(run: RunDetail) -> list[str]:
    """A run's end in a few lines for people; what was not fenced comes first."""
    lines = [f"NOT FENCED: {source} may still be writing; somebody forced it" for source in run.unfenced]
    lines.append(f"{run.mode.value} {run.run}: {run.state.value} {run.outcome.value}".rstrip() + f" ({run.reason})")
    if run.rto_seconds is not None:
        lines.append(f"  recovered {human_duration(run.rto_seconds)} after the declaration (RTO)")
    if run.outage_seconds is not None:
        lines.append(f"  out of service for {human_duration(run.outage_seconds)}")
    if run.rpo_seconds is not None:
        lines.append(f"  at most {human_duration(run.rpo_seconds)} lost (RPO, {run.rpo_known_by})")
    lines += [f"  {source} fenced: {evidence}" for source, evidence in run.fencing.items()]
    lines += [f"  {each.id} {each.status.value}: {each.message}" for each in run.steps if each.code]
    lines += [f"  drengine approve {run.run} {step} --by NAME" for step in run.waiting_for]
    return lines
