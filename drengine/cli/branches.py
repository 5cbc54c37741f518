"""`drengine branches`: the branches of a source, and the end of one."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.audit import recorded
from drengine.cli.common import JsonOption, SourceOption, StoreOption, open_store, pick_source
from drengine.terminal import emit_json, show_table

app = typer.Typer(add_completion=False)


@app.command()
def branches(
    store: StoreOption,
    source: SourceOption = None,
    drop: Annotated[int | None, typer.Option(min=2, help="Close this branch; retention takes its data.")] = None,
    json: JsonOption = False,
) -> None:
    """List a source's branches, or close one that is no longer needed."""
    with open_store(store, read_only=drop is None) as opened:
        name = pick_source(opened, source)
        if drop is not None:
            with recorded(store, "branch.drop", f"{name}#{drop}"):
                opened.close_branch(name, drop)
        found = opened.branches(name)
    if json:
        emit_json(found)
        return
    show_table(
        ("branch", "role", "grew from", "generation", "state", "label"),
        [
            (
                str(each.number),
                str(each.role),
                f"{each.parent}-{each.base_sequence}" if each.parent else "",
                str(each.generation),
                "closed" if each.closed else "open",
                each.label,
            )
            for each in found
        ],
        title=f"Branches of {name}",
    )
