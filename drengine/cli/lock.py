"""`drengine lock`: points that nobody can remove before their time."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.audit import recorded
from drengine.cli.common import JsonOption, PointArgument, SourceOption, StoreOption, open_store, pick_point
from drengine.store.care.lock_policy import LockPolicy
from drengine.terminal import emit_json, human_duration

app = typer.Typer(add_completion=False)


@app.command()
def lock(
    store: StoreOption,
    point: PointArgument = "latest",
    time: Annotated[str, typer.Option("--for", help="For how long from now on, such as 30d.")] = "7d",
    source: SourceOption = None,
    json: JsonOption = False,
) -> None:
    """Lock a point: nobody, no role and no command can remove it before its time. A lock can only be made longer."""
    seconds = LockPolicy.parse(time).for_seconds
    with open_store(store) as opened, recorded(store, "point.lock", point, seconds=seconds):
        found = pick_point(opened, source, point)
        left = opened.lock(found, seconds)
    if json:
        emit_json({"source": found.source, "point": found.id, "locked_seconds": left})
    else:
        print(f"point {found.id} of {found.source} is locked for {human_duration(left)}")
