"""Carrying a run out in sight of people, and all other work with an engine's orders.

The commands only parse and show: `drengine.failover.orders` decides. What it needs is imported when a command has been
understood, so that `--help` waits for neither numpy nor a database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from drengine.cli.live import view
from drengine.cli.run_options import LookOptions, OrderOptions, PlanOptions
from drengine.cli.under_way import UnderWay
from drengine.failover.run import Outcome, RunState
from drengine.terminal import emit_json, human_duration, note

if TYPE_CHECKING:
    from drengine.cli.desk import Desk
    from drengine.failover.answers import RunDetail
    from drengine.failover.run import RunRecord

T = TypeVar("T")


def runbook_place(text: str) -> Path | str:
    """What a person named: a file, if it has a slash or ends in .yaml, else the name of a runbook that is kept."""
    return Path(text) if text.endswith((".yaml", ".yml")) or "/" in text else text


def ask(options: LookOptions | PlanOptions, question: Callable[[Desk], T], *, here: bool = False) -> T:
    """Ask one thing; `here`: in this process, unless another orchestrator is named."""
    return _at_desk(options, lambda desk: asyncio.to_thread(question, desk), here=here)


def _at_desk(
    options: LookOptions | PlanOptions,
    work: Callable[[Desk], Awaitable[T]],
    *,
    here: bool = False,
    under_way: UnderWay | None = None,
) -> T:
    from drengine.cli.desk import at_desk  # noqa: PLC0415 - as the module says

    return at_desk(options, work, here=here, under_way=under_way or UnderWay())


def carry_out(
    options: OrderOptions,
    order: Callable[[Desk], RunRecord],
    *,
    wait: bool = True,
    patient: bool = False,
    success: Outcome = Outcome.COMPLETED,
    elsewhere: str = "",
) -> None:
    """Give an order, carry its run out in sight of people, and tell how it ended, as an exit code too.

    Args:
        options: the command's; with `json` one object is printed and nothing else.
        order: what begins or changes the run.
        wait: for approvals.
        patient: whoever had the run before may be dead, so its lease is waited for.
        success: the outcome that is a success for this command, beside COMPLETED.
        elsewhere: what to note when somebody else executes the run, who will heed the order; empty: that is an error.

    Raises:
        DrengineError: what the order is refused with; RUN_FAILED, UNFENCED, RUN_WAITING, RUN_ABORTED; LEASE_HELD.
    """

    async def work(orders: Desk) -> None:
        record = await asyncio.to_thread(order, orders)
        under_way.run = record.id
        with view(record, quiet=options.json) as watch:
            run = await orders.carry_out(record, wait=wait, watch=watch, patient=patient, leave=bool(elsewhere))
        if run is None:
            note(elsewhere)
            return
        if options.json:
            emit_json(run)
        else:
            print("\n".join(run_lines(run)))
        failure = None if run.outcome is success else orders.failure(run)
        if failure is not None:
            raise typer.Exit(failure.kind.exit_code) if options.json else failure

    under_way = UnderWay()
    _at_desk(options, work, under_way=under_way)


def run_lines(run: RunDetail) -> list[str]:
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
    lines += [f"    {line}" for each in run.steps if each.kind == "preflight" for line in each.output.splitlines()]
    lines += [
        f"  {each.source}: {line}" for each in run.steps for line in hydration_lines(each.data.get("details", {}))
    ]
    if run.state is not RunState.RUNNING:
        lines += [f"  {source}'s agent stands fenced by this run, and serves nobody" for source in run.left_fenced]
    lines += [f"  {source} is in charge; nothing was started there: START IT" for source in run.not_started]
    return [*lines, "next:", *(f"  {each.line}" for each in run.next)]


def hydration_lines(details: dict[str, Any]) -> list[str]:
    """How far the disks of a launched workload are, for people."""
    lines, moves = [], details.get("moves", {})
    for volume, done in details.get("hydrated", {}).items():
        move = moves.get(volume, {})
        if why := move.get("reason") or details.get("given_up", {}).get(volume):
            lines.append(f"{volume} goes on with the branch, its local copy was given up: {why}")
        elif move.get("state") == "moved":
            lines.append(f"{volume} is read locally since {human_duration(move['seconds'])} after the launch")
        else:
            lines.append(f"{volume} is local to {done:.0%}")
    return lines
