"""`drengine broker`: a message broker for one machine."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from drengine.terminal import app as make_app
from drengine.terminal import note

app = make_app("broker", "A message broker for one machine, for trying things out.")


@app.command()
def run(
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT on loopback.")] = "127.0.0.1:1883",
) -> None:
    """Run an MQTT broker on loopback until interrupted. It keeps nobody apart; for more machines use Mosquitto."""
    from drengine.config import ADDRESS, BAD_CONFIG  # noqa: PLC0415
    from drengine.control.broker import embedded_broker  # noqa: PLC0415
    from drengine.model.errors import DrengineError  # noqa: PLC0415
    from drengine.process.signals import signalled  # noqa: PLC0415

    try:
        address = ADDRESS.parse(listen)
    except ValueError as error:
        raise DrengineError(BAD_CONFIG, f"--listen: {error}") from error

    async def serve() -> None:
        async with embedded_broker(address):
            note(f"broker at {address}; Ctrl-C ends it")
            await signalled().wait()

    asyncio.run(serve())
