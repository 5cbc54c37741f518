"""`drengine ca serve`: the authority's service as a daemon."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from drengine.config import Address
from drengine.enrolment.handout import PACKAGED
from drengine.enrolment.http import HttpsServer
from drengine.enrolment.metrics import AuthorityMetrics
from drengine.enrolment.seen import remember_address
from drengine.enrolment.service import AuthorityService
from drengine.identity.authority import Authority
from drengine.identity.signing import checked_host
from drengine.model.clock import Clock, SystemClock
from drengine.process.descriptors import raise_descriptor_limit
from drengine.process.signals import signalled
from drengine.telemetry import MetricsEndpoint, notify, quiet_accept_failures

log = logging.getLogger("drengine.enrolment")


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        listen: where.
        hosts: the names and addresses that hosts know us by; the first one goes into tokens.
        valid_seconds: how long a certificate is valid that is given out.
        metrics: where Prometheus may ask; None: nowhere.
        agent: the one-file agent that is handed out.
    """

    listen: Address
    hosts: tuple[str, ...]
    valid_seconds: float
    metrics: Address | None = None
    agent: Path = PACKAGED


class AuthorityDaemon:
    """The service, its server and its metrics; `start` and `stop` belong to one event loop."""

    def __init__(self, authority: Authority, options: ServeOptions, *, clock: Clock | None = None) -> None:
        self._authority = authority
        self._options = options
        self._clock = clock or SystemClock()
        self._cleanup = AsyncExitStack()

    async def start(self) -> Address:
        """Listen; returns where hosts find us.

        Raises:
            DrengineError: the CA can't be used, or the address can't be listened on.
        """
        options = self._options
        hosts = tuple(checked_host(each) for each in options.hosts)
        metrics = AuthorityMetrics(self._clock)
        metrics.ca_ends_at = self._authority.ends_at
        service = AuthorityService(
            self._authority,
            hosts,
            seconds=options.valid_seconds,
            clock=self._clock,
            metrics=metrics,
            agent=options.agent.absolute(),
        )
        self._cleanup.callback(service.close)
        server = HttpsServer(service, service.tls, self._clock)
        metrics.turned_away = lambda: server.turned_away
        address = Address(hosts[0], server.start(options.listen.host, options.listen.port))
        self._cleanup.push_async_callback(server.close)
        working = asyncio.create_task(service.run())
        self._cleanup.push_async_callback(_end, working)
        remember_address(self._authority.folder, address)
        if options.metrics is not None:
            endpoint = MetricsEndpoint(options.metrics.host, options.metrics.port, metrics, not_ready=lambda: "")
            self._cleanup.push_async_callback(asyncio.to_thread, endpoint.close)
        return address

    async def stop(self) -> None:
        """End all of it."""
        await self._cleanup.aclose()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def run_authority(authority: Authority, options: ServeOptions) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code.

    Raises:
        DrengineError: as AuthorityDaemon.start.
    """
    daemon = AuthorityDaemon(authority, options)
    stopping = signalled(insist=True, reload=lambda: log.info("there is nothing to read again"))
    raise_descriptor_limit()
    quiet_accept_failures(asyncio.get_running_loop())
    address = await daemon.start()
    log.info("the authority is ready", extra={"address": str(address), "ca": str(authority.folder)})
    notify("READY=1")
    await stopping.wait()
    notify("STOPPING=1")
    await daemon.stop()
    return 0
