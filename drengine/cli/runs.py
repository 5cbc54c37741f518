"""`drengine runs`: the runs that there were."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import ConfigOption, EngineStoreOption, StateOption, in_session, load_config
from drengine.terminal import emit_json, human_duration, human_time, note, show_table

app = typer.Typer(add_completion=False)


@app.command()
def runs(
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    runbook: Annotated[str | None, typer.Option("--runbook", help="Only runs of this runbook.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10000, help="How many at most, newest first.")] = 30,
    json: JsonOption = False,
) -> None:
    """List runs, newest first: what for, how far, how they ended, what was measured."""
    from drengine.failover.measure import measure  # noqa: PLC0415
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        found = await asyncio.to_thread(lambda: session.registry.runs(runbook=runbook, limit=limit))
        measured = {each.id: measure(await asyncio.to_thread(session.snapshot, each.id)) for each in found}
        if json:
            emit_json(
                [
                    {
                        "run": each.id,
                        "mode": each.mode.value,
                        "runbook": each.runbook,
                        "state": each.state.value,
                        "outcome": each.outcome.value,
                        "reason": each.reason,
                        "started_by": each.started_by,
                        "created_ns": each.created_ns,
                        "finished_ns": each.finished_ns,
                        "rto_seconds": measured[each.id].rto_seconds,
                        "rpo_seconds": measured[each.id].rpo_seconds,
                        "unfenced": list(measured[each.id].unfenced),
                    }
                    for each in found
                ]
            )
            return
        if not found:
            note("there was no run yet")
            return
        rows = []
        for each in found:
            rto, rpo = measured[each.id].rto_seconds, measured[each.id].rpo_seconds
            rows.append(
                (
                    each.id,
                    each.mode.value,
                    human_time(each.created_ns)[:19],
                    each.started_by,
                    each.state.value,
                    each.outcome.value or each.reason,
                    human_duration(rto) if rto is not None else "",
                    human_duration(rpo) if rpo is not None else "",
                )
            )
        show_table(("run", "mode", "begun", "by", "state", "outcome", "RTO", "RPO"), rows, title="Runs")

    in_session(load_config(config, store, state), work)
