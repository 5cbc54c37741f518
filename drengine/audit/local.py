"""Who runs this process: what the kernel says, not what somebody typed."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drengine.audit.entry import Outcome
from drengine.audit.log import AuditLog
from drengine.model.errors import DrengineError

FOLDER = "audit"
"""The log's directory in that of a store, of an orchestrator's state, and of a CA."""
BY_KERNEL = "user id"
_NOBODY = 0xFFFFFFFF


def local_user() -> str:
    """The user of this process, as `who` of an entry."""
    return f"local:{os.getuid()}"


def login() -> dict[str, Any]:
    """Names of the user, and of the one who logged in before he became it (sudo, su), as details of an entry."""
    told = {"user": _name(os.getuid())}
    try:
        logged_in = int(Path("/proc/self/loginuid").read_text())
    except (OSError, ValueError):
        return told
    return told if logged_in == _NOBODY else {**told, "login": _name(logged_in)}


@contextlib.contextmanager
def recorded(directory: Path, did: str, on: str, **details: Any) -> Iterator[None]:
    """Record what a command is about to do to a store or a CA, in the log beside it; and that it did not, if it fails.

    Raises:
        DrengineError: AUDIT_UNUSABLE: it must not do it.
    """
    log = AuditLog.open(directory / FOLDER)
    facts = {**login(), **details}
    log.record(who=local_user(), proved=BY_KERNEL, did=did, on=on, details=facts)
    try:
        yield
    except DrengineError as error:
        log.record(who=local_user(), proved=BY_KERNEL, did=did, on=on, outcome=Outcome.FAILED, error=error.kind.id)
        raise


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
