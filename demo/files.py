"""The configuration files of the story, and its runbook, as a user would write them."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = "shop"

TARGET = """store = "store"
listen = "127.0.0.1:{target}"
nbd_socket = "recovery.sock"
"""
AGENT = """source = "shop"
target = "127.0.0.1:{target}"
state_directory = "agent"

[nbd]
listen = "unix:tap.sock"
journal = "64MiB"

[control]
address = "127.0.0.1:{broker}"
report_interval = "500ms"

[[volume]]
name = "data"
path = "data.img"

[[volume]]
name = "log"
path = "log.img"

[[volume]]
name = "orders"
path = "orders.img"
"""
ORCHESTRATOR = """store = "store"
state = "orchestrator"
export = "unix:{folder}/recovery.sock"
rest = "127.0.0.1:{rest}"

[broker]
address = "127.0.0.1:{broker}"
embedded = true
"""
RUNBOOK = """version: 1
name: shop
description: The shop and its disks.
objectives: {{rpo: 5s, rto: 30s}}
sources:
  shop:
    fence:
      command: {fence}
    start: {start}
    launch:
      driver: command
      timeout: 30s
      settings:
        run: {recovered}
        health: {recovered_health}
        environment: {{PYTHONPATH: {path}}}
        details: {{address: "127.0.0.1:{recovery}"}}
      drill:
        run: {drilled}
        health: {drilled_health}
        details: {{address: "127.0.0.1:{drill}"}}
waves:
  - name: shop
    sources: [shop]
    then:
      - name: every order follows from the one before
        http: {{url: "http://${{shop.address}}/orders", contains: '"intact": true'}}
      - name: the shop is open at home
        modes: [failback]
        http: {{url: "http://127.0.0.1:{home}/orders", contains: '"intact": true'}}
"""


@dataclass(frozen=True)
class Ports:
    """Loopback ports of everything."""

    target: int
    broker: int
    rest: int
    home: int
    recovery: int
    drill: int
    authority: int

    @staticmethod
    def pick() -> Ports:
        """Ports that nobody listens on at this moment."""
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(7)]
        numbers = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
        return Ports(*numbers)


def write_files(folder: Path, ports: Ports) -> None:
    """All files of the story."""
    service = [sys.executable, "-m", "demo.service", ""]
    asking = [sys.executable, "-m", "demo.ask"]
    machine = [sys.executable, "-m", "demo.machine"]
    values = {
        **vars(ports),
        "folder": folder,
        "path": json.dumps(os.environ["PYTHONPATH"]),
        "fence": json.dumps([*machine, "off", str(folder)]),
        "start": json.dumps([*machine, "shop", str(folder)]),
        "recovered": json.dumps([*service, str(ports.recovery)]),
        "recovered_health": json.dumps([*asking, f"http://127.0.0.1:{ports.recovery}/health"]),
        "drilled": json.dumps([*service, str(ports.drill)]),
        "drilled_health": json.dumps([*asking, f"http://127.0.0.1:{ports.drill}/health"]),
    }
    for name, text in (
        ("target.toml", TARGET),
        ("agent.toml", AGENT),
        ("orchestrator.toml", ORCHESTRATOR),
        ("runbook.yaml", RUNBOOK),
    ):
        (folder / name).write_text(text.format(**values))
    (folder / "ports.json").write_text(json.dumps(vars(ports)))
