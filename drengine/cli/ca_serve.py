"""`drengine ca serve`: the authority as a service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.ca_options import CaOption, PassphraseOption, open_ca, seconds_of, typed_address
from drengine.config.kinds import show_duration
from drengine.enrolment.handout import PACKAGED
from drengine.enrolment.serving import ServeOptions, run_authority
from drengine.identity.authority import CERTIFICATE_SECONDS
from drengine.telemetry import setup_logging

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    ca: CaOption,
    host: Annotated[
        list[str],
        typer.Option("--host", help="Name or address by which hosts reach this authority; the first is in tokens."),
    ],
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT to listen on.")] = "0.0.0.0:7444",
    valid: Annotated[
        str, typer.Option("--valid", help="How long a certificate is valid that is given out; it is renewed before.")
    ] = show_duration(CERTIFICATE_SECONDS),
    metrics: Annotated[str | None, typer.Option("--metrics", help="HOST:PORT of the Prometheus endpoint.")] = None,
    agent: Annotated[
        Path, typer.Option("--agent", help="The one-file agent that hosts which join are given, at /agent.")
    ] = PACKAGED,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Let hosts enrol with tokens, renew by themselves and hear of revocations; in the foreground, until SIGTERM."""
    options = ServeOptions(
        typed_address(listen),
        tuple(host),
        seconds_of(valid),
        None if metrics is None else typed_address(metrics),
        agent,
    )
    setup_logging(level="info", form="auto")
    raise typer.Exit(asyncio.run(run_authority(open_ca(ca, passphrase_file), options)))
