"""The one door: what proves who somebody is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drengine.audit import FOLDER, AuditLog, Refusals
from drengine.config import BAD_CONFIG
from drengine.documents import Document
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.ownership import make_directory
from drengine.people.accounts import LOGIN, PROGRAM, TOKEN_PREFIX, Accounts, Token, accounts_file
from drengine.people.local import person_of_user
from drengine.people.oidc import OidcOptions
from drengine.people.passwords import Passwords
from drengine.people.roles import Person

if TYPE_CHECKING:
    from drengine.people.provider import Provider

FILE = "people.json"
"""In the orchestrator's state directory."""


@dataclass(frozen=True, slots=True)
class Door:
    """Knows people by the kernel's word or by a token; belongs to one orchestrator's state directory."""

    accounts: Accounts
    passwords: Passwords
    owner: int
    audit: AuditLog
    refusals: Refusals
    provider: Provider | None = None

    @staticmethod
    def of(state: Path, clock: Clock, oidc: OidcOptions | None = None, people: Document | None = None) -> Door:
        """The door of a state directory, which is made if it is missing.

        `people` holds the accounts where orchestrators share them; else they lie in the state directory.

        Raises:
            DrengineError: BAD_CONFIG when `oidc` names a provider and the extra is missing.
        """
        make_directory(state)
        accounts = Accounts(people or accounts_file(state / FILE), clock)
        audit = AuditLog.open(state / FOLDER, clock=clock)
        provider = _provider(oidc, clock) if oidc and oidc.issuer else None
        refusals, owner = Refusals(audit, clock=clock), state.stat().st_uid
        return Door(accounts, Passwords(accounts, clock), owner, audit, refusals, provider)

    def by_user(self, uid: int) -> Person:
        """A user of this host, as the kernel tells.

        Raises:
            DrengineError: ACCOUNTS_UNUSABLE.
        """
        return person_of_user(uid, self.accounts, owner=self.owner)

    def by_bearer(self, text: str, peer: str = "this host") -> Person:
        """Whoever holds this token; `peer` is where he is.

        Raises:
            DrengineError: NOT_SIGNED_IN, ACCOUNTS_UNUSABLE, PROVIDER_UNUSABLE.
        """
        with self._noted(f"somebody at {peer}", "person.token", ""):
            if self.provider is not None and not text.startswith(TOKEN_PREFIX):
                return self.provider.person(text)
            return self.accounts.bearer(text)

    def sign_in(self, name: str, password: str, peer: str, seconds: float) -> tuple[Token, str]:
        """A token for a password, for so long, and its text.

        Raises:
            DrengineError: SIGN_IN_FAILED, SIGN_IN_LIMIT, ACCOUNTS_UNUSABLE.
        """
        with self._noted(f"somebody at {peer}", "person.sign-in", name):
            self.passwords.check(name, password, peer)
        details = {"peer": peer}
        self.audit.record(who=f"person:{name}", proved="password", did="person.sign-in", on=name, details=details)
        return self.accounts.issue(name, seconds)

    def sign_out(self, person: Person) -> Token | None:
        """End the token by which somebody came; None when he did not come by one of ours.

        Raises:
            DrengineError: BAD_ACCOUNT, ACCOUNTS_UNUSABLE.
        """
        kind, _, id = person.proof.partition(":")
        if kind not in (LOGIN, PROGRAM):
            return None
        self.audit.record(who=f"person:{person.name}", proved=person.proof, did="person.sign-out", on=person.name)
        return self.accounts.revoke(id)

    @contextlib.contextmanager
    def _noted(self, who: str, did: str, on: str) -> Iterator[None]:
        """A refusal is in the audit log, too."""
        try:
            yield
        except DrengineError as error:
            self.refusals.note(who=who, did=did, on=on, error=error.kind.id)
            raise


def _provider(oidc: OidcOptions, clock: Clock) -> Provider:
    try:
        from drengine.people.provider import Provider  # noqa: PLC0415 - an extra
    except ImportError as error:
        message, hint = "[oidc] needs the extra `oidc`", "Install drengine[oidc]."
        raise DrengineError(BAD_CONFIG, message, hint=hint) from error
    return Provider(oidc, clock)
