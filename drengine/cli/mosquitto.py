"""`drengine mosquitto`: the broker's files, from who is enrolled."""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.ca_options import CaOption, open_ca
from drengine.enrolment.mosquitto import (
    ACL_FILE,
    CONFIGURATION_FILE,
    DEFAULT_FOLDER,
    Broker,
    Follower,
    access_list,
    configuration,
    write_acl,
)
from drengine.enrolment.parties import living_parties
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
def write(
    ca: CaOption,
    to: Annotated[Path, typer.Option("--to", help=f"Folder for {CONFIGURATION_FILE} and {ACL_FILE}.")] = DEFAULT_FOLDER,
    place: PlaceOption = DEFAULT_FOLDER,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where it listens.")] = 8883,
) -> None:
    """Write Mosquitto's configuration and ACL from a CA's directory on this machine, once."""
    index = open_ca(ca).index()
    acl = to.absolute() / ACL_FILE
    write_acl(to / CONFIGURATION_FILE, configuration(place.absolute(), acl, port=port))
    write_acl(acl, access_list(index.site, living_parties(index, time.time())))
    print(f"wrote {to / CONFIGURATION_FILE} and {acl}")


@app.command()
def follow(
    place: PlaceOption = DEFAULT_FOLDER,
    acl: Annotated[Path, typer.Option("--acl", help="Mosquitto's ACL file.")] = DEFAULT_FOLDER / ACL_FILE,
    pid_file: Annotated[
        Path | None, typer.Option("--pid-file", help="Of Mosquitto, which gets SIGHUP when files have changed.")
    ] = None,
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
    asyncio.run(_follow(place, Broker(acl, pid_file, shlex.split(reload), shlex.split(sever))))


async def _follow(place: Path, broker: Broker) -> None:
    stopping = signalled(insist=True, reload=lambda: logging.getLogger(__name__).info("there is nothing to read again"))
    running = asyncio.create_task(Follower(Place(place), broker, SystemClock()).run())
    notify("READY=1")
    await stopping.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
