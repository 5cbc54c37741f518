"""A small HTTP endpoint for Prometheus and for probes: /metrics, /healthz, /readyz."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from prometheus_client import CONTENT_TYPE_LATEST

from drengine.model.errors import DrengineError, error_kind
from drengine.telemetry.accepting import RETRY_SECONDS, AcceptFailures
from drengine.telemetry.metrics import Metrics

METRICS_ADDRESS = error_kind(
    "metrics-address",
    51,
    "The metrics endpoint cannot listen on its address.",
    "Choose another `metrics` address, or leave it out.",
)
REQUEST_SECONDS = 5
REQUESTS_MAX = 8
"""Connections served at once; further ones are refused, so that a flood costs neither threads nor memory."""
Page = Callable[[str], bytes | None]
"""More metrics, in the text form of Prometheus; None where there are none."""
Answer = tuple[int, bytes, str]
"""Status, body and its kind."""
PLAIN = "text/plain; charset=utf-8"
_log = logging.getLogger(__name__)


class _Server(ThreadingHTTPServer):
    """Bounded, quiet, for IPv4 and IPv6."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(REQUESTS_MAX)
        self._failures = AcceptFailures()
        self._closing = threading.Event()
        super().__init__((host, port), handler)

    def get_request(self) -> Any:
        """Called when somebody connects; what it raises is swallowed, and it is called again at once."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._failures.note(error)
                self._closing.wait(RETRY_SECONDS)
            raise

    def shutdown(self) -> None:
        self._closing.set()
        super().shutdown()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a client of the metrics endpoint went away", exc_info=True)


class MetricsEndpoint:
    """Serves in threads of its own, so a scrape never waits for block data; stops cleanly."""

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        *,
        not_ready: Callable[[], str],
        pages: Mapping[str, Page] | None = None,
    ) -> None:
        """Listen at once; port 0 takes a free one, see `port`. `not_ready` says why not, and nothing when it is ready.

        `pages` are more metrics, by their paths: each is given what follows its path, empty for itself.

        Raises:
            DrengineError: METRICS_ADDRESS.
        """
        self._metrics, self._not_ready, self._pages = metrics, not_ready, pages or {}
        self._one_scrape = threading.Lock()
        try:
            self._server = _Server(host, port, _handler(self._answer))
        except OSError as error:
            raise DrengineError(METRICS_ADDRESS, f"{host}:{port}: {error.strerror or error}") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, path: str) -> Answer:
        page, rest = _page(path, self._pages)
        match path:
            case "/metrics":
                return self._scraped(self._metrics.render)
            case "/healthz":
                return 200, b"ok\n", PLAIN
            case "/readyz":
                why = self._not_ready()
                return (503, f"not ready: {why}\n".encode(), PLAIN) if why else (200, b"ready\n", PLAIN)
            case _ if page:
                return self._scraped(partial(page, rest))
        return 404, b"try /metrics, /healthz or /readyz\n", PLAIN

    def _scraped(self, render: Callable[[], bytes | None]) -> Answer:
        try:
            with self._one_scrape:
                text = render()
        except Exception:  # noqa: BLE001 - whatever it is, the daemon goes on and the scraper gets an error
            _log.exception("the metrics could not be gathered")
            return 500, b"the metrics could not be gathered; see the log\n", PLAIN
        return (404, b"nothing is told here\n", PLAIN) if text is None else (200, text, CONTENT_TYPE_LATEST)


def _handler(answer: Callable[[str], Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_SECONDS
        server_version = "drengine"
        sys_version = ""

        def do_GET(self) -> None:
            status, body, content_type = answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Scrapes are not news."""

    return Handler


def _page(path: str, pages: Mapping[str, Page]) -> tuple[Page | None, str]:
    """The page that serves a path, and what follows the page's own path."""
    for own, page in pages.items():
        if path == own or path.startswith(f"{own}/"):
            return page, unquote(path[len(own) + 1 :])
    return None, ""
