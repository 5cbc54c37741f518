"""Drill, failover and failback typed as commands, with a real target, agent and broker, and a workload on its disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient
from drengine.process import find_marked
from drengine.store.store import Store
from tests.recovery.replica import make
from tests.typed import AGENT, typed

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}", "NO_COLOR": "1"}
SIZE = 4 << 20
BLOCK = 4096
SECONDS = 120.0

WORKLOAD = """
import json, os, pathlib, time
from drengine.nbd.client import NbdClient
with NbdClient.of(json.loads(os.environ["DRENGINE_DISKS"])["data"]) as disk:
    disk.write(0, disk.read(0, 7) + b" and recovered by " + os.environ["DRENGINE_RUN"].encode())
    disk.flush()
    pathlib.Path(os.environ["READY"], os.environ["DRENGINE_RUN"]).touch()
    time.sleep(600)
"""

RUNBOOK = f"""
version: 1
name: shop
objectives: {{rpo: 5s, rto: 1m}}
sources:
  shop:
    services:
      - {{name: shop, stop: ["true"], start: [touch, PLACE/started]}}
    launch:
      driver: command
      settings:
        run: [{sys.executable}, -c, {json.dumps(WORKLOAD)}]
        health: [sh, -c, "test -e $READY/$DRENGINE_RUN"]
        environment: {{READY: PLACE}}
        details: {{address: 127.0.0.1}}
waves:
  - name: all
    sources: [shop]
    then:
      - name: it has an address
        command: [test, "${{shop.address}}", "=", "127.0.0.1"]
"""


@dataclass
class Site:
    """One machine that plays every part."""

    directory: Path
    environment: Mapping[str, str] = field(default_factory=lambda: ENVIRONMENT)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *argv: str) -> None:
        self.start_module(name, "drengine_agent.cli.main" if name == "agent" else "drengine.cli.main", *argv)

    def start_module(self, name: str, module: str, *argv: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *argv], stdout=log, stderr=log, env=self.environment, cwd=ROOT
            )

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def stop(self, name: str) -> None:
        self.processes[name].terminate()
        self.processes.pop(name).wait()

    def end(self) -> None:
        """Everything that was started, workloads too."""
        for name in list(self.processes):
            self.kill(name)
        for pid in find_marked("READY", str(self.directory / "ready")):
            os.kill(pid, signal.SIGKILL)

    def agent(self, *argv: str) -> dict[str, Any]:
        """A command of the agent; {} when it does not answer."""
        done = typed(AGENT, *argv, "-c", self.directory / "agent.toml", "--json", env=self.environment, cwd=ROOT)
        found: dict[str, Any] = json.loads(done.stdout or "{}")
        return found

    def hears_agent(self) -> bool:
        """Whether the orchestrator has heard of the agent and takes it for connected."""
        rest = tomllib.loads((self.directory / "orchestrator.toml").read_text())["rest"]
        with urllib.request.urlopen(f"http://{rest}/api/v1/parties", timeout=5) as answer:
            return any(each["kind"] == "agent" and each["online"] for each in json.load(answer))

    def drengine(self, *argv: str, code: int = 0) -> dict[str, Any]:
        """A command about runs; its JSON, on standard output or, for an error, on standard error."""
        _, _, *words = self.about_runs(*argv)
        done = typed(*words, env=self.environment, cwd=ROOT)
        assert done.returncode == code, f"{argv} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        told: dict[str, Any] = json.loads((done.stdout or done.stderr).strip().splitlines()[-1])
        return told

    def about_runs(self, *argv: str) -> list[str]:
        """Such a command's words."""
        more = ["--config", str(self.directory / "orchestrator.toml"), "--json"]
        return [sys.executable, "-m", "drengine.cli.main", *argv, *more]

    @property
    def broker(self) -> str:
        """Its address."""
        return str(tomllib.loads((self.directory / "orchestrator.toml").read_text())["broker"]["address"])

    def tap(self) -> NbdClient:
        return NbdClient.of(f"nbd+unix:///data?socket={self.directory / 'tap.sock'}")


@pytest.fixture
def site() -> Iterator[Site]:
    with site_running() as made:
        yield made


