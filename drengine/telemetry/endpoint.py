"""A small HTTP endpoint for Prometheus and for probes: /metrics, /healthz, /readyz."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from drengine.model.errors import DrengineError, error_kind
from drengine.telemetry.metrics import Metrics

METRICS_ADDRESS = error_kind(
    "metrics-address",
    51,
    "The metrics endpoint cannot listen on its address.",
    "Choose another `metrics` address, or leave it out.",
)
REQUEST_SECONDS = 5


class MetricsEndpoint:
    """Serves in threads of its own, so a scrape never waits for block data; stops cleanly."""

    def __init__(self, host: str, port: int, metrics: Metrics, *, ready: Callable[[], bool]) -> None:
        """Listen at once; port 0 takes a free one, see `port`.

        Raises:
            DrengineError: METRICS_ADDRESS.
        """

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, metrics.render(), CONTENT_TYPE_LATEST)
                elif self.path == "/healthz":
                    self._answer(200, b"ok\n")
                elif self.path == "/readyz":
                    self._answer(*((200, b"ready\n") if ready() else (503, b"not ready\n")))
                else:
                    self._answer(404, b"try /metrics, /healthz or /readyz\n")

            def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Scrapes are not news."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise DrengineError(METRICS_ADDRESS, f"{host}:{port}: {error.strerror or error}") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
