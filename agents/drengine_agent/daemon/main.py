"""The agent as a process: signals, operators, metrics, readiness around one service.Agent."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from dataclasses import replace
from pathlib import Path
from random import Random

from drengine.enrolment.keeper import keeping
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.process.signals import ask_on_signals
from drengine.telemetry.accepting import quiet_accept_failures
from drengine.telemetry.endpoint import MetricsEndpoint
from drengine.telemetry.notify import notify
from drengine_agent.config import AgentConfig, load_config
from drengine_agent.daemon.home import housed
from drengine_agent.daemon.metrics import AgentMetrics
from drengine_agent.daemon.operator import OperatorSocket
from drengine_agent.daemon.policy import SitePolicy
from drengine_agent.daemon.remote import RemoteOrders
from drengine_agent.daemon.service import Agent
from drengine_agent.daemon.trackers import configured_capture
from drengine_agent.errors import STATE_DAMAGED
from drengine_agent.program import PROGRAM

log = logging.getLogger("drengine.agent")


async def serve(config: AgentConfig, config_path: Path) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP has the bandwidth limit and the certificates read again.

    Raises:
        DrengineError: it can't start, or its state can't be kept.
    """
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, log.info, "there is nothing to read again yet")
    while await _serve_as_it_is(housed(config, SystemClock()), config_path):
        log.info("beginning anew, as the home of another source")


async def _serve_as_it_is(config: AgentConfig, config_path: Path) -> bool:
    """Whether it has become the home of a source meanwhile, and goes on as that source's agent."""
    policy = SitePolicy(config)
    if config.control.address is None:
        await _replicate(policy, config_path, None)
        return False
    anew = asyncio.Event()
    remote = RemoteOrders(config, SystemClock(), Random(secrets.randbits(64)), policy, anew.set)
    at_broker = asyncio.create_task(remote.run())
    at_broker.add_done_callback(_control_ended)
    try:
        if config.control.lease:
            notify("READY=1\nSTATUS=waiting for the broker before anything is served")
            await _first_lease(remote, at_broker)
        await _replicate(policy, config_path, remote, anew)
    finally:
        at_broker.cancel()
        await asyncio.gather(at_broker, return_exceptions=True)
    if remote.has_settled:
        return True
    if anew.is_set():
        os.execv(PROGRAM, [str(PROGRAM), "run", "--config", str(config_path)])  # by whoever started it, it still runs
    return False


async def _first_lease(remote: RemoteOrders, at_broker: asyncio.Task[None]) -> None:
    begun = asyncio.create_task(remote.lease.begun())
    try:
        await asyncio.wait({begun, at_broker}, return_when=asyncio.FIRST_COMPLETED)
        if at_broker.done():
            raise DrengineError(STATE_DAMAGED, f"without control messages there is no lease: {at_broker.exception()}")
    finally:
        begun.cancel()


def _control_ended(task: asyncio.Task[None]) -> None:
    """Whatever happens at the broker, replication goes on."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("control messages have ended: %s", error)


async def _replicate(
    policy: SitePolicy, config_path: Path, remote: RemoteOrders | None, anew: asyncio.Event | None = None
) -> None:
    config = policy.config
    metrics = AgentMetrics(config.source, configured_capture(config).figures_class)
    agent = Agent(config, observer=metrics)
    agent.settings = policy.in_use
    metrics.watch(agent)
    files = (config.tls.files(), config.control.tls_files())
    async with keeping(files, SystemClock(), lambda: _take_certificates(agent, remote)) as metrics.keepers:
        ending = asyncio.create_task(_stop_when(anew, agent)) if anew else None
        try:
            await _replicate_with(policy, config_path, remote, agent, metrics)
        finally:
            if ending is not None:
                ending.cancel()


async def _replicate_with(
    policy: SitePolicy, config_path: Path, remote: RemoteOrders | None, agent: Agent, metrics: AgentMetrics
) -> None:
    config = policy.own
    running = asyncio.create_task(agent.run())
    ask_on_signals(lambda: _stop(agent))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, agent, remote, policy, config_path)
    quiet_accept_failures(asyncio.get_running_loop())
    operators = OperatorSocket(agent, config.control_socket)
    endpoint: MetricsEndpoint | None = None
    lease: asyncio.Task[None] | None = None
    try:
        await operators.start()
        if remote is not None:
            remote.attach(agent, metrics.bytes_by_network)
            metrics.watch_party(remote.party)
            lease = asyncio.create_task(remote.keep_lease())
        if config.metrics is not None:
            endpoint = MetricsEndpoint(
                config.metrics.host,
                config.metrics.port,
                metrics,
                not_ready=agent.not_ready,
            )
        notify("READY=1")
        log.info("protecting source %s", config.source, extra={"volumes": len(config.volume)})
    except BaseException:
        agent.stop()
        raise
    finally:
        await running
        if lease is not None:
            lease.cancel()
        if endpoint is not None:
            endpoint.close()
        await operators.close()


async def _stop_when(anew: asyncio.Event, agent: Agent) -> None:
    await anew.wait()
    agent.stop()


def _stop(agent: Agent) -> None:
    notify("STOPPING=1")
    agent.stop()


def _take_certificates(agent: Agent, remote: RemoteOrders | None) -> None:
    """Use what lies on disk now, and leave a target that was revoked."""
    agent.connector.reload()
    if agent.connector.is_peer_revoked:
        log.error("the target's certificate was revoked: the session with it ends")
        agent.replication.interrupt()
    if remote is not None:
        remote.party.link.reload()


def _reload(agent: Agent, remote: RemoteOrders | None, policy: SitePolicy, path: Path) -> None:
    _take_certificates(agent, remote)
    try:
        fresh = load_config(path)
    except DrengineError as error:
        log.error("the configuration was not taken: %s", error)  # noqa: TRY400 - the line says all; no traceback
        return
    policy.own = replace(
        policy.own,
        bandwidth=fresh.bandwidth,
        point_interval=fresh.point_interval,
        cuts=replace(policy.own.cuts, kinds=fresh.cuts.kinds),
        control=replace(policy.own.control, local_settings=fresh.control.local_settings),
    )
    asyncio.get_running_loop().run_in_executor(None, agent.tune, policy.config, policy.in_use)
    told = ", ".join(f"{name} {value}" for name, (value, _) in policy.in_use.items())
    log.info("from now on: %s (other options need a restart)", told)
