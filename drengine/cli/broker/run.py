"""`drengine broker run`: a message broker for one machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from drengine.config import ADDRESS, BAD_CONFIG
from drengine.control.broker import embedded_broker
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.process.signals import signalled
from drengine.terminal import note
from drengine.transport.files import TlsFiles

app = typer.Typer(add_completion=False)


@app.command()
def run(
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT; on loopback without TLS.")] = "127.0.0.1:1883",
    site: Annotated[str, typer.Option("--site", help="Whose parties are let in.")] = "main",
    certificate: Annotated[Path | None, typer.Option("--certificate", help="PEM file with its certificate.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="PEM file with its key.")] = None,
    ca: Annotated[Path | None, typer.Option("--ca", help="PEM file with the CA of its clients.")] = None,
    crl: Annotated[Path | None, typer.Option("--crl", help="PEM file with that CA's newest CRL.")] = None,
) -> None:
    """Run an MQTT broker until interrupted, which keeps parties apart by their identities. Nothing is kept on disk."""
    try:
        address = ADDRESS.parse(listen)
    except ValueError as error:
        raise DrengineError(BAD_CONFIG, f"--listen: {error}") from error
    files = TlsFiles.together(certificate, key, ca, crl, where="a broker with TLS")
    check_name(site, what="site")

    async def serve() -> None:
        async with embedded_broker(address, site=site, files=files):
            note(f"broker at {address}; Ctrl-C ends it")
            await signalled().wait()

    asyncio.run(serve())
