"""`drengine restore`: write a point's volumes to files or devices."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption, PointArgument, SourceOption, StoreOption, open_store, pick_point
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint, VolumeGeometry
from drengine.target.errors import BAD_DESTINATION
from drengine.target.restore import Restore, check_destination
from drengine.terminal import emit_json, human_bytes, progress_bar

app = typer.Typer(add_completion=False)


@app.command()
def restore(
    point: PointArgument,
    store: StoreOption,
    to: Annotated[
        list[str],
        typer.Option("--to", help="A folder for all volumes, or VOLUME=PATH; may be given several times."),
    ],
    source: SourceOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a destination that exists.")] = False,
    verify: Annotated[bool, typer.Option(help="Read the destination back and compare.")] = True,
    json: JsonOption = False,
) -> None:
    """Write a point's volumes to raw files or devices: sparse, in parallel, resumable, read back and compared.

    Run the same command again after an interruption: it goes on where it stopped.
    """
    with open_store(store, may_be_read_only=True) as opened:
        found = pick_point(opened, source, point)
        places = destinations(found, to)
        for volume, path in places:
            check_destination(path, volume, store, force=force)
        reports = []
        with opened.view(found) as view:
            identity = opened.context.identity + f"/{found.source}/{found.id}".encode()
            for volume, path in places:
                work = Restore(view, volume, path, identity=identity, clock=opened.context.clock, verify=verify)
                with (
                    progress_bar(f"restoring {volume.name}", quiet=json) as advance,
                    _stopping_on_signals(work),
                ):
                    reports.append(work.run(advance))
                if not json:
                    print(
                        f"{volume.name} at {found.id} completed: {path}, {human_bytes(volume.size_bytes)}"
                        + (", read back and equal" if verify else ", not read back")
                    )
    if json:
        emit_json({"id": found.id, "source": found.source, "completed": True, "volumes": reports})


def destinations(point: RecoveryPoint, to: list[str]) -> list[tuple[VolumeGeometry, Path]]:
    """Which volume goes where.

    Raises:
        DrengineError: BAD_DESTINATION.
    """
    by_name = {volume.name: volume for volume in point.geometry}
    if len(to) == 1 and "=" not in to[0]:
        folder = Path(to[0])
        if not folder.is_dir():
            raise DrengineError(BAD_DESTINATION, f"{folder} is not a folder; name a file as VOLUME=PATH")
        return [(volume, folder / f"{volume.name}.img") for volume in point.geometry]
    chosen: list[tuple[VolumeGeometry, Path]] = []
    for text in to:
        name, separator, path = text.partition("=")
        if not separator or name not in by_name or not path:
            known = ", ".join(by_name)
            raise DrengineError(BAD_DESTINATION, f"{text[:80]!r} is not VOLUME=PATH with one of the volumes {known}")
        chosen.append((by_name[name], Path(path)))
    paths = [path.absolute() for _, path in chosen]
    if len(set(paths)) != len(paths) or len({volume.volume for volume, _ in chosen}) != len(chosen):
        raise DrengineError(BAD_DESTINATION, "a volume or a destination is named twice")
    return chosen


class _stopping_on_signals:
    """SIGINT and SIGTERM let the restore save what is done before it gives up."""

    def __init__(self, work: Restore) -> None:
        self._work = work

    def __enter__(self) -> None:
        self._before = {each: signal.signal(each, lambda *_: self._work.stop()) for each in _SIGNALS}

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
