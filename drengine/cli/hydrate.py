"""`drengine hydrate`: use a remote disk at once while it becomes local in the background."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.hydrator import Progress, keep_progress, open_hydration, serve_until_signalled
from drengine.target.destination import sectors_differ
from drengine.terminal import emit_json, human_bytes, is_terminal, note, progress_bar

app = typer.Typer(add_completion=False)


@app.command()
def hydrate(
    uri: Annotated[str, typer.Argument(help="NBD address of the disk: nbd+unix:///EXPORT?socket=PATH or nbd://...")],
    to: Annotated[Path, typer.Option("--to", help="File (made anew) or block device for the local copy.")],
    socket: Annotated[Path, typer.Option("--socket", help="Unix socket on which the disk is served meanwhile.")],
    report: Annotated[Path | None, typer.Option("--report", help="Keep the progress in this file, as JSON.")] = None,
    json: JsonOption = False,
) -> None:
    """Serve a disk from a local copy that fills in the background; writes go to the remote disk too, first.

    So a promoted branch runs at local speed after a while, and keeps its recovery points from the first write. The copy
    is a cache: after a stop it is filled anew.
    """
    hydration = open_hydration(uri, to)
    if told := sectors_differ(to.name, max(SECTOR_BYTES, hydration.sector_bytes), to):
        note(told)

    def tell() -> None:
        if json:
            emit_json({"socket": str(socket), "size_bytes": hydration.size_bytes, "copy": str(to)})
        else:
            note(f"{human_bytes(hydration.size_bytes)} served at nbd+unix:///?socket={socket}, until Ctrl-C")

    with progress_bar("hydrating", quiet=json or not is_terminal()) as advance:

        def progress(now: Progress) -> None:
            advance(now.hydrated_bytes, now.size_bytes)
            if now.given_up:
                note(f"the local copy is given up ({now.given_up}); the disk is served from afar")
            if report is not None:
                keep_progress(report, now)

        asyncio.run(serve_until_signalled(hydration, socket, served=tell, progress=progress))
