"""People whom another identity provider knows: its signed tokens (OpenID Connect) are believed, by its published keys.

A token counts when the provider's key signed it, for us, and it is not over; a claim names the person, another one his
groups, which the configuration turns into roles. Needs the extra `oidc`.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Mapping
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.people.accounts import RESERVED
from drengine.people.errors import NOT_SIGNED_IN, PROVIDER_UNUSABLE
from drengine.people.fetch import fetch_json
from drengine.people.oidc import OidcOptions, discover
from drengine.people.roles import Person, Role

ALGORITHMS = ("ES256", "ES384", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA")
"""With keys that only the provider has; `none` and shared secrets are not among them."""
LEEWAY_SECONDS = 60
KEYS_SECONDS = 3600.0
ASK_SECONDS = 30.0
"""An unknown key has the provider asked again, at most so often."""
TOKEN_CHARACTERS_MAX = 16_384
NAME_CHARACTERS_MAX = 200


class Provider:
    """Judges tokens; threads may share it. The provider is asked only for its keys."""

    def __init__(self, options: OidcOptions, clock: Clock) -> None:
        self._options, self._clock = options, clock
        self._lock = threading.Lock()
        self._keys: Any = None
        self._asked_at = -KEYS_SECONDS

    def person(self, text: str) -> Person:
        """Whose token this is.

        Raises:
            DrengineError: NOT_SIGNED_IN, PROVIDER_UNUSABLE.
        """
        claims = self._verified(text)
        options = self._options
        self._check_claims(claims)
        name = claims.get(options.name_claim)
        strange = not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS_MAX or name in RESERVED
        if strange or any(unicodedata.category(each)[0] == "C" or each.isspace() for each in str(name)):
            raise DrengineError(NOT_SIGNED_IN, f"the token's claim {options.name_claim!r} names nobody")
        groups = claims.get(options.roles_claim) or []
        groups = groups.split() if isinstance(groups, str) else groups
        found = (
            {options.roles.get(each) for each in groups if isinstance(each, str)} if isinstance(groups, list) else set()
        )
        return Person(str(name), f"oidc:{options.issuer}", frozenset(Role(each) for each in found if each))

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        options, now = self._options, self._clock.now_ns() / 1e9
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        ends, begins = claims.get("exp"), claims.get("nbf", 0)
        if claims.get("iss") != options.issuer:
            raise DrengineError(NOT_SIGNED_IN, "the token is another issuer's")
        if options.client not in audiences or claims.get("azp", options.client) != options.client:
            raise DrengineError(NOT_SIGNED_IN, "the token is for somebody else")
        if not isinstance(ends, (int, float)) or now >= ends + LEEWAY_SECONDS:
            raise DrengineError(NOT_SIGNED_IN, "the token has expired")
        if not isinstance(begins, (int, float)) or now < begins - LEEWAY_SECONDS:
            raise DrengineError(NOT_SIGNED_IN, "the token does not count yet")

    def _verified(self, text: str) -> dict[str, Any]:
        """The claims of a token that the provider has signed."""
        if len(text) > TOKEN_CHARACTERS_MAX:
            raise DrengineError(NOT_SIGNED_IN, "the token is too long")
        for again in (False, True):
            keys = self._known_keys(again=again)
            try:
                claims = jwt.decode(text, keys, algorithms=ALGORITHMS).claims
            except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
                if again:
                    raise DrengineError(NOT_SIGNED_IN, f"the provider has not signed this token: {error}") from error
            else:
                if isinstance(claims, dict):
                    return claims
        raise DrengineError(NOT_SIGNED_IN, "the token says nothing")

    def _known_keys(self, *, again: bool) -> Any:
        """The provider's keys; `again`: a token was signed by one that is not among them."""
        # One asks, and nobody waits for that: a slow provider would hold up every thread that people wait for.
        if self._lock.acquire(blocking=False):
            try:
                self._ask_for_keys(again=again)
            finally:
                self._lock.release()
        if self._keys is None:
            raise DrengineError(PROVIDER_UNUSABLE, f"{self._options.issuer} could not be asked just now")
        return self._keys

    def _ask_for_keys(self, *, again: bool) -> None:
        age = self._clock.monotonic() - self._asked_at
        if age < (ASK_SECONDS if again or self._keys is None else KEYS_SECONDS):
            return
        self._asked_at = self._clock.monotonic()
        try:
            place = discover(self._options.issuer, self._options.cacert)["jwks_uri"]
            published: Any = fetch_json(place, cacert=self._options.cacert)
            self._keys = KeySet.import_key_set(published)
        except (KeyError, ValueError, TypeError) as error:
            raise DrengineError(PROVIDER_UNUSABLE, f"{self._options.issuer} publishes no keys: {error}") from error
        except DrengineError:
            if self._keys is None:
                raise
