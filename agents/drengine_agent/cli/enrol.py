"""`drengine-agent enrol`: this host gets its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.enrolment.joining import NameOption, TokenOption, join
from drengine_agent.cli.common import JsonOption

app = typer.Typer(add_completion=False)


@app.command()
def enrol(
    token: TokenOption,
    name: NameOption,
    to: Annotated[Path, typer.Option("--to", help="Folder for the certificate, which the agent renews there.")] = Path(
        "/var/lib/drengine-agent/identity"
    ),
    json: JsonOption = False,
) -> None:
    """Get a certificate for this source or recovery host by a token; the key is made here and stays here."""
    join(token, name, to, json=json)
