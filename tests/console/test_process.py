"""The orchestrator as its users run it: a process with REST and metrics, ended by a signal."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.site import free_port
from tests.failover.engine.disks import disks_served
from tests.failover.engine.world import World

ROOT = Path(__file__).parents[2]
RUNBOOK = """\
version: 1
name: shop
sources:
  shop: {launch: {driver: command, settings: {start: ["true"], stop: ["true"], details: {address: here}}}}
waves:
  - name: all
    sources: [shop]
    then:
      - command: [/bin/sh, -c, "echo ready at $0", "${shop.address}"]
"""


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Content-Type": "application/json"}
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """With one source, and its disks served at `nbd`."""
    World(tmp_path / "world").store.close()
    found = next((tmp_path / "world").rglob("STORE")).parent
    with disks_served(found, tmp_path / "nbd"):
        yield found


def test_a_drill_by_rest_leaves_a_report_and_metrics_and_the_daemon_ends_cleanly(tmp_path: Path, store: Path) -> None:
    rest, metrics = free_port(), free_port()
    config = tmp_path / "orchestrator.toml"
    config.write_text(
        f'store = "{store}"\nstate = "{tmp_path / "state"}"\nexport = "unix:{tmp_path / "nbd"}"\n'
        f'rest = "127.0.0.1:{rest}"\nmetrics = "127.0.0.1:{metrics}"\n'
    )
    daemon = subprocess.Popen(
        [sys.executable, "-m", "drengine.cli.main", "orchestrator", "run", "--config", str(config)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/agents"},
        stderr=subprocess.PIPE,
    )
    try:
        end = time.monotonic() + 60
        while True:
            try:
                assert ask(rest, "GET", "/api/v1/health")[0] == 200
                break
            except OSError:
                assert daemon.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        status, said = ask(rest, "PUT", "/api/v1/runbooks/shop", {"text": RUNBOOK})
        assert status == 200, said
        status, said = ask(rest, "POST", "/api/v1/runs", {"mode": "drill", "runbook": "shop"})
        assert status == 201, said
        run = json.loads(said)["run"]
        while (found := json.loads(ask(rest, "GET", f"/api/v1/runs/{run}")[1]))["state"] != "finished":
            assert time.monotonic() < end
            time.sleep(0.05)
        assert found["outcome"] == "completed", found
        page = tmp_path / "state" / "reports" / f"{run}.html"
        while not page.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "ready at here" in page.read_text()
        assert b'last_drill_passed{runbook="shop"} 1.0' in ask(metrics, "GET", "/metrics")[1]
        daemon.send_signal(signal.SIGHUP)
        assert ask(rest, "GET", "/api/v1/health")[0] == 200, "a hang-up ends no daemon"
        daemon.send_signal(signal.SIGTERM)
        _, told = daemon.communicate(timeout=30)
        assert daemon.returncode == 0
        assert b"Traceback" not in told
        assert b"read again" in told
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.communicate()
