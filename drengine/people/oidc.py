"""An OpenID Connect provider whose tokens are believed: what the configuration says of it, and what it publishes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drengine.config import BAD_CONFIG, PATH, TABLE, TEXT, option
from drengine.model.errors import DrengineError
from drengine.people.errors import PROVIDER_UNUSABLE
from drengine.people.fetch import fetch_json
from drengine.people.roles import Role


def _roles(given: Mapping[str, Any]) -> None:
    for group, role in given.items():
        if role not in set(Role):
            raise ValueError(f"{group!r} is mapped to {role!r}, which is no role: {', '.join(Role)}")


@dataclass(frozen=True)
class OidcOptions:
    """An OpenID Connect provider whose tokens are believed."""

    issuer: str = option(TEXT, default="", help="Its issuer, https://...; empty: none is believed.")
    client: str = option(TEXT, default="", help="Our client's id there; a token's `aud` has to name it.")
    name_claim: str = option(
        TEXT,
        default="preferred_username",
        help="Claim that names a person as runbooks name approvers; one that people can't change by themselves.",
    )
    roles_claim: str = option(TEXT, default="groups", help="Claim with a person's groups.")
    roles: Mapping[str, Any] = option(
        TABLE, default={}, help='Which group has which role: {"dr-approvers" = "approver"}.', check=_roles
    )
    cacert: Path | None = option(PATH, default=None, help="CA of the provider's certificate; absent: the system's.")

    def check(self, where: str) -> None:
        """What concerns several options.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        if bool(self.issuer) != bool(self.client):
            raise DrengineError(BAD_CONFIG, f"{where}: issuer and client belong together")


def discover(issuer: str, cacert: Path | None) -> dict[str, Any]:
    """What a provider publishes of itself.

    Raises:
        DrengineError: PROVIDER_UNUSABLE.
    """
    found = fetch_json(f"{issuer.rstrip('/')}/.well-known/openid-configuration", cacert=cacert)
    if found.get("issuer") != issuer:
        raise DrengineError(PROVIDER_UNUSABLE, f"{issuer} calls itself {json.dumps(found.get('issuer'))[:200]}")
    return found
