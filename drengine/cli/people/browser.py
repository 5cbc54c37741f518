"""Signing in with a browser at an OpenID Connect provider: code flow with PKCE, back to loopback (RFC 8252)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from drengine.model.errors import DrengineError
from drengine.people.errors import NOT_SIGNED_IN
from drengine.people.fetch import fetch_json
from drengine.people.oidc import discover

SECONDS = 300.0
SCOPE = "openid profile email groups"


def sign_in(issuer: str, client: str, cacert: Path | None, show: Callable[[str], None]) -> tuple[str, float]:
    """An ID token, and for how many seconds it counts; `show` tells a person the address to open.

    Raises:
        DrengineError: PROVIDER_UNUSABLE, NOT_SIGNED_IN.
    """
    places = discover(issuer, cacert)
    verifier, state, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(24), secrets.token_urlsafe(16)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    with HTTPServer(("127.0.0.1", 0), _Back) as server:
        back = f"http://127.0.0.1:{server.server_port}/"
        asked = {"response_type": "code", "client_id": client, "redirect_uri": back, "scope": SCOPE, "state": state}
        asked |= {"code_challenge": challenge, "code_challenge_method": "S256", "nonce": nonce}
        show(f"{places['authorization_endpoint']}?{urlencode(asked)}")
        code = _wait_for_code(server, state)
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": back, "client_id": client}
    given = fetch_json(places["token_endpoint"], {**form, "code_verifier": verifier}, cacert=cacert)
    token = given.get("id_token")
    if not isinstance(token, str):
        raise DrengineError(NOT_SIGNED_IN, f"{issuer} gave no ID token")
    if _nonce_of(token) != nonce:
        raise DrengineError(NOT_SIGNED_IN, f"{issuer} gave a token that was made for another sign-in")
    return token, float(given.get("expires_in") or 300)


def _nonce_of(token: str) -> object:
    """What a token says of the sign-in that it was made for; who believes the token looks at its signature."""
    try:
        body = token.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))).get("nonce")
    except (ValueError, IndexError, AttributeError, RecursionError):
        return None


class _Back(BaseHTTPRequestHandler):
    """Where the browser comes back to."""

    found: dict[str, list[str]]

    def do_GET(self) -> None:
        self.server.found = parse_qs(urlsplit(self.path).query)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(b"You may close this page and go on at the terminal.\n")

    def log_message(self, *_: Any) -> None:
        pass


def _wait_for_code(server: HTTPServer, state: str) -> str:
    """Raises NOT_SIGNED_IN when nobody comes, or the provider says no."""
    server.timeout = SECONDS
    for _ in range(10):  # a browser asks for an icon, too
        server.found = {}  # type: ignore[attr-defined]
        server.handle_request()
        found: dict[str, list[str]] = server.found  # type: ignore[attr-defined]
        if not hmac.compare_digest("".join(found.get("state", [])).encode("utf-8", "replace"), state.encode()):
            continue
        if "code" in found:
            return found["code"][0]
        raise DrengineError(NOT_SIGNED_IN, f"the provider says: {''.join(found.get('error', ['nothing']))[:200]}")
    raise DrengineError(NOT_SIGNED_IN, "nobody came back from the provider")
