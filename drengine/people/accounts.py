"""Accounts and tokens, in one small document: a file that only the orchestrator's user can read, or a row of the
registry that several orchestrators share.

Passwords are kept as argon2id hashes, tokens as SHA-256 of their 256 random bits. Whoever can write it is an
admin. Changes take turns and replace it whole; running orchestrators see it at once.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from drengine.documents import Document, FileDocument
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.people.errors import ACCOUNTS_UNUSABLE, BAD_ACCOUNT, NOT_SIGNED_IN
from drengine.people.roles import Person, Role

TOKEN_PREFIX = "drengine_"
RESERVED = frozenset({"schedule", "root"})
"""Names by which the orchestrator and the kernel call somebody."""
TOKENS_MAX = 10_000
LOGIN, PROGRAM = "login", "program"
"""Of a person's proof; `token:ID` would be masked wherever secrets are."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A person, or a program.

    Attributes:
        password: its argon2id hash; empty: nobody signs in with one.
    """

    name: str
    roles: tuple[Role, ...] = ()
    password: str = ""
    created_ns: int = 0


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A proof of being somebody, until it is over or revoked.

    Attributes:
        digest: SHA-256 of its secret, in hex.
        machine: made for a program; otherwise by a login.
    """

    id: str
    account: str
    digest: str
    created_ns: int
    expires_ns: int
    machine: bool = False
    note: str = ""


