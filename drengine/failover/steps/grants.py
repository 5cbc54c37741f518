"""What a run lets others do at the store: a workload use its disks, a source go its way home (docs/security.md).

A recovery host proves by its certificate who it is. A program on this host has no name of its own: it gets a
capability, a secret behind its exports' names. That is kept beside the instance's files; the store has its digest.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from drengine.audit import FOLDER, AuditLog
from drengine.audit.log import OURSELVES
from drengine.durable import replace_durably
from drengine.failover.steps.declare import home_of
from drengine.failover.steps.step import PlannedStep, StepContext
from drengine.model.errors import DrengineError
from drengine.model.grants import Access, Grant
from drengine.ownership import make_directory
from drengine.process.threads import in_thread

SECRET_BYTES = 16
CUT_OFF_SECONDS = 3.0
"""Within which a target ends connections whose grant was taken back (it looks every second)."""
_log = logging.getLogger("drengine.failover")


def let_use_disks(context: StepContext, instance: str, source: str, branch: int, host: str) -> None:
    """Before a launch: the instance's own branch, for `host` or by a secret. Done again it changes nothing."""
    give = context.site.store.grants.give
    _record(context, "grant.give", f"{source}#{branch}", instance=instance, to=host or "a capability")
    if host:
        give(source, branch, Access.WRITE, holder=f"host/{host}", instance=instance)
        return
    place = _place(context, instance)
    if not place.exists():
        make_directory(place.parent)
        replace_durably(place, secrets.token_hex(SECRET_BYTES).encode())
    secret = secret_of(context, instance)
    # An orchestrator of another host may have launched it before it died: its workload is cut off before ours begins.
    others = context.site.store.grants.take(lambda grant: _is_others(grant, instance, secret))
    give(source, branch, Access.WRITE, secret=secret, instance=instance)
    if others:
        _record(context, "grant.take", f"{source}#{branch}", instance=instance, why="launched elsewhere before")
        context.say(f"what another host launched as {instance} is cut off from its disks")
        time.sleep(CUT_OFF_SECONDS)


def _is_others(grant: Grant, instance: str, secret: str) -> bool:
    return grant.instance == instance and not grant.holder and not grant.is_opened_by(secret)


def secret_of(context: StepContext, instance: str) -> str:
    """The secret of an instance; empty where it has none."""
    place = _place(context, instance)
    return place.read_text() if place.exists() else ""


def take_disks(context: StepContext, instance: str) -> None:
    """After an instance has ended: whoever still has its disks open is cut off."""
    for grant in context.site.store.grants.take(lambda grant: grant.instance == instance):
        _record(context, "grant.take", f"{grant.source}#{grant.branch}", instance=instance)
    _place(context, instance).unlink(missing_ok=True)


@asynccontextmanager
async def way_home(
    step: PlannedStep[Any], context: StepContext, access: Access, branch: int, host: str = ""
) -> AsyncIterator[None]:
    """While the source's agent does what it is ordered, it may come to the target for it.

    `host` is the agent where its disks are, by default that of the source's home. A step that is cancelled leaves it
    until its time is over: the agent works on, and a resumed run wants its answer.
    """
    grants, run, source = context.site.store.grants, context.run, step.source
    holder, seconds = f"agent/{host or home_of(step, context)}", step.timeout_seconds

    def give() -> None:
        _record(context, "grant.give", f"{source}#{branch}", access=access, to=holder)
        grants.give(source, branch, access, holder=holder, instance=run, seconds=seconds)

    await in_thread(give)
    try:
        yield
    except asyncio.CancelledError:
        raise
    except BaseException:
        await _take(context, source, access)
        raise
    await _take(context, source, access)


async def _take(context: StepContext, source: str, access: Access) -> None:
    def ours() -> None:
        taken = context.site.store.grants.take(
            lambda grant: (grant.instance, grant.source, grant.access) == (context.run, source, access)
        )
        for grant in taken:
            _record(context, "grant.take", f"{source}#{grant.branch}", access=access)

    await in_thread(ours)


def _record(context: StepContext, did: str, on: str, **details: str) -> None:
    """In the audit log of the store; a run that recovers goes on where that can't be written."""
    try:
        log = AuditLog.open(context.site.store.directory / FOLDER)
        log.record(who=OURSELVES, did=did, on=on, details={"run": context.run, **details})
    except DrengineError as error:
        _log.error("not in the audit log: %s %s: %s", did, on, error)


def _place(context: StepContext, instance: str) -> Path:
    return context.site.directory / f"{instance}.capability"
