"""`drengine verify`: read one recovery point whole."""

from __future__ import annotations

import typer

from drengine.cli.common import JsonOption, PointArgument, SourceOption, StoreOption, open_store, pick_point
from drengine.model.errors import DrengineError
from drengine.store.errors import DAMAGED
from drengine.terminal import emit_json, human_bytes, progress_bar

app = typer.Typer(add_completion=False)


@app.command()
def verify(point: PointArgument, store: StoreOption, source: SourceOption = None, json: JsonOption = False) -> None:
    """Read everything a point shows, recompute every hash, and remember the result with the point."""
    with open_store(store, may_be_read_only=True) as opened:
        found = pick_point(opened, source, point)
        with progress_bar(f"verifying {found.id}", quiet=json) as advance:
            report = opened.verify(found, advance)
    if json:
        emit_json(
            {"id": found.id, "source": found.source, "intact": report.intact, "bytes_read": report.bytes_read}
            | {"damaged": report.damaged}
        )
    if not report.intact:
        first = report.damaged[0]
        raise DrengineError(DAMAGED, f"{found.source} {found.id}: {len(report.damaged)} ranges fail, first {first}")
    if not json:
        print(f"{found.source} {found.id} is intact: {human_bytes(report.bytes_read)} read, every hash recomputed")
