"""`drengine status`: what a store holds and how it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from drengine.cli.common import JsonOption, StoreOption, open_store
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.names import segment_name
from drengine.terminal import emit_json, human_age, human_bytes, note, show_table

app = typer.Typer(add_completion=False)


@app.command()
def status(store: StoreOption, json: JsonOption = False) -> None:
    """Show a store's sources, their newest points and any damage; works beside a running target and without one."""
    with open_store(store, read_only=True) as opened:
        stats = opened.stats()
        sources: list[dict[str, Any]] = []
        written, placed = opened.written_branches(), opened.targets.placed()
        for each in stats.sources:
            try:
                newest = opened.find_point(each.name, PointSelector())
            except DrengineError:
                newest = None
            active = opened.source(each.name).active_branch
            sources.append(
                {
                    "source": each.name,
                    "generation": each.generation,
                    "active_branch": active,
                    "being_written": (each.name, active) in written,
                    "target": placed.get(each.name),
                    "volumes": {v.name: v.size_bytes for v in newest.geometry} if newest else {},
                    "newest_point": newest.id if newest else None,
                    "newest_point_time_ns": newest.shown_ns if newest else None,
                    "points": each.points,
                    "points_damaged": each.points_damaged,
                    "points_pinned": each.points_pinned,
                    "branches": each.branches,
                    "stored_bytes": each.stored_bytes,
                    "plain_bytes": each.plain_bytes,
                    "records_damaged": each.records_damaged,
                }
            )
        set_aside = [segment_name(*place) for place in opened.set_aside()]
    if json:
        emit_json(
            {
                "store": str(store),
                "store_id": opened.identity.hex(),
                "stored_bytes": stats.stored_bytes,
                "plain_bytes": stats.plain_bytes,
                "free_bytes": stats.free_bytes,
                "set_aside": set_aside,
                "sources": sources,
            }
        )
        return
    _show(store, stats.stored_bytes, stats.plain_bytes, stats.free_bytes, sources)
    if set_aside:
        note(f"set aside, because the catalogue does not name them: {', '.join(set_aside)}")
        note("nothing removes them; docs/operations.md says what they are")


def _show(store: Path, stored: int, plain: int, free: int | None, sources: list[dict[str, Any]]) -> None:
    room = "" if free is None else f", {human_bytes(free)} free"
    note(f"{store}: {human_bytes(stored)} stored of {human_bytes(plain)}{room}")
    if not sources:
        note("no source has sent anything yet")
        return
    now_ns = time.time_ns()
    heads = ("source", "state", "newest point", "age", "points", "protected", "stored", "branches", "damage", "target")
    shown = len(heads) - (not any(each["target"] for each in sources))
    show_table(heads[:shown], [_row(each, now_ns)[:shown] for each in sources])


def _row(source: dict[str, Any], now_ns: int) -> tuple[str, ...]:
    newest = source["newest_point_time_ns"]
    return (
        source["source"],
        "replicating" if source["being_written"] else "not connected",
        source["newest_point"] or "none",
        human_age(newest, now_ns) if newest is not None else "",
        str(source["points"]),
        human_bytes(sum(source["volumes"].values())),
        human_bytes(source["stored_bytes"]),
        str(source["branches"]),
        f"{source['points_damaged']} points" if source["points_damaged"] else "none",
        source["target"] or "",
    )
