"""`drengine store join`: a seat for another host of a store that is shared."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.store.seat import SeatArgument, tell_seat
from drengine.store.store import Store

app = typer.Typer(add_completion=False)


@app.command()
def join(
    directory: SeatArgument,
    catalogue: Annotated[str, typer.Option(help="postgresql://USER@HOST/DATABASE of the store, without a password.")],
    json: JsonOption = False,
) -> None:
    """Make a directory of this host a seat of a store that is there already; nothing of the store changes."""
    identity = Store.join(directory, catalogue).hex()
    tell_seat(directory, identity, "joined", json=json)