class _Kept(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The file's content."""

    version: int = 1
    accounts: dict[str, Account] = {}
    tokens: dict[str, Token] = {}


class Accounts:
    """The accounts of one orchestrator, or of all that share a registry; threads may share it."""

    def __init__(self, document: Document, clock: Clock) -> None:
        self._document, self._clock = document, clock
        self._read: tuple[bytes, _Kept] | None = None

    # ---- looking ---------------------------------------------------------------------------------------------

    def all(self) -> list[Account]:
        """By name."""
        return sorted(self._kept().accounts.values(), key=lambda each: each.name)

    def tokens(self) -> list[Token]:
        """Those that count still, oldest first."""
        living = [each for each in self._kept().tokens.values() if each.expires_ns > self._clock.now_ns()]
        return sorted(living, key=lambda each: each.created_ns)

    def find(self, name: str) -> Account | None:
        """An account by its name."""
        return self._kept().accounts.get(name)

    def bearer(self, text: str) -> Person:
        """Whose token this is.

        Raises:
            DrengineError: NOT_SIGNED_IN, ACCOUNTS_UNUSABLE.
        """
        id, _, secret = text.removeprefix(TOKEN_PREFIX).partition("_")
        kept = self._kept()
        token = kept.tokens.get(id)
        if not hmac.compare_digest(_digest(secret), token.digest if token else ""):
            token = None
        if token is None or token.account not in kept.accounts:
            raise DrengineError(NOT_SIGNED_IN, "the token is not known here: it is wrong, or was revoked")
        if token.expires_ns <= self._clock.now_ns():
            raise DrengineError(NOT_SIGNED_IN, f"token {id} of {token.account} has expired")
        kind = PROGRAM if token.machine else LOGIN
        return Person(token.account, f"{kind}:{id}", frozenset(kept.accounts[token.account].roles))

    # ---- changing --------------------------------------------------------------------------------------------

    def add(self, name: str, roles: tuple[Role, ...], password: str = "") -> Account:
        """Make an account; `password` is a hash.

        Raises:
            DrengineError: BAD_NAME, BAD_ACCOUNT, ACCOUNTS_UNUSABLE.
        """
        check_name(name, what="account")
        if name in RESERVED:
            raise DrengineError(BAD_ACCOUNT, f"{name!r} is nobody's account: it is how the program calls somebody")
        made = Account(name=name, roles=_in_order(roles), password=password, created_ns=self._clock.now_ns())
        with self._changing() as kept:
            if name in kept.accounts:
                raise DrengineError(BAD_ACCOUNT, f"there is an account {name} already")
            kept.accounts[name] = made
        return made

    def change(self, name: str, *, roles: tuple[Role, ...] | None = None, password: str | None = None) -> Account:
        """Change an account; a new password ends its logins.

        Raises:
            DrengineError: BAD_ACCOUNT, ACCOUNTS_UNUSABLE.
        """
        with self._changing() as kept:
            changed = _known(kept, name)
            if roles is not None:
                changed = msgspec.structs.replace(changed, roles=_in_order(roles))
            if password is not None:
                changed = msgspec.structs.replace(changed, password=password)
                _drop(kept, lambda token: token.account == name and not token.machine)
            kept.accounts[name] = changed
        return changed

    def remove(self, name: str) -> None:
        """Remove an account with all its tokens.

        Raises:
            DrengineError: BAD_ACCOUNT, ACCOUNTS_UNUSABLE.
        """
        with self._changing() as kept:
            _known(kept, name)
            del kept.accounts[name]
            _drop(kept, lambda token: token.account == name)

    def issue(self, name: str, seconds: float, *, machine: bool = False, note: str = "") -> tuple[Token, str]:
        """A new token of an account, and its text, which is kept nowhere.

        Raises:
            DrengineError: BAD_ACCOUNT, ACCOUNTS_UNUSABLE.
        """
        secret, now_ns = secrets.token_urlsafe(32), self._clock.now_ns()
        made = Token(
            id=secrets.token_hex(4),
            account=name,
            digest=_digest(secret),
            created_ns=now_ns,
            expires_ns=now_ns + int(seconds * 1e9),
            machine=machine,
            note=note,
        )
        with self._changing() as kept:
            _known(kept, name)
            _drop(kept, lambda token: token.expires_ns <= now_ns)
            if len(kept.tokens) >= TOKENS_MAX or made.id in kept.tokens:
                raise DrengineError(BAD_ACCOUNT, f"there are {len(kept.tokens)} tokens: revoke some")
            kept.tokens[made.id] = made
        return made, f"{TOKEN_PREFIX}{made.id}_{secret}"

    def revoke(self, id: str) -> Token:
        """End a token.

        Raises:
            DrengineError: BAD_ACCOUNT, ACCOUNTS_UNUSABLE.
        """
        with self._changing() as kept:
            if id not in kept.tokens:
                raise DrengineError(BAD_ACCOUNT, f"there is no token {id[:40]!r}")
            return kept.tokens.pop(id)

    # ---- the document ----------------------------------------------------------------------------------------

    def _kept(self) -> _Kept:
        """What is kept now, decoded when it is another."""
        with explained(self._document.where):
            content, read = self._document.read(), self._read
            if content is None:
                return _Kept()
            if read is None or read[0] != content:
                read = self._read = content, msgspec.json.decode(content, type=_Kept)
            return read[1]

    @contextmanager
    def _changing(self) -> Iterator[_Kept]:
        """What is kept, to be changed; kept if nothing is raised."""
        with explained(self._document.where), self._document.changing() as draft:
            kept = msgspec.json.decode(draft.content, type=_Kept) if draft.content is not None else _Kept()
            yield kept
            draft.content = msgspec.json.format(msgspec.json.encode(kept))


def accounts_file(path: Path) -> FileDocument:
    """Of an orchestrator that shares no registry; refused where others than its owner could have changed it."""

    def check(found: os.stat_result) -> None:
        if found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid(), path.parent.stat().st_uid):
            message = f"{path} may be read or written by others than its owner"
            raise DrengineError(ACCOUNTS_UNUSABLE, message, hint="Give it mode 0600, after a look at who is in it.")

    return FileDocument(path, check)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Failures of a document of accounts are ACCOUNTS_UNUSABLE."""
    try:
        yield
    except (OSError, msgspec.MsgspecError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DrengineError(ACCOUNTS_UNUSABLE, f"{where}: {why}") from error


def _known(kept: _Kept, name: str) -> Account:
    if name not in kept.accounts:
        raise DrengineError(BAD_ACCOUNT, f"there is no account {name[:80]!r}")
    return kept.accounts[name]


def _drop(kept: _Kept, which: Callable[[Token], bool]) -> None:
    kept.tokens = {id: token for id, token in kept.tokens.items() if not which(token)}


def _in_order(roles: tuple[Role, ...]) -> tuple[Role, ...]:
    return tuple(role for role in Role if role in roles)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
