"""An identity is a URI in a certificate: `drengine://SITE/ROLE/NAME`. Nothing else names a party."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from drengine.model.errors import BAD_NAME, DrengineError
from drengine.model.names import check_name

SCHEME = "drengine"
COMMANDER = "orchestrator"
"""A broker that goes by names alone lets this one command; so nobody of another role may be called so."""
_SHOWN_CHARS = 120


class Role(enum.StrEnum):
    """What a party may be; docs/security.md says what each may do."""

    AGENT = "agent"
    TARGET = "target"
    ORCHESTRATOR = "orchestrator"
    HOST = "host"
    BROKER = "broker"
    AUTHORITY = "authority"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a party is.

    Attributes:
        site: what it belongs to.
        role: what it is.
        name: which one; an agent's is that of its source.
    """

    site: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        """Raises DrengineError: BAD_NAME."""
        check_name(self.site, what="site")
        check_name(self.name, what=str(self.role))

    def __str__(self) -> str:
        return f"{SCHEME}://{self.site}/{self.role}/{self.name}"

    @staticmethod
    def parse(text: str) -> Identity:
        """The identity that `str` has written; there is one way to write each.

        Raises:
            DrengineError: BAD_NAME.
        """
        scheme, _, rest = text.partition("://")
        parts = rest.split("/")
        if scheme != SCHEME or len(parts) != 3:
            raise DrengineError(BAD_NAME, f"{text[:_SHOWN_CHARS]!r} is no identity, {SCHEME}://SITE/ROLE/NAME")
        site, role, name = parts
        if role not in tuple(Role):
            raise DrengineError(BAD_NAME, f"{role[:_SHOWN_CHARS]!r} is no role; there are {', '.join(Role)}")
        return Identity(site, Role(role), name)


def identity_among(uris: Iterable[str]) -> Identity | None:
    """The identity among a certificate's URIs; None when no URI is drengine's.

    Raises:
        DrengineError: BAD_NAME, one is drengine's and malformed, or there are several: whose certificate is it then?
    """
    ours = [uri for uri in uris if uri.lower().startswith(f"{SCHEME}:")]
    if len(ours) > 1:
        raise DrengineError(BAD_NAME, f"there are {len(ours)} identities in one certificate")
    return Identity.parse(ours[0]) if ours else None
