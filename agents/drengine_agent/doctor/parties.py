"""Whether those whom the agent needs answer, and would let it in: the targets, the broker, the authority."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path

from drengine.config import Address
from drengine.control.errors import BROKER_UNREACHABLE
from drengine.enrolment.client import reach_authority
from drengine.identity.names import Role, identity_among
from drengine.identity.tokens import Invitation
from drengine.model.errors import DrengineError
from drengine.transport.endpoints import reach
from drengine.transport.errors import TIMED_OUT, UNREACHABLE
from drengine.transport.files import TlsFiles
from drengine.transport.networks import DataNetworks
from drengine.transport.tls_check import Side, check_files
from drengine_agent.config import AgentConfig
from drengine_agent.daemon.trial import ANYWHERE, try_broker, try_target
from drengine_agent.doctor.facts import Reach, Trouble
from drengine_agent.errors import SESSION_MISSING
from drengine_agent.program import PACKAGED, PROGRAM, own_archive

NOT_THERE = (UNREACHABLE, TIMED_OUT, SESSION_MISSING, BROKER_UNREACHABLE)
"""Time may mend these."""


def reached(config: AgentConfig) -> Iterator[Reach]:
    """The targets and the broker of a configuration whose certificates are there."""
    alone = not is_running(config.state_directory)
    for address in config.target:
        yield _told("target", address, try_target(config, address, hello=alone))
    if config.control.address is not None:
        yield _told("broker", config.control.address, _done(try_broker(config), "lets this agent in"))


def reached_before_enrolling(invitation: Invitation, config: AgentConfig) -> Iterator[Reach]:
    """The authority that a token names, and whether targets and broker take connections at all."""
    yield _told(
        "authority", invitation.authority, _done(reach_authority(invitation), "is the one that the token names")
    )
    local = DataNetworks.parse(config.data_networks)
    for target in config.target:
        yield _told("target", target, _done(reach(target.host, target.port, local), "takes connections"))
    if broker := config.control.address:
        yield _told("broker", broker, _done(reach(broker.host, broker.port, ANYWHERE), "takes connections"))


def certificate_troubles(config: AgentConfig) -> Iterator[Trouble]:
    """What is wrong with the certificates that the configuration names: files, pair, validity, for whom they are."""
    sections = {"[tls]": config.tls.files(), "[control]": config.control.tls_files("[control]")}
    for files in dict.fromkeys(each for each in sections.values() if each is not None):
        yield from _troubles(files, config.party)


def program_troubles() -> Iterator[Trouble]:
    """A second program beside the package's would leave two versions on this host."""
    if own_archive() not in (None, PROGRAM) and PACKAGED.exists():
        yield Trouble(
            "package",
            f"a package has put the agent at {PACKAGED}, and this is another file",
            f"Run {PACKAGED} with the same options; the package manager upgrades it.",
        )


def is_running(state_directory: Path) -> bool:
    """Whether an agent has this state directory in use."""
    try:
        handle = os.open(state_directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _troubles(files: TlsFiles, source: str) -> Iterator[Trouble]:
    try:
        report = check_files(files, Side.CLIENT, now=time.time())
        named = identity_among(report.certificate.uris)
    except DrengineError as error:
        yield Trouble("certificate", error.message, error.hint)
        return
    if named is not None and (named.role, named.name) != (Role.AGENT, source):
        yield Trouble(
            "certificate",
            f"{files.certificate} is {named}, and this host would be agent/{source}",
            f"Name the certificate of agent/{source}, or get one by --token.",
        )


def _told(role: str, address: Address, trying: Awaitable[str]) -> Reach:
    try:
        tried = asyncio.run(_awaited(trying))
    except DrengineError as error:
        return Reach(str(address), error.message, role=role, hint=error.hint, refused=error.kind not in NOT_THERE)
    return Reach(str(address), tried=tried, role=role)


async def _awaited(trying: Awaitable[str]) -> str:
    return await trying


async def _done(trying: Awaitable[None], what: str) -> str:
    await trying
    return what
