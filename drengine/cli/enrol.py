"""`drengine enrol`: this host gets its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.enrolment.joining import NameOption, TokenOption, join
from drengine.enrolment.place import KEY_FILE
from drengine.ownership import service_warnings
from drengine.terminal import note

app = typer.Typer(add_completion=False)


@app.command()
def enrol(
    token: TokenOption,
    name: NameOption,
    to: Annotated[
        Path, typer.Option("--to", help="Folder for the certificate; the service's user must be able to write there.")
    ] = Path("/var/lib/drengine/identity"),
    json: JsonOption = False,
) -> None:
    """Get a certificate for this target, orchestrator or broker by a token; the key is made here and stays here."""
    join(token, name, to, json=json)
    if to.is_relative_to("/etc/mosquitto"):
        note("now: drengine broker config, which gives the folder to Mosquitto")
        return
    for line in service_warnings(to / KEY_FILE):
        note(line)
