"""What the recovery commands share: the store, the source and the point that a person named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drengine.cli.chosen import STORE_HELP, needed, store_of
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.target.errors import SOURCE_NEEDED

if TYPE_CHECKING:
    from drengine.store.store import Store

StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        "-s",
        envvar="DRENGINE_STORE",
        help=STORE_HELP,
        default_factory=lambda: None,
        show_default=False,
        callback=needed(store_of),
    ),
]
SourceOption = Annotated[
    str | None, typer.Option("--source", help="Source server; not needed when the store holds only one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
PointArgument = Annotated[
    str, typer.Argument(help="A point's id, `latest`, `before:2026-11-23T10:00:00Z`, or its label.")
]


def open_store(path: Path, *, read_only: bool = False, may_be_read_only: bool = False) -> Store:
    """Open the store. The commands that only look at one go through here, so that their `--help` waits for no numpy.

    `may_be_read_only`: where it can't be written it is read all the same, and what was found is not remembered in it.
    """
    from drengine.target.key import open_with_key  # noqa: PLC0415 - as it says

    return open_with_key(path, read_only=None if may_be_read_only else read_only)


def pick_source(store: Store, name: str | None, *, hint: str = "") -> str:
    """The named source, or the only one. `hint` says how it is named, where that is not by --source.

    Raises:
        DrengineError: SOURCE_NEEDED, UNKNOWN_SOURCE.
    """
    if name is not None:
        return store.source(name).name
    names = [source.name for source in store.sources()]
    if len(names) != 1:
        listed = ", ".join(names) or "none yet"
        raise DrengineError(SOURCE_NEEDED, f"the store holds {len(names)} sources: {listed}", hint=hint or None)
    return names[0]


def pick_point(store: Store, source: str | None, text: str) -> RecoveryPoint:
    """The point that a person named.

    Raises:
        DrengineError: BAD_POINT, UNKNOWN_POINT, SOURCE_NEEDED, UNKNOWN_SOURCE.
    """
    selector = PointSelector.parse(text)
    return store.find_point(pick_source(store, source), selector)
