"""Small JSON documents over HTTPS, bounded in time and size; no redirect is followed."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from drengine.model.errors import DrengineError
from drengine.people.errors import PROVIDER_UNUSABLE
from drengine.transport.networks import is_loopback

SECONDS = 5.0
BYTES_MAX = 1 << 20


def fetch_json(url: str, form: dict[str, str] | None = None, *, cacert: Path | None = None) -> dict[str, Any]:
    """GET it, or POST a form; plain HTTP only on loopback.

    Raises:
        DrengineError: PROVIDER_UNUSABLE.
    """
    try:
        parts = urlsplit(url)
        host, deadline = parts.hostname or "", time.monotonic() + SECONDS
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=str(cacert) if cacert else None)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=SECONDS, context=context
            )
        elif parts.scheme == "http" and is_loopback(host):
            connection = http.client.HTTPConnection(host, parts.port, timeout=SECONDS)
        else:
            raise ValueError("https is wanted")  # noqa: TRY301
        try:
            headers = {"Accept": "application/json"}
            if form is not None:
                headers["Content-Type"] = "application/x-www-form-urlencoded"
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST" if form is not None else "GET", path, urlencode(form) if form else None, headers)
            answer = connection.getresponse()
            content = b""
            while piece := answer.read1(65536):
                content += piece
                if len(content) > BYTES_MAX or time.monotonic() > deadline:
                    raise ValueError("the answer is too long, or too slow")
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"it answers {answer.status}: {content[:200]!r}")  # noqa: TRY301
        found = json.loads(content)
        if not isinstance(found, dict):
            raise TypeError("it is no JSON object")  # noqa: TRY301
    except (OSError, http.client.HTTPException, ValueError, TypeError, RecursionError) as error:
        raise DrengineError(PROVIDER_UNUSABLE, f"{url[:200]}: {error}") from error
    return found
