"""The token by which Prometheus asks the orchestrator what there is."""

from __future__ import annotations

import grp
import os
from pathlib import Path

from drengine.audit import recorded
from drengine.documents import Document
from drengine.durable import replace_durably
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.monitoring.files import MONITORING_FILES, State
from drengine.people.accounts import Accounts
from drengine.people.roles import Role

ACCOUNT = "prometheus"
"""Of the program, and the group that may read its token's file."""
TOKEN_SECONDS = 365 * 86400.0
RENEW_SECONDS = 90 * 86400.0


def keep_token(people: Document, state: Path, file: Path, *, dry_run: bool) -> State:
    """Make the account and its token, or a new one where that in the file counts for less than 90 days more.

    `people` holds the accounts, `state` the audit log.

    Raises:
        DrengineError: MONITORING_FILES, ACCOUNTS_UNUSABLE, BAD_ACCOUNT.
    """
    accounts = Accounts(people, SystemClock())
    present = _read(file)
    if present and _counts_long(accounts, present):
        return State.UNCHANGED
    found = State.UPDATED if present else State.CREATED
    if dry_run:
        return found
    with recorded(state, "token.create", ACCOUNT, note="monitoring init"):
        if accounts.find(ACCOUNT) is None:
            accounts.add(ACCOUNT, (Role.VIEWER,))
        _, text = accounts.issue(ACCOUNT, TOKEN_SECONDS, machine=True, note="monitoring init")
    try:
        replace_durably(file, text.encode(), mode=0o600)
        _give_to_group(file)
    except OSError as error:
        raise DrengineError(MONITORING_FILES, f"{file}: {error.strerror or error}") from error
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeError) as error:
        raise DrengineError(MONITORING_FILES, f"{file}: {error}") from error


def _counts_long(accounts: Accounts, text: str) -> bool:
    try:
        person = accounts.bearer(text)
    except DrengineError:
        return False
    until = SystemClock().now_ns() + int(RENEW_SECONDS * 1e9)
    proofs = {f"program:{token.id}": token.expires_ns for token in accounts.tokens()}
    return proofs.get(person.proof, 0) > until


def _give_to_group(file: Path) -> None:
    """Debian's Prometheus runs as a user of its own: it, and nobody else, reads the token."""
    try:
        group = grp.getgrnam(ACCOUNT).gr_gid
    except KeyError:
        return
    if os.geteuid() == 0:
        os.chown(file, -1, group)
        file.chmod(0o640)
