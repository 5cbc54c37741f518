"""Passwords: argon2id hashes, and how often one may be guessed.

A guess costs 64 MiB and some ten milliseconds, so two are judged at once. Failures count for the account and for the
address that they come from; unknown names share one count, so that guesses use up no memory.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from functools import cache

import argon2

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.people.accounts import Accounts
from drengine.people.errors import BAD_ACCOUNT, SIGN_IN_FAILED, SIGN_IN_LIMIT

PASSWORD_CHARACTERS_MIN = 10
PASSWORD_BYTES_MAX = 1024
AT_ONCE = 2
PEER_FAILURES = 10
ACCOUNT_FAILURES = 20
FORGIVE_SECONDS = 30.0
"""One failure is forgotten after so long."""
PEERS_MAX = 4096

_HASHER = argon2.PasswordHasher()


def hash_password(password: str) -> str:
    """To be kept.

    Raises:
        DrengineError: BAD_ACCOUNT when it is too short or too long.
    """
    if len(password) < PASSWORD_CHARACTERS_MIN or len(password.encode("utf-8", "replace")) > PASSWORD_BYTES_MAX:
        message = f"a password has {PASSWORD_CHARACTERS_MIN} characters at least and {PASSWORD_BYTES_MAX} bytes at most"
        raise DrengineError(BAD_ACCOUNT, message)
    return _HASHER.hash(password)


class Passwords:
    """Judges passwords of accounts; threads may share it."""

    def __init__(self, accounts: Accounts, clock: Clock) -> None:
        self._accounts = accounts
        self._failures = _Failures(clock)
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def check(self, name: str, password: str, peer: str) -> None:
        """Whether it is the account's; takes as long for a name that is unknown.

        Args:
            name, password: as typed.
            peer: address, or `unix`, from which it comes.

        Raises:
            DrengineError: SIGN_IN_FAILED, SIGN_IN_LIMIT.
        """
        account = self._accounts.find(name)
        kept = account.password if account else ""
        counts = {f"account {name if account else ''}": ACCOUNT_FAILURES, f"peer {network_of(peer)}": PEER_FAILURES}
        with self._turns:
            self._failures.check(counts)  # behind the turn: those that wait for theirs are counted, too
            if _fits(kept or _nobodys(), password) and kept:
                return
            self._failures.note(counts)
        raise DrengineError(SIGN_IN_FAILED, f"no account {name[:80]!r} with this password")


class _Failures:
    """How many there were, each forgotten after a while."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: OrderedDict[str, float] = OrderedDict()  # when all of a key's failures are forgotten

    def check(self, counts: dict[str, int]) -> None:
        now = self._clock.monotonic()
        with self._lock:
            waits = [self._until.get(key, 0.0) - now - (most - 1) * FORGIVE_SECONDS for key, most in counts.items()]
        if max(waits) > 0:
            raise DrengineError(SIGN_IN_LIMIT, f"too many failed attempts; the next one in {max(waits):.0f} s")

    def note(self, counts: dict[str, int]) -> None:
        now = self._clock.monotonic()
        with self._lock:
            for key in counts:
                self._until[key] = max(self._until.pop(key, 0.0), now) + FORGIVE_SECONDS
            while len(self._until) > PEERS_MAX:
                self._until.popitem(last=False)


def _fits(kept: str, password: str) -> bool:
    try:
        return _HASHER.verify(kept, password[:PASSWORD_BYTES_MAX])
    except argon2.exceptions.Argon2Error:
        return False


@cache
def _nobodys() -> str:
    return _HASHER.hash("nobody's password")


def network_of(peer: str) -> str:
    """By which a peer is counted: whoever has one IPv6 address has 2**64 of them."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
