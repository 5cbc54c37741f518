"""The one door: what proves who somebody is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drengine.model.clock import Clock
from drengine.ownership import make_directory
from drengine.people.accounts import LOGIN, PROGRAM, TOKEN_PREFIX, Accounts, Token
from drengine.people.local import person_of_user
from drengine.people.oidc import OidcOptions, Provider
from drengine.people.passwords import Passwords
from drengine.people.roles import Person

FILE = "people.json"
"""In the orchestrator's state directory."""


@dataclass(frozen=True, slots=True)
class Door:
    """Knows people by the kernel's word or by a token; belongs to one orchestrator's state directory."""

    accounts: Accounts
    passwords: Passwords
    owner: int
    provider: Provider | None = None

    @staticmethod
    def of(state: Path, clock: Clock, oidc: OidcOptions | None = None) -> Door:
        """The door of a state directory, which is made if it is missing.

        Raises:
            DrengineError: BAD_CONFIG when `oidc` names a provider and the extra is missing.
        """
        make_directory(state)
        accounts = Accounts(state / FILE, clock)
        provider = Provider(oidc, clock) if oidc and oidc.issuer else None
        return Door(accounts, Passwords(accounts, clock), state.stat().st_uid, provider)

    def by_user(self, uid: int) -> Person:
        """A user of this host, as the kernel tells.

        Raises:
            DrengineError: ACCOUNTS_UNUSABLE.
        """
        return person_of_user(uid, self.accounts, owner=self.owner)

    def by_bearer(self, text: str) -> Person:
        """Whoever holds this token.

        Raises:
            DrengineError: NOT_SIGNED_IN, ACCOUNTS_UNUSABLE, PROVIDER_UNUSABLE.
        """
        if self.provider is not None and not text.startswith(TOKEN_PREFIX):
            return self.provider.person(text)
        return self.accounts.bearer(text)

    def sign_in(self, name: str, password: str, peer: str, seconds: float) -> tuple[Token, str]:
        """A token for a password, for so long, and its text.

        Raises:
            DrengineError: SIGN_IN_FAILED, SIGN_IN_LIMIT, ACCOUNTS_UNUSABLE.
        """
        self.passwords.check(name, password, peer)
        return self.accounts.issue(name, seconds)

    def sign_out(self, person: Person) -> Token | None:
        """End the token by which somebody came; None when he did not come by one of ours.

        Raises:
            DrengineError: BAD_ACCOUNT, ACCOUNTS_UNUSABLE.
        """
        kind, _, id = person.proof.partition(":")
        return self.accounts.revoke(id) if kind in (LOGIN, PROGRAM) else None
