"""A site as it is deployed, on three hosts in network namespaces: a source whose agent serves its disk, an Outpost with
Mosquitto, target and orchestrator, and a recovery host. Everything speaks TLS under identities that are required.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drengine.console.client import Client
from drengine.linux.mounts import read_mounts
from drengine.nbd.client import NbdClient
from drengine.process import end_marked, start_marked
from tests.control.site import mosquitto
from tests.system.networks import SERVICES, Networks, networks
from tests.system.workloads import end_workloads

MARK = "DR_TEST_PREFLIGHT"
DISK_BYTES = 8 << 20
STORE_BYTES = 256 << 20
SECONDS_MAX = 30.0
EVERY_SECONDS = 2.0
PARTIES = {
    "outpost": ("target/outpost", SERVICES),
    "broker": ("broker/broker", SERVICES),
    "shop": ("agent/shop",),
    "recovery-1": ("host/recovery-1",),
    "orchestrator": ("orchestrator/orchestrator",),
}
TLS = """certificate = "{{tls}}/{0}/certificate.pem"
key = "{{tls}}/{0}/key.pem"
ca = "{{tls}}/{0}/ca.pem"
"""
CONTROL = '[{1}]\naddress = "{{services}}:8883"\n' + TLS
FILES = {
    "target": 'store = "{folder}/store/replica"\nlisten = "{services}:7440"\nnbd_listen = "{services}:10809"\n'
    'data_networks = ["10.81.1.0/24", "10.81.2.0/24"]\nexports = "granted"\n[tls]\nidentities = "required"\n'
    + TLS.format("outpost"),
    "agent": 'source = "shop"\ntarget = "{services}:7440"\nstate_directory = "{folder}/agent"\n'
    'data_networks = ["{services}/32"]\n[nbd]\nlisten = "unix:{folder}/tap.sock"\n[tls]\n'
    + TLS.format("shop")
    + CONTROL.format("shop", "control")
    + '[[volume]]\nname = "data"\npath = "{folder}/disk.img"\n',
    "standby": 'name = "recovery-1"\nstate_directory = "{folder}/standby"\ndata_networks = ["{services}/32"]\n[tls]\n'
    + TLS.format("nbd")
    + CONTROL.format("recovery-1", "control"),
    "orchestrator": 'store = "{folder}/store/replica"\nstate = "{folder}/orchestrator"\nexport = "{services}:10809"\n'
    f'ready_every = "{EVERY_SECONDS:g}s"\nmetrics = "127.0.0.1:9441"\n' + CONTROL.format("orchestrator", "broker"),
}
BROKER = """user root
listener 8883 {services}
cafile {tls}/broker/ca.pem
certfile {tls}/broker/certificate.pem
keyfile {tls}/broker/key.pem
require_certificate true
use_identity_as_username true
allow_anonymous true
"""
SQL = {"sql": {"dsn": "postgresql://check@127.0.0.1:1/shop", "query": "SELECT 1"}, "modes": ["failover"]}
PROGRAMS = {
    "fence": "echo off >> {folder}/fenced",
    "fence-dry": "echo on",
    "start": "exit 0",
    "check": "exit 0",
}


class Site:
    """The parties' processes, found again and ended by their mark."""

    def __init__(self, folder: Path, nets: Networks) -> None:
        self.folder, self.nets = folder, nets
        self.tls = folder / "tls"
        self.at = folder / "recovered"
        self.paths = os.pathsep.join(map(os.path.abspath, sys.path))

    def start(self, name: str, host: str, *argv: str, first: str = "") -> None:
        """A process that stays; `first` comes before all else on its PYTHONPATH."""
        paths = os.pathsep.join(filter(None, (first, self.paths)))
        start_marked(
            [*self.nets.inside(host), *argv],
            MARK,
            f"{self.folder.name}-{name}",
            output=self.folder / f"{name}.log",
            directory=self.folder,
            environment={"PYTHONPATH": paths},
        )

    def kill(self, name: str) -> None:
        """The process that was started under this name, at once."""
        end_marked(MARK, f"{self.folder.name}-{name}", grace_seconds=0.0)

    def start_party(self, name: str, *, first: str = "") -> None:
        """One of `broker`, `target`, `agent`, `standby`, `orchestrator`."""
        python = (sys.executable, "-m")
        match name:
            case "broker":
                self.start(name, "outpost", mosquitto(), "-c", str(self.folder / "mosquitto.conf"))
            case "target" | "orchestrator":
                self.start(
                    name, "outpost", *python, "drengine.cli.main", name, "run", "-c", f"{name}.toml", first=first
                )
            case "standby":
                self.start(name, "recovery", *python, "drengine_agent", "standby", "run", "--config", "standby.toml")
            case _:
                self.start(name, "source", *python, "drengine_agent", "run", "--config", "agent.toml")

    def say(self, host: str, *argv: str, may_fail: bool = False) -> Any:
        """A command's JSON."""
        done = subprocess.run(
            [*self.nets.inside(host), sys.executable, "-m", *argv, "--json"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": self.paths},
            timeout=120,
        )
        assert may_fail or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def drengine(self, *argv: str, may_fail: bool = False) -> Any:
        return self.say("outpost", "drengine.cli.main", *argv, may_fail=may_fail)

    @property
    def rest(self) -> Client:
        return Client(f"unix:{self.folder}/orchestrator/orchestrator.sock")

    def program(self, name: str) -> Path:
        return self.folder / "bin" / name

    def write_program(self, name: str, text: str = "") -> None:
        place = self.program(name)
        place.write_text("#!/bin/sh\n" + (text or PROGRAMS[name].format(folder=self.folder)) + "\n")
        place.chmod(0o755)

    def write(self) -> None:
        """All files."""
        for each in ("bin", "store", "recovered", "shadow"):
            (self.folder / each).mkdir()
        for name in PROGRAMS:
            self.write_program(name)
        (self.folder / "secret").write_text("sesame-open\n")
        (self.folder / "disk.img").write_bytes(bytes(DISK_BYTES))
        self.drengine("ca", "init", "--ca", "ca", "--site", "main")
        for name, (party, *hosts) in PARTIES.items():
            self.issued(party, name, *hosts)
        self.issued("host/recovery-1", "nbd")
        values = {"folder": self.folder, "tls": self.tls, "services": SERVICES}
        for name, text in FILES.items():
            (self.folder / f"{name}.toml").write_text(text.format(**values))
        (self.folder / "mosquitto.conf").write_text(BROKER.format(**values))

    def issued(self, party: str, to: str, *hosts: str, valid: str = "30d") -> None:
        """Put a certificate in the place of what is there."""
        words = [word for host in hosts for word in ("--host", host)]
        with tempfile.TemporaryDirectory(dir=self.folder) as made:
            self.drengine("ca", "issue", party, *words, "--valid", valid, "--ca", "ca", "--to", f"{made}/new")
            (self.tls / to).mkdir(parents=True, exist_ok=True)
            for file in Path(made, "new").iterdir():
                file.rename(self.tls / to / file.name)

    def book(self, **changes: Any) -> dict[str, Any]:
        """The runbook that could be run; `changes` by the path that leads there, with `__` between keys."""
        book: dict[str, Any] = {
            "version": 1,
            "name": "shop",
            "objectives": {"rpo": "10s", "rto": "60s", "drill": "1d"},
            "sources": {
                "shop": {
                    "fence": {"command": [str(self.program("fence"))], "dry": [str(self.program("fence-dry"))]},
                    "launch": {
                        "driver": "standby",
                        "host": "recovery-1",
                        "timeout": "60s",
                        "settings": {
                            "start": [str(self.program("start"))],
                            "stop": ["true"],
                            "network": "host",
                        },
                    },
                }
            },
            "waves": [
                {
                    "name": "all",
                    "sources": ["shop"],
                    "then": [
                        {"command": [str(self.program("check")), f"${{file:{self.folder}/secret}}"]},
                        {
                            "sql": {"dsn": "postgresql://check@127.0.0.1:1/shop", "query": "SELECT 1"},
                            "modes": ["failover"],
                        },
                    ],
                }
            ],
        }
        for path, value in changes.items():
            *parts, last = path.split("__")
            place = book
            for each in parts:
                place = place[each]
            if value is None:
                del place[last]
            else:
                place[last] = value
        return book

    def keep(self, book: dict[str, Any]) -> None:
        """Give the orchestrator a runbook."""
        self.rest.ask("PUT", "/runbooks/shop", {"text": json.dumps(book)})

    def cycle(self) -> Any:
        """What the orchestrator finds in the first cycle that begins from now on."""
        since_ns = time.time_ns()

        def newest() -> Any:
            found = [each for each in self.rest.ask("GET", "/ready") if each["at_ns"] > since_ns]
            return found[0] if found else None

        return until(newest, "a cycle")

    def failing(self, *, severity: str = "") -> set[str]:
        """Ids of the checks that do not pass in the next cycle."""
        checks = self.cycle()["checks"]
        return {each["id"] for each in checks if not each["ok"] and severity in ("", each["severity"])}

    def write_disk(self) -> None:
        """What users do."""
        with NbdClient(str(self.folder / "tap.sock"), "data") as disk:
            disk.write(0, os.urandom(4096))
            disk.flush()


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait until it holds; what it gave."""
    end = time.monotonic() + SECONDS_MAX
    while True:
        with contextlib.suppress(Exception):
            if found := holds():
                return found
        assert time.monotonic() < end, f"{what} never happened"
        time.sleep(0.1)


def let_go(folder: Path) -> None:
    """Nothing stays attached or mounted below a folder."""
    for mount in (each.at for each in read_mounts() if each.at.is_relative_to(folder)):
        found = subprocess.run(
            ["losetup", "-j", mount, "-O", "NAME", "-n"], capture_output=True, text=True, check=False
        )
        for device in found.stdout.split():
            subprocess.run(["losetup", "-d", device], check=False)
        subprocess.run(["umount", "-l", mount], check=False)


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    """All parties, at work; nothing is left of them."""
    with networks() as nets:
        made = Site(folder, nets)
        made.write()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={STORE_BYTES}", "tmpfs", folder / "store"], check=True)
        names = ("broker", "target", "standby", "agent", "orchestrator")
        try:
            made.drengine("target", "init", "--config", "target.toml")
            for name in names:
                made.start_party(name)
            until((folder / "tap.sock").exists, "the agent's export")
            made.write_disk()
            until(lambda: made.rest.ask("GET", "/health"), "the orchestrator")
            until(lambda: made.rest.ask("GET", "/sources/shop/points"), "a point")
            yield made
        finally:
            try:
                end_workloads(folder / "standby")
            finally:
                for name in reversed(names):
                    made.kill(name)
                let_go(folder)