@contextlib.contextmanager
def site_running(environment: Mapping[str, str] = ENVIRONMENT, *, daemon: bool = True) -> Iterator[Site]:
    """A target, a broker and orchestrator, and an agent that replicates one disk.

    Without the `daemon` there is only a broker: nobody takes up runs whose process was killed.
    """
    with contextlib.ExitStack() as stack:
        # Unix sockets have short names, wherever pytest puts its own directories.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        write_configuration(directory, *free_ports(3))
        made = Site(directory, environment)
        stack.callback(made.end)
        Store.create(directory / "store").close()
        made.start("target", "target", "run", "--config", str(directory / "target.toml"))
        eventually((directory / "nbd.sock").exists)
        if daemon:
            made.start("orchestrator", "orchestrator", "run", "--config", str(directory / "orchestrator.toml"))
        else:
            made.start("broker", "broker", "run", "--listen", made.broker)
        made.start("agent", "run", "-c", str(directory / "agent.toml"))
        yield made


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        doors = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [door.getsockname()[1] for door in doors]


def write_configuration(directory: Path, target: int, broker: int, rest: int) -> None:
    (directory / "ready").mkdir()
    (directory / "shop.yaml").write_text(RUNBOOK.replace("PLACE", str(directory / "ready")))
    (directory / "disk").write_bytes(bytes(SIZE))
    (directory / "target.toml").write_text(
        f'store = "{directory}/store"\nlisten = "127.0.0.1:{target}"\nnbd_socket = "{directory}/nbd.sock"\n'
    )
    (directory / "orchestrator.toml").write_text(
        f'store = "{directory}/store"\nstate = "{directory}/state"\nexport = "unix:{directory}/nbd.sock"\n'
        f'rest = "127.0.0.1:{rest}"\n[broker]\naddress = "127.0.0.1:{broker}"\nembedded = true\n'
    )
    (directory / "agent.toml").write_text(
        f'source = "shop"\ntarget = "127.0.0.1:{target}"\nstate_directory = "{directory}/agent"\n'
        f'[nbd]\nlisten = "unix:{directory}/tap.sock"\njournal = "16MiB"\n'
        f'[allow]\ncommands = ["true", "touch {directory}/ready/started"]\n'
        f'[control]\naddress = "127.0.0.1:{broker}"\n'
        f'[[volume]]\nname = "data"\npath = "{directory}/disk"\n'
    )


def eventually(condition: Callable[[], object]) -> Any:
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(OSError, KeyError, ValueError, DrengineError):
            found = condition()
            if found:
                return found
        assert time.monotonic() < deadline, "it does not come to pass"
        time.sleep(0.1)


def write(site: Site, at: int, data: bytes) -> bool:
    with site.tap() as tap:
        tap.write(at, data)
        tap.flush()
    return True


