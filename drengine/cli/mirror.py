"""`drengine mirror`: a second copy of a store at another place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.config import BAD_CONFIG
from drengine.config.kinds import parse_duration, parse_size
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.process.signals import ask_on_signals
from drengine.store.errors import DAMAGED
from drengine.store.mirror import MirrorOptions, PassReport
from drengine.store.store import Store
from drengine.target.key import keks_of, s3_of
from drengine.target.mirroring import Mirroring, MirrorPlan
from drengine.telemetry import setup_logging
from drengine.terminal import emit_json, human_bytes, note

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(add_completion=False)


@app.command()
def mirror(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The store; with --detach, the copy.")],
    destination: Annotated[
        Path | None, typer.Argument(metavar="DESTINATION", help="Directory of the copy: missing, empty, or a copy.")
    ] = None,
    place: Annotated[
        str,
        typer.Option("--place", help="Where the copy's segments lie, if not in DESTINATION: s3://BUCKET/PREFIX?..."),
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go on until interrupted, pass after pass.")] = False,
    interval: Annotated[str, typer.Option("--interval", help="From a pass to the next.")] = "1s",
    limit: Annotated[str, typer.Option("--limit", help="Bytes a second at most, such as 20MiB.")] = "",
    hashes: Annotated[bool, typer.Option("--hashes", help="Compare every hash of what is copied, too.")] = False,
    accept_rebuilt: Annotated[
        bool, typer.Option("--accept-rebuilt", help="Go by an original that was rebuilt, also where it lacks points.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Make the copy STORE a store of its own, for good.")] = False,
    json: JsonOption = False,
) -> None:
    """Keep a second copy of a store at another place, which recovers alone: once, or with --follow continuously.

    A directory that was copied from the store (a disk that was shipped) is taken over: what is there is checked, and
    only the difference is copied."""
    keks = keks_of(None, store)
    if detach:
        with Store.open(store, keks=keks, storage_options=s3_of(None, store)) as copy:
            was_copy = copy.detach()
        note(f"{store} is a store of its own now" if was_copy else f"{store} is no copy")
        return
    if destination is None:
        raise typer.BadParameter("it is missing", param_hint="DESTINATION")
    plan = MirrorPlan(
        destination,
        _read("--interval", parse_duration, interval),
        int(_read("--limit", parse_size, limit)) if limit else 0,
        MirrorOptions(hashes=hashes, accept_rebuilt=accept_rebuilt),
        place=place,
        storage_options=s3_of(None, destination),
    )
    setup_logging()
    with Store.open(store, read_only=None, keks=keks, storage_options=s3_of(None, store)) as origin:
        mirroring = Mirroring(origin, plan, keks, SystemClock())
        asyncio.run(_follow(mirroring, json=json) if follow else _once(mirroring, json=json))


async def _once(mirroring: Mirroring, *, json: bool) -> None:
    ask_on_signals(mirroring.stop)
    report = await asyncio.to_thread(mirroring.once)
    _tell(report, json=json)
    if report.damaged:
        raise DrengineError(DAMAGED, f"{len(report.damaged)} segments of the original could not be copied whole")


async def _follow(mirroring: Mirroring, *, json: bool) -> None:
    ask_on_signals(mirroring.stop)
    await mirroring.follow(lambda report: _tell(report, json=json) if report.bytes else None)


def _tell(report: PassReport, *, json: bool) -> None:
    if json:
        emit_json(report)
        return
    what = "the copy is complete" if report.complete else "the copy is not complete yet"
    print(f"{human_bytes(report.bytes)} copied, {report.segments} segments touched: {what}", flush=True)
    for each in report.damaged:
        note(f"damaged: {each}")


def _read(option: str, parse: Callable[[str], float], text: str) -> float:
    try:
        return parse(text)
    except ValueError as error:
        raise DrengineError(BAD_CONFIG, f"{option}: {error}") from error
