"""`drengine scrub`: read everything in a store."""

from __future__ import annotations

import typer

from drengine.cli.common import JsonOption, StoreOption, open_store
from drengine.model.errors import DrengineError
from drengine.store.errors import DAMAGED
from drengine.terminal import emit_json, human_bytes, progress_bar

app = typer.Typer(add_completion=False)


@app.command()
def scrub(store: StoreOption, json: JsonOption = False) -> None:
    """Re-read and re-hash every segment; damage is recorded, so that the source can be asked for it again."""
    with open_store(store, may_be_read_only=True) as opened, progress_bar("scrubbing", quiet=json) as advance:
        report = opened.scrub(advance)
    if json:
        emit_json(report)
    if report.records_damaged:
        points = ", ".join(f"{source} {point}" for source, point in report.points_damaged[:5]) or "none"
        raise DrengineError(
            DAMAGED, f"{len(report.records_damaged)} records cannot be read; points that need them: {points}"
        )
    if not json:
        print(f"{report.segments} segments, {human_bytes(report.bytes_read)}: no damage")
