"""`drengine pin` and `unpin`: whether retention may have a point."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.audit import recorded
from drengine.cli.common import JsonOption, PointArgument, SourceOption, StoreOption, open_store, pick_point
from drengine.model.points import RecoveryPoint
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
        with recorded(store, "point.pin", f"{found.source} {found.id}", note=note):
            opened.pin(found, note)
    _show(found, json, pinned=True)


@app.command()
def unpin(point: PointArgument, store: StoreOption, source: SourceOption = None, json: JsonOption = False) -> None:
    """Let retention have a point again."""
    with open_store(store) as opened:
        found = pick_point(opened, source, point)
        with recorded(store, "point.unpin", f"{found.source} {found.id}"):
            opened.unpin(found)
    _show(found, json, pinned=False)


def _show(point: RecoveryPoint, json: bool, *, pinned: bool) -> None:
    if json:
        emit_json({"id": point.id, "source": point.source, "pinned": pinned})
    else:
        print(f"{point.source} {point.id} is {'pinned' if pinned else 'no longer pinned'}")
