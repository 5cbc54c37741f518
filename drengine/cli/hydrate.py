"""`drengine hydrate`: use a remote disk at once while it becomes local in the background."""

from __future__ import annotations

import asyncio
import json as jsonlib
import signal
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.model.errors import DrengineError
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
    from drengine.nbd.client import NBD_CLIENT, NbdClient  # noqa: PLC0415 - `--help` starts faster without
    from drengine.nbd.hydration import Hydration  # noqa: PLC0415
    from drengine.nbd.hydrator import serve_hydration  # noqa: PLC0415

    try:
        hydration = Hydration(lambda: NbdClient.of(uri), to)
    except OSError as error:
        raise DrengineError(NBD_CLIENT, f"{uri} to {to}: {error}") from error

    async def serve() -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        with progress_bar("hydrating", quiet=json or not is_terminal()) as advance:

            def progress(done: int, total: int) -> None:
                advance(done, total)
                if report is not None:
                    _keep(report, done, total)

            await serve_hydration(hydration, socket, stopping, served=tell, progress=progress)

    def tell() -> None:
        if json:
            emit_json({"socket": str(socket), "size_bytes": hydration.size_bytes, "copy": str(to)})
        else:
            note(f"{human_bytes(hydration.size_bytes)} served at nbd+unix:///?socket={socket}, until Ctrl-C")

    asyncio.run(serve())


def _keep(report: Path, done: int, total: int) -> None:
    fresh = report.with_name(report.name + ".new")
    fresh.write_text(jsonlib.dumps({"hydrated_bytes": done, "size_bytes": total}))
    fresh.replace(report)
