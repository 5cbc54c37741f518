"""`drengine pin`: keep a point: retention leaves it alone until it is unpinned."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.cli.common import JsonOption, PointArgument, SourceOption, StoreOption, open_store, pick_point
from drengine.terminal import emit_json

app = typer.Typer(add_completion=False)


@app.command()
def pin(
    point: PointArgument,
    store: StoreOption,
    source: SourceOption = None,
    note: Annotated[str, typer.Option(help="Why it is kept.")] = "",
    json: JsonOption = False,
) -> None:
    """Keep a point: retention leaves it alone until it is unpinned."""
    with open_store(store) as opened:
        found = pick_point(opened, source, point)
        opened.pin(found, note)
    if json:
        emit_json({"id": found.id, "source": found.source, "pinned": True})
    else:
        print(f"{found.source} {found.id} is pinned")
