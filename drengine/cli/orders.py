"""`drengine approve`, `abort`, `commit`, `rollback` and `run resume`: what a person orders of a run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import (
    ByOption,
    ConfigOption,
    EngineStoreOption,
    ExportOption,
    ForceOption,
    NoteOption,
    RunArgument,
    StateOption,
    WaitOption,
    carry_out,
    load_config,
    with_orders,
)
from drengine.failover.run import Outcome
from drengine.terminal import emit_json, note

if TYPE_CHECKING:
    from drengine.failover.orders import Orders
    from drengine.failover.run import RunRecord

app = typer.Typer(add_completion=False)


@app.command()
def approve(
    run: RunArgument,
    step: Annotated[str, typer.Argument(help="The step's id; not needed when only one is waiting.")] = "",
    by: ByOption = None,
    comment: Annotated[str, typer.Option("--note", help="Kept with the approval.")] = "",
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Approve a step that waits for it. Whoever executes the run goes on at once."""
    loaded = load_config(config, store, state)
    who = by if by is not None else loaded.operator_name()  # an approval by nobody is refused: "" is not the user

    async def work(orders: Orders) -> None:
        made = await asyncio.to_thread(lambda: orders.approve(run, who, step=step, note=comment))
        if json:
            emit_json(made)
        else:
            title = next(each.title for each in orders.show(run).steps if each.id == made.step)
            print(f"{made.by} approved {made.step}: {title}")
            print(f"if nobody executes the run any more: drengine run resume {run}")

    with_orders(loaded, work)


@app.command()
def abort(
    run: RunArgument,
    by: ByOption = None,
    comment: NoteOption = "",
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    json: JsonOption = False,
) -> None:
    """End a run where it is: nothing new begins, a drill is cleaned up. A failover is not undone (see rollback)."""
    loaded = load_config(config, store, state, export)
    who = loaded.operator_name(by)
    carry_out(
        loaded,
        lambda orders: orders.abort(run, who, note=comment),
        json=json,
        fine=Outcome.ABORTED,
        elsewhere="whoever executes the run will end it now",
    )


@app.command()
def commit(
    run: RunArgument,
    by: ByOption = None,
    comment: NoteOption = "",
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Accept a completed failover: it can't be rolled back any more; the way home is a failback."""
    loaded = load_config(config, store, state)
    who = loaded.operator_name(by)

    async def work(orders: Orders) -> None:
        committed = await asyncio.to_thread(lambda: orders.commit(run, who, note=comment))
        if json:
            emit_json(committed)
        else:
            print(f"{run} is committed by {who}")

    with_orders(loaded, work)


@app.command()
def rollback(
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Go on although the recovered side's writes are lost.")] = False,
    by: ByOption = None,
    comment: NoteOption = "",
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    json: JsonOption = False,
) -> None:
    """Undo a failover, or a failback before its switch: stop what was launched and put the sources in charge again.

    What would be lost is said before, and needs --yes: what was written on the recovered side stays behind on its
    branch until the branch's retention ends.
    """
    loaded = load_config(config, store, state, export)
    who = loaded.operator_name(by)

    def order(orders: Orders) -> RunRecord:
        record = orders.rollback(run, who, yes=yes, note=comment)
        for each in orders.giving_up(record):
            note(f"giving up: {each}")
        return record

    carry_out(
        loaded,
        order,
        json=json,
        fine=Outcome.ROLLED_BACK,
        elsewhere="whoever executes the run will roll it back now",
    )


@app.command()
def resume(
    run: RunArgument,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    force: ForceOption = False,
    done: Annotated[
        str, typer.Option("--done", help="A failed step that you did by hand: release, stop-workload, command, dns.")
    ] = "",
    by: ByOption = None,
    wait: WaitOption = True,
    json: JsonOption = False,
) -> None:
    """Go on with a run that was interrupted, or try again what failed in one that stopped."""
    loaded = load_config(config, store, state, export)
    who = loaded.operator_name(by)
    carry_out(
        loaded,
        lambda orders: orders.resume(run, who, force=force, done=done),
        json=json,
        wait=wait,
        patient=True,
    )
