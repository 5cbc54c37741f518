"""The agent as a process: signals, control socket, metrics, readiness around one service.Agent."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from pathlib import Path
from random import Random

from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.telemetry.endpoint import MetricsEndpoint
from drengine.telemetry.notify import notify
from drengine_agent.config import AgentConfig, load_config
from drengine_agent.control import ControlServer
from drengine_agent.metrics import AgentMetrics
from drengine_agent.service import Agent

log = logging.getLogger("drengine.agent")


async def serve(config: AgentConfig, config_path: Path) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP takes a changed bandwidth limit.

    Raises:
        DrengineError: it can't start, or its state can't be kept.
    """
    metrics = AgentMetrics(config.source)
    agent = Agent(config, observer=metrics)
    metrics.watch(agent)
    running = asyncio.create_task(agent.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, agent)
    loop.add_signal_handler(signal.SIGHUP, _reload, agent, config_path)
    control = ControlServer(agent, config.control_socket)
    endpoint: MetricsEndpoint | None = None
    party: asyncio.Task[None] | None = None
    try:
        await control.start()
        party = _start_party(agent)
        if config.metrics is not None:
            endpoint = MetricsEndpoint(
                config.metrics.host, config.metrics.port, metrics, ready=lambda: agent.pipeline is not None
            )
        notify("READY=1")
        log.info("protecting source %s", config.source, extra={"volumes": len(config.volume)})
    except BaseException:
        agent.stop()
        raise
    finally:
        await running
        if party is not None:
            party.cancel()
            await asyncio.gather(party, return_exceptions=True)
        if endpoint is not None:
            endpoint.close()
        await control.close()


def _start_party(agent: Agent) -> asyncio.Task[None] | None:
    """Be at the broker, if one is configured; whatever happens there, replication goes on."""
    if agent.config.control.address is None:
        return None
    from drengine_agent.remote import agent_party  # noqa: PLC0415 - who is told no broker starts faster without it

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("control messages have ended: %s", error)

    task = asyncio.create_task(agent_party(agent, SystemClock(), Random(secrets.randbits(64))).run())
    task.add_done_callback(ended)
    return task


def _stop(agent: Agent) -> None:
    notify("STOPPING=1")
    agent.stop()


def _reload(agent: Agent, path: Path) -> None:
    try:
        fresh = load_config(path)
    except DrengineError as error:
        log.error("the configuration was not taken: %s", error)  # noqa: TRY400 - the line says all; no traceback
        return
    agent.set_bandwidth(fresh.schedule)
    log.info("bandwidth limit: %s (other options need a restart)", fresh.bandwidth)
