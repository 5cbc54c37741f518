"""`drengine targets`: the targets that share a store, and how they stand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from drengine.cli.common import JsonOption, StoreOption, open_store
from drengine.store.targets import TargetInfo
from drengine.terminal import emit_json, human_duration, note, show_table

app = typer.Typer(add_completion=False)


@app.command()
def targets(store: StoreOption, json: JsonOption = False) -> None:
    """Show the targets that share a store: where agents reach them, their sources, when each was last seen."""
    with open_store(store, read_only=True) as opened:
        shared, found = opened.targets.is_shared, opened.targets.all()
    if json:
        emit_json({"shared": shared, "targets": [_answer(each) for each in found]})
    elif not shared:
        note(f"{store}: one target can use this store; docs/operations.md tells how several share one")
    elif not found:
        note("no target has used this store yet")
    else:
        show_table(("target", "state", "addresses", "sources", "seen", "version"), [_row(each) for each in found])


def state_of(target: TargetInfo) -> str:
    """Its state for people: silence counts before what it was told to do."""
    return target.state.value if target.is_living or target.state == "stopped" else "gone"


def _answer(target: TargetInfo) -> dict[str, Any]:
    return {**asdict(target), "living": target.is_living}


def _row(target: TargetInfo) -> tuple[str, ...]:
    return (
        target.name,
        state_of(target),
        ", ".join(target.addresses),
        str(target.sources),
        f"{human_duration(target.seen_seconds)} ago",
        target.version,
    )
