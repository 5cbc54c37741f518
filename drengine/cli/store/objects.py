"""`drengine store check`: try a bucket, and hold a store against its objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.chosen import STORE_HELP, TargetConfigOption, store_of
from drengine.cli.common import JsonOption, StoreOption, open_store
from drengine.config.options import values_in
from drengine.model.errors import DrengineError
from drengine.store.blobs.available import S3, TRIALS, StorageName
from drengine.store.blobs.s3.errors import OBJECT_MISSING
from drengine.store.blobs.s3.options import S3Options
from drengine.store.blobs.s3.place import S3Place
from drengine.store.blobs.storage import Trial
from drengine.store.care.objects import ObjectReport
from drengine.store.identity import read_store_file
from drengine.store.store import Store
from drengine.target.config import load_target_config
from drengine.target.key import s3_of
from drengine.terminal import emit_json, human_bytes, note, show_table

app = typer.Typer(add_completion=False)


@app.command()
def check(
    place: Annotated[
        str | None,
        typer.Argument(help="An unused place: s3://BUCKET/PREFIX?endpoint=URL&region=NAME&style=path."),
    ] = None,
    store: Annotated[Path | None, typer.Option("--store", "-s", envvar="DRENGINE_STORE", help=STORE_HELP)] = None,
    config: TargetConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Try everything that a store needs of a bucket; of a store, also whether its objects are all there.

    What is tried is put under PREFIX/check/ and deleted again. Nothing else is changed.
    """
    report: ObjectReport | None = None
    trials: list[Trial]
    if place is not None:
        trials = TRIALS.load(S3)(S3Place.parse(place), _options(config))
    else:
        trials, report = _of_store(store)
    if json:
        emit_json({"trials": [_answer(trial) for trial in trials], "objects": report})
    else:
        show_table(
            ("tried", "", "found"),
            [(each.name, "ok" if each.is_passed else "FAILED", each.detail) for each in trials],
        )
        if report:
            _show(report)
    failed = next((each.error for each in trials if each.error), None)
    if failed:
        raise failed
    if report and report.missing:
        raise DrengineError(
            OBJECT_MISSING, f"{len(report.missing)} of {report.named} objects, {report.missing[0]} first"
        )


@app.command()
def place(
    store: StoreOption,
    moved: Annotated[str, typer.Argument(metavar="PLACE", help="Where the store's objects are by now: s3://...")],
) -> None:
    """Correct where a store's objects are: another endpoint or region, or a bucket that has all of them.

    The place must be claimed by this store. Stop the target first.
    """
    stored_in = StorageName(S3, str(S3Place.parse(moved)))
    Store.move(store, stored_in, s3_of(None, store))
    print(f"{store} keeps its objects at {stored_in.place}")


def _of_store(given: Path | None) -> tuple[list[Trial], ObjectReport | None]:
    store = store_of(given)
    if store is None:
        raise typer.BadParameter("a place or --store is needed")
    file = read_store_file(store)
    if file.storage.name != S3:
        note(f"{store} keeps its data on this host, in the directory itself")
        return [], None
    trials: list[Trial] = TRIALS.load(S3)(S3Place.parse(file.storage.place), s3_of(None, store), file.identity)
    if not all(each.is_passed for each in trials):
        return trials, None
    with open_store(store, read_only=True) as opened:
        return trials, opened.compare_objects()


def _options(config: Path | None) -> S3Options:
    """Of a target's file, whatever else is missing in it."""
    if config is None:
        return S3Options()
    values = values_in(config)
    return load_target_config(config, {} if "store" in values else {"store": "unused"}).s3


def _answer(trial: Trial) -> dict[str, object]:
    return {
        "name": trial.name,
        "passed": trial.is_passed,
        "detail": trial.detail,
        "error": trial.error.kind.id if trial.error else None,
        "hint": trial.error.hint if trial.error else None,
    }


def _show(report: ObjectReport) -> None:
    print(f"{report.named} objects are named, {len(report.missing)} of them are missing")
    if report.unnamed:
        size = human_bytes(report.unnamed_bytes)
        note(f"set aside, because the catalogue does not name them: {report.unnamed} objects, {size}")
    if report.decided:
        note(f"{report.decided} objects or files are to be deleted, once nobody reads them")
    if report.aside:
        note(f"{len(report.aside)} files of this host count no more, {report.aside[0]} first")
