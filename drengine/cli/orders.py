"""`drengine approve`, `abort`, `commit`, `rollback` and `run resume`: what a person orders of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from drengine.cli.carrying import ask, carry_out, runbook_place
from drengine.cli.run_options import (
    DespiteOption,
    ForceOption,
    NoteOption,
    OrderOptions,
    RequestOptions,
    RunArgument,
    RunOptions,
)
from drengine.failover.run import Outcome
from drengine.terminal import emit_json, note
from drengine.terminal.options import grouped

if TYPE_CHECKING:
    from drengine.cli.desk import Desk
    from drengine.failover.answers import RunDetail
    from drengine.failover.run import Request, RunRecord

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def approve(
    run: RunArgument,
    step: Annotated[str, typer.Argument(help="The step's id; not needed when only one is waiting.")] = "",
    comment: Annotated[str, typer.Option("--note", help="Kept with the approval.")] = "",
    digest: Annotated[
        str, typer.Option("--digest", help="What you approve, as `drengine run show` says; default: as it is now.")
    ] = "",
    *,
    options: RequestOptions,
) -> None:
    """Approve a step that waits for it. Whoever executes the run goes on at once."""

    def order(orders: Desk) -> tuple[Request, str]:
        made = orders.approve(run, step=step, note=comment, digest=digest)
        return made, next((each.title for each in orders.show(run).steps if each.id == made.step), made.step)

    made, title = ask(options, order)
    if options.json:
        emit_json(made)
    else:
        print(f"{made.by} ({made.proof}) approved {made.step}: {title}")
        print(f"digest {made.digest}")
        print(f"if nobody executes the run any more: drengine run resume {made.run}")


@app.command()
@grouped
def abort(run: RunArgument, comment: NoteOption = "", *, options: OrderOptions) -> None:
    """End a run where it is: nothing new begins, a drill is cleaned up. A failover is not undone (see rollback)."""
    carry_out(
        options,
        lambda orders: orders.abort(run, note=comment),
        success=Outcome.ABORTED,
        elsewhere="whoever executes the run will end it now",
    )


@app.command()
@grouped
def commit(run: RunArgument, comment: NoteOption = "", *, options: RequestOptions) -> None:
    """Accept a completed failover: it can't be rolled back any more; the way home is a failback."""

    def order(orders: Desk) -> tuple[RunDetail, str]:
        return orders.commit(run, note=comment), str(orders.who)

    committed, by = ask(options, order)
    if options.json:
        emit_json(committed)
    else:
        print(f"{committed.run} is committed by {by}")
        print("\n".join(f"  {each.line}" for each in committed.next))


@app.command()
@grouped
def rollback(
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Go on although the recovered side's writes are lost.")] = False,
    comment: NoteOption = "",
    *,
    options: OrderOptions,
) -> None:
    """Undo a failover, or a failback before its switch: stop what was launched and put the sources in charge again.

    What would be lost is said before, and needs --yes: what was written on the recovered side stays behind on its
    branch until the branch's retention ends.
    """

    def order(orders: Desk) -> RunRecord:
        record = orders.rollback(run, yes=yes, note=comment)
        for each in orders.giving_up(record):
            note(f"giving up: {each}")
        return record

    carry_out(options, order, success=Outcome.ROLLED_BACK, elsewhere="whoever executes the run will roll it back now")


@app.command()
@grouped
def resume(
    run: RunArgument,
    force: ForceOption = False,
    done: Annotated[
        str, typer.Option("--done", help="A failed step that you did by hand: release, stop-workload, command, dns.")
    ] = "",
    runbook: Annotated[
        str, typer.Option("--runbook", help="Go on by a changed runbook, a file or a name; what is done stays done.")
    ] = "",
    despite: DespiteOption = None,
    *,
    options: RunOptions,
) -> None:
    """Go on with a run that was interrupted, or try again what failed in one that stopped."""
    carry_out(
        options,
        lambda orders: orders.resume(
            run, force=force, done=done, runbook=runbook_place(runbook), despite=despite or []
        ),
        wait=options.wait,
        patient=True,
    )
