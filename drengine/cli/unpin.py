"""`drengine unpin`: let retention have a point again."""

from __future__ import annotations

import typer

from drengine.cli.common import JsonOption, PointArgument, SourceOption, StoreOption, open_store, pick_point
from drengine.terminal import emit_json

app = typer.Typer(add_completion=False)


@app.command()
def unpin(
    point: PointArgument,
    store: StoreOption,
    source: SourceOption = None,
    json: JsonOption = False,
) -> None:
    """Let retention have a point again."""
    with open_store(store) as opened:
        found = pick_point(opened, source, point)
        opened.unpin(found)
    if json:
        emit_json({"id": found.id, "source": found.source, "pinned": False})
    else:
        print(f"{found.source} {found.id} is no longer pinned")
