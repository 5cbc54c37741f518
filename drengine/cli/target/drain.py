"""`drengine target drain` and `forget`: a target that is to have no sources, or that will not come back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from drengine.audit import recorded
from drengine.cli.common import JsonOption, StoreOption, open_store
from drengine.config import parse_duration
from drengine.terminal import emit_json, note

if TYPE_CHECKING:
    from drengine.store.store import Store

app = typer.Typer(add_completion=False)

LOOK_SECONDS = 0.25
NameArgument = Annotated[str, typer.Argument(help="The target's name, as `drengine targets` shows it.")]


@app.command()
def drain(
    name: NameArgument,
    store: StoreOption,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take sources again.")] = False,
    wait: Annotated[str, typer.Option("--wait", help="How long to wait until it has none; 0s: not at all.")] = "60s",
    json: JsonOption = False,
) -> None:
    """Have a target give its sources to the others, without a gap, and take no more until --undo.

    It stays so over restarts. Sources that reach no other target stay where they are.
    """
    with open_store(store) as opened:
        with recorded(store, "target.drain", name, undo=undo):
            opened.targets.drain(name, not undo)
        left = [] if undo else _left(opened, name)
        until = time.monotonic() + _seconds(wait)
        while left and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            left = _left(opened, name)
    if json:
        emit_json({"target": name, "draining": not undo, "sources_left": left})
    elif undo:
        print(f"{name} takes sources again")
    elif left:
        note(f"{name} still has {len(left)} sources ({', '.join(left[:5])}) and goes on giving them away")
    else:
        print(f"{name} has no sources and takes none")


@app.command()
def forget(name: NameArgument, store: StoreOption, json: JsonOption = False) -> None:
    """Take a target that will not come back off the list, and its alerts with it."""
    with open_store(store) as opened, recorded(store, "target.forget", name):
        opened.targets.forget(name)
    if json:
        emit_json({"target": name, "forgotten": True})
    else:
        print(f"{name} is no target of this store any more")


def _left(store: Store, name: str) -> list[str]:
    """Sources that the target writes now."""
    here = sorted(source for source, place in store.targets.placed().items() if place == name)
    return [source for source in here if (owner := store.owner(source)) is not None and owner.name == name]


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"--wait: {error}") from error
