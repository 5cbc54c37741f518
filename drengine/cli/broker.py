"""`drengine broker`: a message broker for one machine."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from drengine.config import ADDRESS, BAD_CONFIG
from drengine.control.broker import embedded_broker
from drengine.model.errors import DrengineError
from drengine.process.signals import signalled
from drengine.terminal import note

app = typer.Typer(add_completion=False)


@app.command()
def run(
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT on loopback.")] = "127.0.0.1:1883",
) -> None:
    """Run an MQTT broker on loopback until interrupted. It keeps nobody apart; for more machines use Mosquitto."""
    try:
        address = ADDRESS.parse(listen)
    except ValueError as error:
        raise DrengineError(BAD_CONFIG, f"--listen: {error}") from error

    async def serve() -> None:
        async with embedded_broker(address):
            note(f"broker at {address}; Ctrl-C ends it")
            await signalled().wait()

    asyncio.run(serve())
