"""`drengine rebuild`: a store's catalogue from its segments alone."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.cli.common import JsonOption, StoreOption
from drengine.store.blobs.available import S3, StorageName
from drengine.store.blobs.s3.place import S3Place
from drengine.store.store import Store
from drengine.target.key import keks_of, s3_of
from drengine.terminal import emit_json, note, progress_bar

app = typer.Typer(add_completion=False)


@app.command()
def rebuild(
    store: StoreOption,
    place: Annotated[
        str | None,
        typer.Option(help="The store's place in an object store, where the directory is lost as well: s3://..."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a lost or damaged catalogue anew; the old one is kept aside. Stop the target first."""
    with progress_bar("reading segments", quiet=json) as advance:
        stored_in = StorageName(S3, str(S3Place.parse(place))) if place else None
        keks, options = keks_of(None, store), s3_of(None, store)
        report = Store.rebuild(store, advance, keks=keks, storage_options=options, stored_in=stored_in)
    if json:
        emit_json(report)
        return
    print(f"{report.points} points of {report.sources} sources found in {report.segments} segments")
    if report.kept_aside:
        note(f"the old catalogue was kept as {report.kept_aside}")
    for line in report.lost:
        note(f"lost: {line}")
