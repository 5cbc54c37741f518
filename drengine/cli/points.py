"""`drengine points`: the recovery points of a source."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from drengine.cli.common import JsonOption, SourceOption, StoreOption, open_store, pick_source
from drengine.model.sectors import SECTOR_BYTES
from drengine.store.answers import PointAnswer, point_answer
from drengine.terminal import (
    emit_json,
    human_age,
    human_bytes,
    human_duration,
    human_time,
    note,
    show_table,
)

app = typer.Typer(add_completion=False)

SHOWN = 30


@app.command()
def points(
    store: StoreOption,
    source: SourceOption = None,
    branch: Annotated[int | None, typer.Option(min=1, help="Only points of this branch.")] = None,
    all_points: Annotated[bool, typer.Option("--all", help=f"Show all, not just the newest {SHOWN}.")] = False,
    json: JsonOption = False,
) -> None:
    """List recovery points, oldest first: when, how each is known to be consistent, verified, lag, pinned."""
    with open_store(store, read_only=True) as opened:
        name = pick_source(opened, source)
        found = opened.points(name, branch=branch)
        locked = opened.locked_seconds(name)
        uploaded = {each: opened.uploaded_sequence(name, each) for each in {point.branch for point in found}}
    answers = [point_answer(point, uploaded[point.branch], locked.get(point.id, 0)) for point in found]
    if json:
        emit_json(answers)
        return
    if not found:
        note(f"{name} has no recovery point yet")
        return
    shown = answers if all_points else answers[-SHOWN:]
    if len(shown) < len(found):
        note(f"the newest {len(shown)} of {len(found)} points; --all shows the rest")
    now_ns = time.time_ns()
    show_table(
        ("point", "time", "age", "kind", "verified", "size", "lag", "pinned", "locked", "label"),
        [_row(each, now_ns) for each in shown],
        title=f"Recovery points of {name}",
    )
    if missing := [each.id for each in shown if each.uploaded is False]:
        note(f"only this host has the points from {missing[0]} on: the object store has them with the next uploads")
    for each in found[-1].geometry:
        if each.sector_bytes != SECTOR_BYTES:
            note(f"{each.name} lies on a disk with sectors of {each.sector_bytes} bytes")


def _row(point: PointAnswer, now_ns: int) -> tuple[str, ...]:
    checked = f"{human_age(point.verified_ns, now_ns)} ago" if point.verified_ns else "at ingest"
    return (
        point.id,
        human_time(max(point.time_ns, point.received_ns)),
        human_age(min(point.time_ns, point.received_ns), now_ns),
        point.kind,
        "ERASED" if point.erased else "DAMAGED" if point.damaged else checked,
        human_bytes(point.size_bytes),
        human_duration(point.lag_seconds),
        "yes" if point.pinned else "",
        f"for {human_duration(point.locked_seconds)}" if point.locked_seconds else "",
        point.label,
    )
