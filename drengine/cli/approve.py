"""`drengine approve`: a person's yes to a step."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import (
    ByOption,
    ConfigOption,
    EngineStoreOption,
    RunArgument,
    StateOption,
    in_session,
    load_config,
)
from drengine.terminal import emit_json

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
    from drengine.failover.requests import approve as approve_step  # noqa: PLC0415
    from drengine.failover.session import Session  # noqa: PLC0415

    async def work(session: Session) -> None:
        # An approval by nobody is refused, so --by "" is not the user's name.
        who = by if by is not None else session.config.operator_name()
        made, state = await asyncio.to_thread(lambda: approve_step(session, run, who, step=step, note=comment))
        if json:
            emit_json({"run": run, "step": made.step, "by": made.by, "at_ns": made.at_ns})
        else:
            print(f"{made.by} approved {made.step}: {state.step.title}")
            print(f"if nobody executes the run any more: drengine run resume {run}")

    in_session(load_config(config, store, state), work)
