"""`drengine plan`: what a run would do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drengine.cli.carrying import ask, runbook_place
from drengine.cli.common import JsonOption
from drengine.cli.ready import show_checks
from drengine.cli.run_options import DiskOption, OntoOption, PlanOptions, RunbookArgument
from drengine.failover.readiness import TOLD_IN_PLANS
from drengine.failover.runbook.values import Mode, OnFailure
from drengine.terminal import emit_json, human_duration, human_time, show_table
from drengine.terminal.options import grouped

if TYPE_CHECKING:
    from drengine.failover.answers import AddressChange, Plan, PlannedStep

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def plan(
    runbook: RunbookArgument,
    mode: Annotated[
        Mode, typer.Option("--mode", help="drill, failover, migration, reprotect or failback.")
    ] = Mode.FAILOVER,
    point: Annotated[str, typer.Option("--point", help="`latest`, a time, a point's id or its label.")] = "",
    onto: OntoOption = None,
    disk: DiskOption = None,
    json: JsonOption = False,
    *,
    options: PlanOptions,
) -> None:
    """Print step by step what a run would do now, with the points it would choose and how long it would take.

    Nothing is touched. Times come from earlier runs of the runbook, marked with =, or are estimates, marked with ~.
    At the end stand the checks of `drengine ready` that do not pass, and what a launch in a cloud takes.
    """
    place = runbook_place(runbook)
    given: dict[str, Any] = {"point": point, "onto": onto or [], "disks": disk or []}
    # A file that nobody has kept is looked at here: looking keeps nothing.
    found = ask(options, lambda orders: orders.plan(mode, place, **given), here=isinstance(place, Path))
    if json:
        emit_json(found)
    else:
        _show(found)


def _show(found: Plan) -> None:
    for source, each in found.points.items():
        when = f" of {human_time(each.time_ns)}, {each.kind}" if each.time_ns else ""
        print(f"{source}: {each.error or f'point {each.point}{when}'}")
    rows = [_row(number, step) for number, step in enumerate(found.steps, start=1)]
    heads = ("step", "wave", "what", "takes", "if it fails", "cleanup")
    show_table(heads, rows, title=f"{found.mode.value} {found.runbook}")
    if found.addresses:
        heads = ("server", "interface", "old address", "new address", "gateway", "DNS")
        show_table(heads, [_address_row(each) for each in found.addresses], title="addresses")
    for check in found.checks:
        if check.ok and check.check in TOLD_IN_PLANS:
            print(f"{check.about}: {check.message}")
    show_checks([each for each in found.checks if not each.ok], title="checks that do not pass")
    print(f"predicted: {human_duration(found.predicted_seconds)} from the declaration to the last step")


def _row(number: int, step: PlannedStep) -> tuple[str, ...]:
    takes = f"{'=' if step.measured else '~'} {human_duration(step.predicted_seconds)}"
    goes_on = not step.critical or step.on_failure is OnFailure.CONTINUE
    fails = "go on" if goes_on else step.on_failure.value
    return str(number), step.wave, step.title, takes, fails, "always" if step.cleanup else ""


def _address_row(each: AddressChange) -> tuple[str, ...]:
    new = ", ".join([*(["DHCP"] if each.dhcp else []), *each.new]) if each.new != each.old else "the same"
    resolver = ", ".join([*each.name_servers, *each.search])
    return each.source, each.interface, ", ".join(each.old), new, each.gateway, resolver
