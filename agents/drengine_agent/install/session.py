"""What makes an installation more than files: a certificate, a session that works, and the first recovery point."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from drengine.control.errors import BROKER_UNREACHABLE
from drengine.control.messages import PartyKind
from drengine.enrolment.client import enrol
from drengine.enrolment.place import Place
from drengine.identity.errors import EnrolmentError
from drengine.identity.names import Identity, Role, identity_among
from drengine.identity.tokens import Invitation
from drengine.model.errors import DrengineError
from drengine.model.states import ReplicationState
from drengine.terminal import human_bytes, note
from drengine.transport.x509 import parse_certificate
from drengine_agent.config import AgentConfig, parse_config
from drengine_agent.daemon.client import ask
from drengine_agent.daemon.trial import try_broker, try_party, try_targets
from drengine_agent.errors import SESSION_MISSING
from drengine_agent.standby.config import parse_standby_config

LOOK_SECONDS = 0.2
IN_SESSION = frozenset({ReplicationState.INITIAL_SYNC, ReplicationState.RESCAN, ReplicationState.BACKLOG})
"""Copying goes on; a point follows when it is done."""
KEPT = "The certificate is kept and nothing else was installed; the same command goes on."


def has_certificate(folder: Path, name: str) -> bool:
    """Whether this host has enrolled there under this name, and its certificate did not expire while it was off."""
    place = Place(folder)
    if not place.is_enrolled:
        return False
    certificate = place.certificate()
    named = identity_among(parse_certificate(certificate.public_bytes(serialization.Encoding.DER)).uris)
    is_ours = named is not None and named.name == name
    return is_ours and certificate.not_valid_after_utc.timestamp() > time.time()


def enrol_host(source: str, token: str, folder: Path, role: Role) -> None:
    """Get the certificate; refused, nothing is left.

    Raises:
        EnrolmentError, TransportError: why there is none.
    """
    missing = [each for each in (folder, folder.parent) if not each.exists()]
    place = Place(folder)
    try:
        _require_role(asyncio.run(enrol(Invitation.parse(token), source, place)), role)
    except EnrolmentError:
        if folder in missing:
            _clear(folder, missing)
        raise


def _require_role(identity: Identity, role: Role) -> None:
    if identity.role is not role:
        raise EnrolmentError("token-role", f"it made this host {identity}, and {role}/{identity.name} is wanted")


def try_session(config: bytes, seconds: float) -> None:
    """Whether the agent that will run gets its session, and gets in at its broker; a silent broker does not matter.

    A target that is not there is waited for.

    Raises:
        DrengineError: why not.
    """
    asked = parse_config(tomllib.loads(config.decode()))
    until = time.monotonic() + seconds
    while True:
        try:
            asyncio.run(_tried(asked))
        except DrengineError as error:
            if error.kind is not SESSION_MISSING or time.monotonic() > until:
                kept = KEPT if is_enrolled(asked) else ""
                raise DrengineError(error.kind, error.message, hint=f"{error.hint} {kept}".rstrip()) from error
            time.sleep(LOOK_SECONDS)
        else:
            return


def try_orders(config: bytes, seconds: float) -> None:
    """Whether the recovery host that will run gets in at its broker, which is waited for.

    Raises:
        DrengineError: why not.
    """
    asked = parse_standby_config(tomllib.loads(config.decode()))
    until = time.monotonic() + seconds
    while True:
        try:
            asyncio.run(try_party(asked.control, PartyKind.HOST, asked.name))
        except DrengineError as error:
            if error.kind is not BROKER_UNREACHABLE or time.monotonic() > until:
                raise
            time.sleep(LOOK_SECONDS)
        else:
            return


def is_enrolled(config: AgentConfig) -> bool:
    """Whether its certificate is one that a token got."""
    files = config.tls.files()
    return files is not None and files.place is not None


async def _tried(config: AgentConfig) -> None:
    await try_targets(config)
    if config.control.address is not None:
        try:
            await try_broker(config)
        except DrengineError as error:
            if error.kind is not BROKER_UNREACHABLE:
                raise


def await_session(control_socket: Path, seconds: float) -> None:
    """Wait until the agent's first point is durable, or copying has begun and there is no time left; or it is paused.

    Raises:
        DrengineError: SESSION_MISSING, with the agent's own reason and hint.
    """
    until = time.monotonic() + seconds
    seen: dict[str, Any] = {}
    while True:
        with contextlib.suppress(DrengineError, OSError):
            seen = ask(control_socket, "status")
        state = seen.get("state", "")
        if seen.get("has_point") and state == ReplicationState.CONTINUOUS:
            note("the first recovery point is durable at the target")
            return
        if seen.get("fence_reason") == "spare":
            note("this host stands ready to become the home of a source: docs/failback.md")
            return
        if state == ReplicationState.PAUSED:
            note("it is paused, as somebody has told it to be: drengine-agent resume")
            return
        if time.monotonic() > until or state == ReplicationState.STOPPED:
            break
        time.sleep(LOOK_SECONDS)
    if state in IN_SESSION:
        note(f"in session; {_progress(seen)}. The first point follows when everything is there")
        return
    if not seen:
        hint = "journalctl -u drengine-agent says why."
        raise DrengineError(SESSION_MISSING, f"the agent did not answer within {seconds:g} s", hint=hint)
    reason = "" if seen["reason"] == "none" else f" ({seen['reason']})"
    detail = f": {seen['detail']}" if seen["detail"] else ""
    what = f"after {seconds:g} s the agent is {state}{reason}{detail}"
    raise DrengineError(SESSION_MISSING, what, hint=f"{seen['hint']} It is installed, and goes on trying.".lstrip())


def _progress(seen: dict[str, Any]) -> str:
    done, total = seen["sweep_scanned_bytes"], seen["sweep_bytes"]
    return f"{human_bytes(done)} of {human_bytes(total)} compared or copied" if total else "changes are being shipped"


def _clear(folder: Path, made: list[Path]) -> None:
    """A folder in which enrolling began and was refused: a key without a certificate is of no use."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
        for each in made[1:]:
            each.rmdir()
