"""Whether this host could carry out a launch: looked at before the day, and nothing is done."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from drengine.bubble import bubble_faults
from drengine.control.attach import (
    BUBBLE,
    HOST,
    HYDRATED,
    ISCSI,
    AttachOrder,
    HostAnswer,
    HostFinding,
    HostQuestion,
    breaks_isolation,
)
from drengine.control.refusals import OrderRefusedError
from drengine.identity.names import Identity, Role, identity_among
from drengine.linux.links import links
from drengine.linux.mounts import mount_at, read_mounts
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdAddress, NbdClient
from drengine.process.programs import program_fault
from drengine.terminal import human_bytes, human_duration
from drengine.transport.causes import cause_of, details_of
from drengine.transport.tls import certificates_in
from drengine.transport.x509 import parse_certificate
from drengine_agent.standby.config import StandbyConfig
from drengine_agent.standby.ways import COPY, MOUNT_TOOLS, Choice, choose

GREET_SECONDS = 5.0
EXPIRY_SECONDS_MIN = 7 * 86400.0
FREE_BYTES_MIN = 64 << 20

Secure = Callable[[str], str]
"""A disk's URI as this host would attach it, from inside its data networks. Raises DrengineError."""


def examine(question: HostQuestion, config: StandbyConfig, secure: Secure) -> HostAnswer:
    """What was looked at. Blocks for a few seconds at most, where the disks' server says nothing."""
    order, choice = question.order, _choice(question)
    looks: tuple[Callable[[], Iterator[HostFinding]], ...] = (
        partial(_programs, order),
        partial(_attaches, order, choice),
        partial(_allowed, order, config, secure),
        partial(_places, order),
        partial(_network, order),
        partial(_room, question, choice, config),
        partial(_certificate, config),
        partial(_export, order, choice, secure),
    )
    findings = [each for look in looks for each in look()]
    return HostAnswer(findings=findings, now_ns=time.time_ns(), attach="" if choice.fault else choice.way)


def _choice(question: HostQuestion) -> Choice:
    """How it would attach the disks."""
    attach = question.order.settings.attach
    if attach == HYDRATED:
        return Choice(attach, fault="" if os.geteuid() == 0 else "it does not run as root, so it can write to no disk")
    return choose(attach, luns=question.luns)


def _programs(order: AttachOrder) -> Iterator[HostFinding]:
    settings, alone = order.settings, order.isolated and order.settings.network != HOST
    tools = [
        *(MOUNT_TOOLS if settings.attach != HYDRATED else ()),
        *(["ip"] if alone else []),
        *(["runuser"] if alone and settings.user else []),
    ]
    faults = [program_fault(tool) for tool in tools]
    commands = [argv[0] for argv in (settings.start, settings.stop, settings.health) if argv]
    faults += [program_fault(command, user=settings.user) for command in commands]
    told = "; ".join(dict.fromkeys(filter(None, faults)))
    yield HostFinding(check="host-programs", seen=f"{len(tools) + len(commands)} programs are there", fault=told)


def _attaches(order: AttachOrder, choice: Choice) -> Iterator[HostFinding]:
    """In which way, and why in no better one."""
    seen = f"by {choice.way}" + (f" ({choice.why})" if choice.why else "")
    seen = "it fills volumes, and attaches nothing" if choice.way == HYDRATED else seen
    fault = f"{choice.way}: {choice.fault}" if choice.fault else ""
    warns = not fault and choice.way == COPY and order.settings.attach != COPY
    if warns:
        fault = f"only {seen}: what the workload writes is not protected before it is quiesced"
    yield HostFinding(check="host-attaches", seen=seen, fault=fault, warns=warns)


def _allowed(order: AttachOrder, config: StandbyConfig, secure: Secure) -> Iterator[HostFinding]:
    fault = breaks_isolation(order)
    try:
        config.allow.require(order)
        for uri in order.disks.values():
            secure(uri)
    except OrderRefusedError as error:
        fault = str(error)
    except DrengineError as error:
        fault = error.message
    yield HostFinding(check="host-allows", seen="its file allows the launch", fault=fault)


def _places(order: AttachOrder) -> Iterator[HostFinding]:
    mounts = read_mounts()
    taken = [(at, mount_at(Path(at), mounts)) for at in (mount.at for mount in order.settings.mounts)]
    faults = [f"{at}: {found.source} ({found.kind}) is mounted there" for at, found in taken if found is not None]
    yield HostFinding(check="host-places", seen=f"{len(taken)} places are free", fault="; ".join(faults))


