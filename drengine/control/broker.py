"""A broker for one machine: rumqttd in a child process, on loopback only, for the quickstart and the demo.

It speaks MQTT 5 and keeps nothing on disk, which is enough: parties say again who they are after each connection. It
has no access control; any process that can connect to loopback can say anything. For more than one
machine there is Mosquitto (deploy/mosquitto) or the region's broker.

The child watches a pipe from us and ends when it closes, so it does not outlive us even when we are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from iotcore import Broker

from drengine.config import Address
from drengine.control.errors import BROKER_FAILED
from drengine.control.message import PACKET_BYTES_MAX
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.transport.networks import is_loopback

log = logging.getLogger("drengine.control")

START_SECONDS = 15.0
LOOK_SECONDS = 0.5
CONFIGURATION = """\
id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 1000
max_segment_size = 10485760
max_segment_count = 4
[v5.1]
name = "v5"
listen = "{listen}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {packet_bytes_max}
max_inflight_count = 200
dynamic_filters = true
"""


class EmbeddedBroker:
    """One broker in a child process."""

    def __init__(self, address: Address, *, clock: Clock | None = None) -> None:
        """
        Raises:
            DrengineError: BROKER_FAILED, the address is not on loopback.
        """
        host = "127.0.0.1" if address.host == "localhost" else address.host
        try:
            local = is_loopback(host)
        except ValueError:
            local = False
        if not local:
            raise DrengineError(BROKER_FAILED, f"{address} is not on loopback, and this broker keeps nobody out")
        self.address = Address(host, address.port)
        self._clock = clock or SystemClock()
        self._broker: Broker | None = None

    @property
    def pid(self) -> int:
        """Of the child process; 0 when there is none."""
        process = self._broker._process if self._broker else None
        return process.pid if process else 0

    async def start(self) -> None:
        """Start it and wait until it takes connections.

        Raises:
            DrengineError: BROKER_FAILED.
        """
        try:
            self._broker = await asyncio.to_thread(self._start)
        except (OSError, RuntimeError, ValueError) as error:
            raise DrengineError(BROKER_FAILED, f"{self.address}: {error}") from error
        log.info("embedded broker at %s", self.address)

    async def run(self) -> None:
        """Keep it running until cancelled: a child that ends is started again. Call `start` before."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            if self._broker is None or not self._broker.is_running:
                log.error("the embedded broker has ended; starting it again")
                try:
                    await self.start()
                except DrengineError as error:
                    log.error("%s", error)  # noqa: TRY400 - the line says all

    async def stop(self) -> None:
        """End it."""
        if self._broker is not None:
            await asyncio.to_thread(self._broker.stop)
            self._broker = None

    def _start(self) -> Broker:
        with tempfile.TemporaryDirectory(prefix="drengine-broker-") as directory:
            path = Path(directory) / "rumqttd.toml"
            path.write_text(CONFIGURATION.format(listen=self.address, packet_bytes_max=PACKET_BYTES_MAX))
            broker = Broker(config_path=str(path))
            return broker.start(START_SECONDS)


@contextlib.asynccontextmanager
async def embedded_broker(address: Address) -> AsyncIterator[EmbeddedBroker]:
    """One that runs, and is kept running, within this context.

    Raises:
        DrengineError: BROKER_FAILED.
    """
    broker = EmbeddedBroker(address)
    await broker.start()
    keeping = asyncio.create_task(broker.run())
    try:
        yield broker
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await broker.stop()
