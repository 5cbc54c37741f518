"""`drengine store join`: a seat for another host of a store that is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.ownership import service_warnings
from drengine.store.store import Store
from drengine.terminal import emit_json, note

app = typer.Typer(add_completion=False)


@app.command()
def join(
    directory: Annotated[Path, typer.Argument(help="Missing or empty directory of this host: its seat of the store.")],
    catalogue: Annotated[str, typer.Option(help="postgresql://USER@HOST/DATABASE of the store, without a password.")],
    json: JsonOption = False,
) -> None:
    """Make a directory of this host a seat of a store that is there already; nothing of the store changes."""
    identity = Store.join(directory, catalogue).hex()
    for line in service_warnings(directory):
        note(line)
    if json:
        emit_json({"store": str(directory), "store_id": identity})
    else:
        print(f"joined store {identity}, with its seat in {directory}")