def _network(order: AttachOrder) -> Iterator[HostFinding]:
    """A drill's bubble, or the interface that takes over the addresses: whether it could."""
    settings, fault = order.settings, ""
    if order.isolated and settings.network == BUBBLE:
        seen, fault = "a drill's bubble can be made", "; ".join(bubble_faults())
    elif not order.isolated and settings.interface:
        seen = f"{settings.interface} can take over addresses"
        try:
            with links() as found:
                link = found.find(settings.interface)
            fault = "" if link and link.is_up else f"there is no interface {settings.interface} that is up"
        except OSError as error:
            fault = f"the kernel does not tell: {error.strerror or error}"
    else:
        return
    yield HostFinding(check="host-network", seen=seen, fault=fault)


def _room(question: HostQuestion, choice: Choice, config: StandbyConfig) -> Iterator[HostFinding]:
    state = os.statvfs(config.state_directory)
    free = state.f_bavail * state.f_frsize
    copied = choice.way == COPY or (question.order.hydrate and choice.way != ISCSI)
    copies = sum(question.size_bytes.values()) if copied else 0
    seen = f"{human_bytes(free)} are free in {config.state_directory}"
    needed = f"{human_bytes(copies)} are needed for copies of the disks" if copies else "64 MiB are needed"
    fault = f"{seen}, {needed}" if free < max(copies, FREE_BYTES_MIN) else ""
    yield HostFinding(check="host-room", seen=seen, fault=fault)


def _certificate(config: StandbyConfig) -> Iterator[HostFinding]:
    """That with which disks are attached; the broker has looked at the one for orders."""
    files = config.tls.files()
    if files is None:
        return
    path = files.certificate
    seen, fault = str(path), ""
    try:
        ours, *_ = certificates_in(path)
        left = ours.ends_at - time.time()
        seen = f"{path} counts for {human_duration(max(0.0, left))}"
        identity = identity_among(ours.uris)
    except DrengineError as error:
        fault = error.message
    except ValueError:
        fault = f"{path} holds no certificate"
    else:
        if left < EXPIRY_SECONDS_MIN and left < (ours.ends_at - ours.begins_at) / 4:
            fault = seen if left > 0 else f"{path} is over"
        elif identity and (identity.role, identity.name) != (Role.HOST, config.name):
            fault = f"{path} is of {identity}, and this is host/{config.name}"
    yield HostFinding(check="host-certificate", seen=seen, fault=fault)


def _export(order: AttachOrder, choice: Choice, secure: Secure) -> Iterator[HostFinding]:
    """The way to the disks, and who answers there. All disks of an order come the same way; LUNs are not there yet."""
    for uri in [] if choice.way == ISCSI else list(order.disks.values())[:1]:
        try:
            address = NbdAddress.parse(uri).place
            where = address if isinstance(address, str) else ":".join(map(str, address))
            greeting = NbdClient.greet(secure(uri), timeout_seconds=GREET_SECONDS)
        except ssl.SSLError as error:
            cause = cause_of(error)
            fault = f"{where}: {cause.meaning} ({details_of(error)})"
            yield HostFinding(check="export-certificate", seen=where, fault=fault)
            return
        except OSError as error:
            yield HostFinding(check="export-reachable", seen=uri, fault=f"{where}: {error.strerror or error}")
            return
        except DrengineError as error:
            yield HostFinding(check="export-reachable", seen=uri, fault=error.message)
            return
        yield HostFinding(check="export-reachable", seen=f"{where} answers")
        if greeting.certificate is not None:
            yield _servers(where, greeting.certificate)


def _servers(where: str, der: bytes) -> HostFinding:
    """The certificate that the disks' server showed, which was believed."""
    theirs = parse_certificate(der)
    left = theirs.ends_at - time.time()
    identity: Identity | None = identity_among(theirs.uris)
    seen, fault = f"the certificate of {where} counts for {human_duration(left)}", ""
    if identity is not None and identity.role is not Role.TARGET:
        fault = f"{where} shows the certificate of {identity}, which is no target"
    elif left < EXPIRY_SECONDS_MIN and left < (theirs.ends_at - theirs.begins_at) / 4:
        fault = seen
    return HostFinding(check="export-certificate", seen=seen, fault=fault)
