"""`drengine rebuild`: a store's catalogue from its segments alone."""

from __future__ import annotations

import typer

from drengine.cli.common import JsonOption, StoreOption
from drengine.store.store import Store
from drengine.target.key import keks_of
from drengine.terminal import emit_json, note, progress_bar

app = typer.Typer(add_completion=False)


@app.command()
def rebuild(store: StoreOption, json: JsonOption = False) -> None:
    """Make a lost or damaged catalogue anew; the old one is kept aside. Stop the target first."""
    with progress_bar("reading segments", quiet=json) as advance:
        report = Store.rebuild(store, advance, keks=keks_of(None, store))
    if json:
        emit_json(report)
        return
    print(f"{report.points} points of {report.sources} sources found in {report.segments} segments")
    if report.kept_aside:
        note(f"the old catalogue was kept as {report.kept_aside}")
    for line in report.lost:
        note(f"lost: {line}")
