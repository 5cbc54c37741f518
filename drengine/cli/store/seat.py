"""What making and joining a store share: the directory of this host, and telling what was done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.ownership import service_warnings
from drengine.terminal import emit_json, note

SeatArgument = Annotated[Path, typer.Argument(help="Missing or empty directory of this host: its seat of the store.")]


def tell_seat(directory: Path, identity: str, done: str, *, json: bool) -> None:
    """That a store was `done` (made, joined) from a directory."""
    for line in service_warnings(directory):
        note(line)
    if json:
        emit_json({"store": str(directory), "store_id": identity})
    else:
        print(f"{done} store {identity}, with its seat in {directory}")
