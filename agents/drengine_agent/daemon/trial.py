"""Trying what an agent with a configuration would do, before it runs: reach its targets, and its broker.

Nothing is changed by it: a session that only said HELLO leaves nothing at a target.
"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from random import Random

from drengine.config import Address, joined
from drengine.control.config import BrokerOptions
from drengine.control.errors import BROKER_UNREACHABLE
from drengine.control.link import Link
from drengine.control.messages import PartyKind
from drengine.control.topics import Leaf, Topic
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError, error_kinds
from drengine.transport.causes import CAUSES
from drengine.transport.endpoints import reach
from drengine.transport.errors import TIMED_OUT, UNREACHABLE, TransportError
from drengine.transport.networks import DataNetworks
from drengine.wire.events import Purpose
from drengine_agent.config import AgentConfig
from drengine_agent.daemon.connector import Connector
from drengine_agent.daemon.state import read_state
from drengine_agent.errors import BROKER_REFUSED, SESSION_MISSING, SESSION_REFUSED
from drengine_agent.ship.session import Session, SessionEnded, SessionMoved, hello_for

TRY_SECONDS = 10.0
ANYWHERE = DataNetworks.parse(("0.0.0.0/0", "::/0"))
"""A broker may be anywhere: control messages carry no block data."""
INSTANCE_BYTES = 16


async def try_targets(config: AgentConfig) -> None:
    """Open a session with any of the targets, and leave it.

    Raises:
        DrengineError: as `try_target`, of the one that answered, or of the first; there is none that would do.
    """
    failure: DrengineError | None = None
    for address in config.target:
        try:
            await try_target(config, address, hello=True)
        except DrengineError as error:
            if failure is None or failure.kind is SESSION_MISSING:
                failure = error
        else:
            return
    assert failure is not None
    raise failure


async def try_target(config: AgentConfig, address: Address, *, hello: bool, clock: Clock | None = None) -> str:
    """Connect to a target as the agent would; with `hello` also open a session, and leave it. Tells what it did.

    A session must not be opened while an agent runs with this configuration: the target would take it for a second one.

    Raises:
        DrengineError: SESSION_MISSING, it can't be reached; SESSION_REFUSED, it answered and refused; TLS_FAILED,
            PLAIN_REFUSED and others of the transport.
    """
    clock = clock or SystemClock()
    where = f"the target {address}"
    try:
        async with asyncio.timeout(TRY_SECONDS):
            connect = Connector(config, clock, None)
            if not hello:
                await (await connect(address)).close()
                return "takes connections; the agent that runs has the session"
            greeting = hello_for(
                config.source,
                secrets.token_bytes(INSTANCE_BYTES),
                read_state(config.state_directory).generation,
                Purpose.REPLICATE,
            )
            session = await Session.open(partial(connect, address), greeting, clock)
            await session.say_goodbye()
            await session.close()
    except SessionMoved as moved:
        return f"sends this source on to {joined(moved.to)}"
    except SessionEnded as error:
        code = str(error).partition(":")[0]
        hints = {**{kind.id: kind.hint for kind in error_kinds()}, **{each.code: each.hint for each in CAUSES.values()}}
        raise DrengineError(SESSION_REFUSED, f"{where} refuses: {error}", hint=hints.get(code)) from error
    except TransportError as error:
        kind = SESSION_MISSING if error.kind in (UNREACHABLE, TIMED_OUT) else error.kind
        raise DrengineError(kind, f"{where}: {error.message}", hint=error.hint) from error
    except TimeoutError as error:
        raise DrengineError(SESSION_MISSING, f"{where} did not answer in {TRY_SECONDS:g} s") from error
    except (OSError, EOFError) as error:
        raise DrengineError(SESSION_MISSING, f"{where}: {error or 'it closed the connection'}") from error
    return "opens a session for this source"


async def try_broker(config: AgentConfig, *, clock: Clock | None = None) -> None:
    """Connect to the broker as the agent would.

    Raises:
        DrengineError: as `try_party`.
    """
    await try_party(config.control, PartyKind.AGENT, config.party, clock=clock)


async def try_party(options: BrokerOptions, kind: PartyKind, name: str, *, clock: Clock | None = None) -> None:
    """Connect to the broker as a party would, under another client id.

    Raises:
        DrengineError: BROKER_UNREACHABLE; BROKER_REFUSED, it answers and does not let us in.
    """
    assert options.address is not None
    topic = Topic(options.site, kind, name, Leaf.COMMAND)
    link = Link(
        options,
        client_id=f"{kind}-{name}-{secrets.token_hex(4)}",
        filters=[str(topic)],
        receive=lambda message: None,
        clock=clock or SystemClock(),
        random=Random(),
    )
    connecting = asyncio.create_task(link.run())
    try:
        if not await link.wait_connected(TRY_SECONDS):
            try:
                await reach(options.address.host, options.address.port, ANYWHERE)
            except TransportError as error:
                raise DrengineError(BROKER_UNREACHABLE, f"the broker {error.message}") from error
            raise DrengineError(BROKER_REFUSED, f"the broker {options.address}: {link.detail}")
    finally:
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
