"""Which sources a site expects: who has an identity, a token that counts, or a line in the inventory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drengine.identity.index import read_index
from drengine.identity.names import Identity, Role

_WILD = frozenset("*?[")


@dataclass(frozen=True)
class Issued:
    """What a CA says of agents.

    Attributes:
        ends_at: by name: seconds since 1970 until which the newest certificate counts that is not revoked.
        serials: by name: all certificates that have not expired.
        invited: names of tokens that count.
        open_tokens: uses left of tokens for a pattern of names.
    """

    ends_at: dict[str, int] = field(default_factory=dict)
    serials: dict[str, tuple[str, ...]] = field(default_factory=dict)
    invited: frozenset[str] = frozenset()
    open_tokens: dict[str, int] = field(default_factory=dict)


def issued_in(ca: Path, now: float) -> Issued:
    """Read a CA's directory.

    Raises:
        DrengineError: CA_UNUSABLE.
    """
    index = read_index(ca)
    found = Issued()
    for entry in index.entries:
        identity = Identity.parse(entry.identity)
        if identity.role is not Role.AGENT or now >= entry.ends_at:
            continue
        found.serials[identity.name] = (*found.serials.get(identity.name, ()), entry.serial)
        if entry.revoked_at is None:
            found.ends_at[identity.name] = max(entry.ends_at, found.ends_at.get(identity.name, 0))
    tokens = [each for each in index.tokens if each.role is Role.AGENT and each.state(now) == "valid"]
    wide = [each for each in tokens if _WILD & set(each.name)]
    for token in wide:
        found.open_tokens[token.name] = found.open_tokens.get(token.name, 0) + token.uses - token.used
    return Issued(
        found.ends_at, found.serials, frozenset(each.name for each in tokens if each not in wide), found.open_tokens
    )
