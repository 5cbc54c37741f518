"""`drengine store create`: make a store whose catalogue or segments lie elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.store.seat import SeatArgument, tell_seat
from drengine.store.blobs.available import LOCAL, StorageName
from drengine.store.store import Store
from drengine.target.key import keks_of, s3_of

app = typer.Typer(add_completion=False)


@app.command()
def create(
    directory: SeatArgument,
    catalogue: Annotated[
        str, typer.Option(help="postgresql://USER@HOST/DATABASE, without a password; by default SQLite, in DIRECTORY.")
    ] = "",
    storage: Annotated[
        str, typer.Option(help="Storage that holds the segments: `s3`, or a plug-in's; by default DIRECTORY.")
    ] = LOCAL,
    place: Annotated[
        str,
        typer.Option(
            help="Where in that storage, without a secret: s3://BUCKET/PREFIX?endpoint=URL&region=NAME&style=path."
        ),
    ] = "",
    json: JsonOption = False,
) -> None:
    """Make an empty store; with a catalogue in PostgreSQL and a storage that hosts share, others may join it."""
    named = StorageName(storage, place)
    keks, options = keks_of(None, directory), s3_of(None, directory)
    with Store.create(directory, stored_in=named, storage_options=options, catalogued_in=catalogue, keks=keks) as made:
        identity = made.identity.hex()
    tell_seat(directory, identity, "made", json=json)
