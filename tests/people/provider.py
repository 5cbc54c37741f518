"""A small OpenID Connect provider: discovery, keys, code flow with PKCE, signed tokens, over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey

CLIENT = "drengine"


class Provider:
    """Knows one person, who says yes to everything."""

    def __init__(self) -> None:
        self.key = ECKey.generate_key("P-256", {"kid": "one", "use": "sig"})
        self.person: dict[str, Any] = {"preferred_username": "ann", "groups": ["dr-approvers"]}
        self.asked: list[str] = []
        self.issuer = ""
        self.codes: dict[str, dict[str, str]] = {}
        self.swaps = False
        """Its tokens are those of another sign-in."""

    def claims(self, **more: Any) -> dict[str, Any]:
        now = int(time.time())
        return {"iss": self.issuer, "aud": CLIENT, "sub": "4711", "iat": now, "exp": now + 300, **self.person, **more}

    def token(self, key: Any = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        given = {"alg": "ES256", "kid": "one", **(header or {})}
        return jwt.encode(given, self.claims(**claims), key or self.key, algorithms=["ES256", "HS256"])

    def rotate(self) -> None:
        self.key = ECKey.generate_key("P-256", {"kid": "two", "use": "sig"})

    def with_public_key_as_secret(self) -> str:
        """The old trick: signed by the published key, taken for a shared secret."""
        parts = [{"alg": "HS256", "kid": "one"}, self.claims()]
        signed = b".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in parts)
        digest = hmac.digest(self.key.as_pem(private=False), signed, "sha256")
        return (signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, dict[str, Any] | str]:
        parts, query = urlsplit(path), {key: values[0] for key, values in parse_qs(urlsplit(path).query).items()}
        self.asked.append(parts.path)
        match parts.path:
            case "/.well-known/openid-configuration":
                places = {
                    name: f"{self.issuer}/{place}"
                    for name, place in (("jwks_uri", "keys"), ("token_endpoint", "token"))
                }
                return 200, {"issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize", **places}
            case "/keys":
                return 200, {"keys": [self.key.as_dict(private=False)]}
            case "/authorize":
                code = secrets.token_urlsafe(8)
                self.codes[code] = query
                return 302, f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"
            case "/token":
                begun = self.codes.pop(form.get("code", ""), {})
                challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
                fits = challenge.rstrip(b"=").decode() == begun.get("code_challenge")
                if not fits or form.get("redirect_uri") != begun["redirect_uri"]:
                    return 400, {"error": "invalid_grant"}
                return 200, {
                    "id_token": self.token(nonce="another" if self.swaps else begun["nonce"]),
                    "expires_in": 300,
                }
        return 404, {}


@contextmanager
def provided() -> Iterator[Provider]:
    """A provider that runs, on loopback."""
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*provider.answer(self.path, {}))

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._send(*provider.answer(self.path, {key: each[0] for key, each in parse_qs(sent).items()}))

        def _send(self, status: int, said: dict[str, Any] | str) -> None:
            self.send_response(status)
            if isinstance(said, str):
                self.send_header("Location", said)
            self.end_headers()
            if not isinstance(said, str):
                self.wfile.write(json.dumps(said).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider.issuer = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()
