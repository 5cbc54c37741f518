"""`drengine plan`: what a run would do."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import (
    ConfigOption,
    EngineStoreOption,
    ExportOption,
    RunbookArgument,
    StateOption,
    in_session,
    load_config,
)
from drengine.terminal import emit_json, human_duration, human_time, show_table

app = typer.Typer(add_completion=False)


@app.command()
def plan(
    runbook: RunbookArgument,
    mode: Annotated[
        str, typer.Option("--mode", help="drill, failover, migration, reprotect or failback.")
    ] = "failover",
    point: Annotated[str, typer.Option("--point", help="`latest`, a time, a point's id or its label.")] = "",
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
    json: JsonOption = False,
) -> None:
    """Print step by step what a run would do now, with the points it would choose and how long it would take.

    Nothing is touched. Times come from earlier runs of the runbook, marked with =, or are estimates, marked with ~.
    """
    from drengine.failover.preview import preview  # noqa: PLC0415
    from drengine.failover.runbook.values import Mode  # noqa: PLC0415
    from drengine.failover.session import Session  # noqa: PLC0415

    if mode not in [each.value for each in Mode]:
        raise typer.BadParameter(f"one of {', '.join(each.value for each in Mode)}", param_hint="--mode")

    async def work(session: Session) -> None:
        book, _ = await asyncio.to_thread(session.read_runbook, runbook)
        options = {"point": point} if point else {}
        found = await asyncio.to_thread(preview, session, Mode(mode), book, options)
        if json:
            steps = [
                {
                    "id": step.id,
                    "kind": step.kind.value,
                    "title": step.title,
                    "wave": step.wave,
                    "source": step.source,
                    "needs": list(step.needs),
                    "critical": step.critical,
                    "on_failure": step.on_failure.value,
                    "timeout_seconds": step.timeout_seconds,
                    "retries": step.retries,
                    "cleanup": step.cleanup,
                    "predicted_seconds": found.seconds[step.id],
                    "measured": step.id in found.measured,
                }
                for step in found.steps
            ]
            points = {source: dict(each) for source, each in found.points.items()}
            emit_json({"mode": mode, "steps": steps, "points": points, "predicted_seconds": found.predicted_seconds})
            return
        for source, each in found.points.items():
            when = f" of {human_time(each['time_ns'])}, {each['kind']}" if "time_ns" in each else ""
            print(f"{source}: {each['error'] or 'point ' + each['point'] + when}")
        rows = []
        for number, step in enumerate(found.steps, start=1):
            sure = "=" if step.id in found.measured else "~"
            told = f"{sure} {human_duration(found.seconds[step.id])}"
            fails = "go on" if not step.critical or step.on_failure.value == "continue" else step.on_failure.value
            rows.append((str(number), step.wave, step.title, told, fails, "always" if step.cleanup else ""))
        show_table(("step", "wave", "what", "takes", "if it fails", "cleanup"), rows, title=f"{mode} {book.name}")
        print(f"predicted: {human_duration(found.predicted_seconds)} from the declaration to the last step")

    in_session(load_config(config, store, state, export), work)