@pytest.mark.fault(45, 46, 62)
@pytest.mark.timeout(600)  # a bound for what hangs: a busy machine takes minutes
def test_a_shop_is_drilled_failed_over_and_brought_home(site: Site) -> None:
    eventually(lambda: write(site, 0, b"written"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    drill = site.drengine("drill", str(site.directory / "shop.yaml"))
    assert drill["outcome"] == "completed"
    assert write(site, BLOCK, b"while the drill ran")
    assert site.agent("cut", "--label", "before")

    failover = site.drengine("failover", str(site.directory / "shop.yaml"))
    assert (failover["outcome"], failover["fencing"]) == ("completed", {"shop": "agent"})
    assert failover["rpo_seconds"] < 30
    with pytest.raises((OSError, DrengineError)):
        write(site, 0, b"split brain")
    site.kill("agent")
    site.start("agent", "run", "-c", str(site.directory / "agent.toml"))
    eventually(lambda: site.agent("status")["standing"] == "fenced")

    home = site.drengine("failback", str(site.directory / "shop.yaml"))
    assert home["outcome"] == "completed"
    assert (site.directory / "ready/started").exists(), "its agent started the service"
    assert home["bytes_shipped_back"] < SIZE / 4
    with site.tap() as tap:
        found = bytes(tap.read(0, 100))
        assert bytes(tap.read(BLOCK, 19)) == b"while the drill ran"
    assert found.startswith(b"written and recovered by " + failover["run"].encode())
    assert write(site, 2 * BLOCK, b"home")
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")


@pytest.mark.timeout(600)  # a bound for what hangs: a busy machine takes minutes
def test_a_failback_whose_service_the_source_does_not_allow_hands_back_and_says_so(site: Site) -> None:
    book = site.directory / "shop.yaml"
    eventually(lambda: write(site, 0, b"written"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    eventually(site.hears_agent)
    assert site.drengine("failover", str(book))["outcome"] == "completed"
    text = book.read_text()
    book.write_text(text.replace("start: [touch,", "start: [rm,"))
    refused = site.drengine("failback", str(book), code=225)
    assert "services-allowed:shop" in str(refused), "it is known before"
    assert [step["status"] for step in refused["steps"]][:3] == ["done", "failed", "pending"]
    site.drengine("abort", refused["run"])
    stopped = site.drengine("failback", str(book), "--despite", "services-allowed", code=106)
    release = next(step for step in stopped["steps"] if step["id"] == "release:shop")
    assert (release["code"], "[allow] commands" in release["message"]) == ("order-not-allowed", True)
    assert (stopped["state"], stopped["outage_seconds"]) == ("stopped", None), "nothing serves yet"
    book.write_text(text)
    home = site.drengine("run", "resume", "last", "--runbook", str(book))
    assert (home["run"], home["outcome"]) == (stopped["run"], "completed")
    assert home["outage_seconds"] > 0
    assert (site.directory / "ready/started").exists()


@pytest.mark.timeout(600)  # a bound for what hangs: a busy machine takes minutes
def test_a_blocked_failover_says_whom_it_left_fenced_and_a_rollback_releases_it(site: Site) -> None:
    """Two servers: the one is fenced by its agent, the other can't be; then somebody gives up."""
    make(site.directory / "store", source="bank")
    book = site.directory / "shop.yaml"
    bank = """  bank:
    fence: {command: ['false'], retries: 0}
    launch: {driver: command, settings: {run: [sleep, '9']}}
"""
    text = book.read_text().replace("waves:", f"{bank}waves:")
    book.write_text(text.replace("sources: [shop]", "sources: [shop, bank]"))
    eventually(lambda: write(site, 0, b"written"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    eventually(site.hears_agent)
    blocked = site.drengine("failover", str(book), code=107)
    run = blocked["run"]
    assert (blocked["outcome"], blocked["left_fenced"]) == ("blocked", ["shop"])
    status = site.agent("status")
    assert (status["standing"], status["fence_run"]) == ("fenced", run)
    assert f"run {run}" in status["why"]
    assert f"drengine rollback {run}" in status["release"]
    aborted = site.drengine("abort", run)
    assert (aborted["outcome"], aborted["left_fenced"]) == ("aborted", ["shop"])
    assert f"drengine rollback {run}" in [each["command"] for each in aborted["next"]]
    undone = site.drengine("rollback", run)
    assert (undone["outcome"], undone["left_fenced"]) == ("rolled-back", [])
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    assert site.agent("status")["why"] == ""
    assert write(site, BLOCK, b"business goes on")


@pytest.mark.fault(27)
@pytest.mark.timeout(600)  # a bound for what hangs: a busy machine takes minutes
@pytest.mark.parametrize("larger", [0, 1 << 20])
def test_a_shop_comes_home_to_a_disk_that_replaces_the_lost_one(site: Site, larger: int) -> None:
    eventually(lambda: write(site, 0, b"written"))
    eventually(lambda: write(site, 3 * BLOCK, b"never read again from the old disk"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    assert site.agent("cut", "--label", "before")
    eventually(site.hears_agent)
    failover = site.drengine("failover", str(site.directory / "shop.yaml"))
    assert failover["outcome"] == "completed"

    site.kill("agent")
    (site.directory / "disk").unlink()
    (site.directory / "disk").write_bytes(b"\xff" * (SIZE + larger))
    site.start("agent", "run", "-c", str(site.directory / "agent.toml"))
    assert site.processes.pop("agent").wait(SECONDS) == 71
    assert "drengine-agent adopt --volume data" in (site.directory / "agent.log").read_text()
    adopted = site.agent("adopt", "--volume", "data")
    assert adopted["declared"] == adopted["formerly"] != adopted["identity"]
    site.start("agent", "run", "-c", str(site.directory / "agent.toml"))
    eventually(lambda: site.agent("status")["replaced"] == ["data"])

    home = site.drengine("failback", str(site.directory / "shop.yaml"))
    assert home["outcome"] == "completed"
    with site.tap() as tap:
        assert bytes(tap.read(0, 100)).startswith(b"written and recovered by " + failover["run"].encode())
        assert bytes(tap.read(3 * BLOCK, 34)) == b"never read again from the old disk"
        assert bytes(tap.read(4 * BLOCK, SIZE - 4 * BLOCK)) == bytes(SIZE - 4 * BLOCK)
    assert write(site, 2 * BLOCK, b"home")
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    shown = (site.directory / "agent.log").read_text()
    assert "adopted at" in shown and adopted["identity"] in shown, "an auditor finds it in the log"
