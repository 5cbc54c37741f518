"""`drengine broker follow`: Mosquitto's files stay as the authority says."""

from __future__ import annotations

import asyncio
import logging
import shlex
from pathlib import Path
from typing import Annotated

import typer

from drengine.enrolment.mosquitto import ACL_FILE, DEFAULT_FOLDER, Broker, Follower
from drengine.enrolment.place import Place
from drengine.identity.errors import EnrolmentError
from drengine.model.clock import SystemClock
from drengine.process.signals import signalled
from drengine.telemetry import notify, setup_logging

app = typer.Typer(add_completion=False)

PlaceOption = Annotated[
    Path, typer.Option("--place", help="Folder in which the broker was enrolled (`drengine enrol --to`).")
]


@app.command()
def follow(
    place: PlaceOption = DEFAULT_FOLDER,
    pid_file: Annotated[
        Path, typer.Option("--pid-file", help="Of Mosquitto, which gets SIGHUP when files have changed.")
    ] = Path("/run/mosquitto/mosquitto.pid"),
    reload: Annotated[str, typer.Option("--reload", help="Command instead: 'systemctl reload mosquitto'.")] = "",
    sever: Annotated[
        str,
        typer.Option(
            "--sever",
            help="Command that ends all connections when somebody was revoked: 'systemctl restart mosquitto'. Without "
            "it a revoked party may stay connected, and may say and hear nothing.",
        ),
    ] = "",
) -> None:
    """Keep the broker's certificate, CRL and ACL as the authority says; in the foreground, until SIGTERM."""
    if Place(place).authority is None:
        raise EnrolmentError("folder-unusable", f"{place}: nobody has enrolled a broker there")
    setup_logging(level="info", form="auto")
    broker = Broker(place / ACL_FILE, pid_file, shlex.split(reload), shlex.split(sever))
    asyncio.run(_follow(place, broker))


async def _follow(place: Path, broker: Broker) -> None:
    stopping = signalled(insist=True, reload=lambda: logging.getLogger(__name__).info("there is nothing to read again"))
    running = asyncio.create_task(Follower(Place(place), broker, SystemClock()).run())
    notify("READY=1")
    await stopping.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
