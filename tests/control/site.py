"""A site for tests: a broker, parties that note what they did, an orchestrator's view of them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from drengine.config import Address
from drengine.control.agents import BrokerAgents
from drengine.control.config import BrokerOptions
from drengine.control.dispatch import Action, Generations, Tell
from drengine.control.messages import AgentReport, Command, PartyKind, Verb
from drengine.control.party import Party
from drengine.model.clock import SystemClock

DEADLINE_SECONDS = 30.0


def mosquitto() -> str:
    """The program, or a skip that says why."""
    found = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        pytest.skip("mosquitto is not installed")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def until(true: Callable[[], object], what: str = "it") -> None:
    """Wait for something to become true; a failure says what never did."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"{what} never happened"
        await asyncio.sleep(0.01)


class Mosquitto:
    """A real broker as a process that can be killed and started again at the same port."""

    def __init__(self, directory: Path, configuration: str = "allow_anonymous true\n", port: int = 0) -> None:
        self._program = mosquitto()
        self.port = port or free_port()
        self._path = directory / "mosquitto.conf"
        self._log = directory / "mosquitto.log"
        if "listener" not in configuration:
            configuration = f"listener {self.port} 127.0.0.1\n{configuration}"
        self._path.write_text(configuration)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._path)], stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.01)

    def resident_bytes(self) -> int:
        """Memory that it has now."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """As a service manager would: it saves what is retained."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(DEADLINE_SECONDS)
        self._process = None

    def reload(self) -> None:
        """Make it read its ACL and CRL again, and wait until it has."""
        assert self._process is not None
        before = self._log.read_text().count("Reloading config")
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._log.read_text().count("Reloading config") == before:
            assert time.monotonic() < deadline, "it was not reloaded"
            time.sleep(0.01)

    def log(self) -> str:
        return self._log.read_text()


class Worker:
    """What a party's actions do in tests: they note it, durably, and answer with how often they did."""

    def __init__(self, directory: Path, generation: int = 1) -> None:
        self.directory = directory
        self.generation = generation
        self.hold = asyncio.Event()
        self.hold.set()

    def done(self) -> list[str]:
        """Ids of commands carried out, in order, also by earlier processes."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "done").read_text().splitlines()
        return []

    async def act(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        tell({"step": 1})
        await self.hold.wait()
        with (self.directory / "done").open("a") as file:
            file.write(command.id + "\n")
        return {"count": len(self.done()), **command.arguments}

    async def look(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        return {"generation": self.generation}

    def actions(self) -> dict[Verb, Action]:
        return {
            Verb.SYNC: Action(self.act),
            Verb.CUT: Action(self.act, repeatable=False),
            Verb.FENCE: Action(self.act, Generations.NOT_OLDER, bounded=False),
            Verb.STATUS: Action(self.look, Generations.ANY, remembered=False),
        }

    def report(self) -> AgentReport:
        return AgentReport(
            name="", kind=PartyKind.AGENT, state="CONTINUOUS", reason="none", generation=self.generation, fenced=False,
            serving=True, lag_seconds=0.0, backlog_bytes=0, at_ns=0, sequence=0,
        )  # fmt: skip


def options_for(port: int, **more: Any) -> BrokerOptions:
    return BrokerOptions(address=Address("127.0.0.1", port), **more)


@contextlib.asynccontextmanager
async def party(
    options: BrokerOptions, worker: Worker, name: str = "shop", kind: PartyKind = PartyKind.AGENT, **more: Any
) -> AsyncIterator[Party]:
    made = Party(
        options, kind, name, actions=worker.actions(), report=worker.report, log=worker.directory / "commands",
        clock=SystemClock(), random=Random(1), report_seconds=more.pop("report_seconds", 0.5), **more,
    )  # fmt: skip
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def orchestrator(options: BrokerOptions, **more: Any) -> AsyncIterator[BrokerAgents]:
    async with BrokerAgents(options, random=Random(2), **more) as agents:
        assert await agents.settled(DEADLINE_SECONDS)
        yield agents
