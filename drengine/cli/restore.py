"""`drengine restore`: write a point's volumes to files or devices."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption, PointArgument, SourceOption, StoreOption, open_store, pick_point
from drengine.linux.devices import sector_bytes
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.model.points import RecoveryPoint, VolumeGeometry
from drengine.process.signals import ending_signals
from drengine.target.destination import sectors_differ
from drengine.target.errors import BAD_DESTINATION
from drengine.target.restore import Restore, prepare
from drengine.terminal import emit_json, human_bytes, note, progress_bar

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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    write_device: Annotated[
        bool, typer.Option("--write-device", help="Write to a block device, whatever it holds.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", hidden=True, help="The old name of --overwrite and --write-device.")
    ] = False,
    verify: Annotated[bool, typer.Option(help="Read the destination back and compare.")] = True,
    json: JsonOption = False,
) -> None:
    """Write a point's volumes to raw files or devices: sparse, in parallel, resumable, read back and compared.

    Run the same command again after an interruption: it goes on where it stopped, with volumes that it has completed.
    """
    with open_store(store, may_be_read_only=True) as opened:
        found = pick_point(opened, source, point)
        places = destinations(found, to)
        if force:
            meant = forced([path for _, path in places])
            overwrite, write_device = overwrite or meant == "--overwrite", write_device or meant == "--write-device"
        with opened.view(found) as view:
            identity = opened.identity + f"/{found.source}/{found.id}".encode()
            works = [
                Restore(
                    view,
                    volume,
                    path,
                    identity=identity,
                    clock=SystemClock(),
                    verify=verify,
                    overwrite=overwrite,
                    write_device=write_device,
                )
                for volume, path in places
            ]
            prepare(works, store)
            sectors = [view.sector_bytes(volume.volume) for volume, _ in places]
            for (volume, path), size in zip(places, sectors, strict=True):
                if told := sectors_differ(volume.name, size, path):
                    note(told)
            _carry_out(found, list(zip([volume for volume, _ in places], works, sectors, strict=True)), json=json)


def _carry_out(point: RecoveryPoint, works: list[tuple[VolumeGeometry, Restore, int]], *, json: bool) -> None:
    """Restore one volume after the other, each with its sector size, and say what was done when it is done."""
    volumes = []
    with _stopping_on_signals([work for _, work, _ in works]), ExitStack() as taken:
        for _, work, _ in works:
            taken.callback(work.close)
        for volume, work, size in works:
            with progress_bar(f"restoring {volume.name}", quiet=json) as advance:
                report = work.run(advance)
            destination = {"sector_bytes": size, "destination_sector_bytes": sector_bytes(report.path)}
            volumes.append({**asdict(report), **destination})
            if not json:
                print(
                    f"{volume.name} at {point.id} completed: {report.path}, {human_bytes(volume.size_bytes)}"
                    + (", read back and equal" if report.verified else ", not read back")
                )
        if json:
            emit_json({"id": point.id, "source": point.source, "completed": True, "volumes": volumes})
        for _, work, _ in works:
            work.forget()


def forced(paths: list[Path]) -> str:
    """Which option --force stands for: it was the name of both.

    Raises:
        DrengineError: BAD_DESTINATION, it would have to stand for both.
    """
    devices = [path for path in paths if path.is_block_device()]
    files = [path for path in paths if path.exists() and path not in devices]
    if devices and files:
        raise DrengineError(
            BAD_DESTINATION,
            f"--force would write the device {devices[0]} and replace the file {files[0]}",
            hint="Say which you mean: --write-device, --overwrite, or both.",
        )
    meant = "--write-device" if devices else "--overwrite"
    note(f"--force has two names now; here it is {meant}")
    return meant


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
    if len({volume.volume for volume, _ in chosen}) != len(chosen):
        raise DrengineError(BAD_DESTINATION, "a volume is named twice")
    return chosen


class _stopping_on_signals:
    """SIGINT, SIGTERM and SIGHUP let a restore save what is done before it gives up."""

    def __init__(self, works: Sequence[Restore]) -> None:
        self._works = works

    def __enter__(self) -> None:
        self._before = {each: signal.signal(each, self._stop) for each in ending_signals()}

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _stop(self, *_: object) -> None:
        for each in self._works:
            each.stop()
