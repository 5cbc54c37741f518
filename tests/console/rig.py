"""A real server with the REST API of an orchestrator in a small world, and a client that speaks plain HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from drengine.config import Address
from drengine.console.serve import serve_rest
from drengine.control.agents import NoAgents
from drengine.failover.config import OrchestratorConfig, RestTlsOptions
from drengine.failover.daemon import Orchestrator
from drengine.failover.engine import Engine
from drengine.failover.registry import Registry
from drengine.model.clock import SystemClock
from drengine.people.door import Door
from tests.failover.engine.world import World
from tests.persons import EVERYBODY

PREFIX = "/api/v1"
RUNBOOK = """\
version: 1
name: shop
objectives: {rpo: 1h, rto: 1m}
sources:
  shop: {launch: {driver: simulated}}
waves:
  - name: all
    sources: [shop]
"""
ASKING = RUNBOOK + "    before:\n      - approval: {prompt: Go?, by: [ann]}\n"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"].startswith("application/json"), self.headers
        return json.loads(self.body)


@dataclass
class Api:
    port: int
    world: World
    engine: Engine
    tokens: dict[str, str]

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        by: str | None = "bob",
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Authorization": f"Bearer {self.tokens[by]}"} if by is not None else {}
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        if data is not None:
            given["Content-Type"] = "application/json"
        try:
            connection.request(method, quote(PREFIX + path, safe="/?=&%:~"), data, {**given, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path, by=None)
        assert answer.status == 200, answer
        return answer.json

    def do(self, method: str, path: str, body: Any, by: str = "bob") -> Any:
        answer = self.ask(method, path, body, by=by)
        assert answer.status in (200, 201), answer
        return answer.json

    def approve(self, run: str, by: str = "ann", **more: Any) -> Answer:
        """What waits there now."""
        return self.ask("POST", f"/runs/{run}/approve", {"digest": self.get(f"/runs/{run}")["digest"], **more}, by=by)

    def until(self, run: str, wanted: Callable[[Any], bool]) -> Any:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = self.get(f"/runs/{run}")
            if wanted(found):
                return found
            time.sleep(0.02)
        raise AssertionError(f"it did not come to that: {found}")

    def finished(self, run: str) -> Any:
        return self.until(run, lambda found: found["state"] in ("finished", "stopped"))


@contextmanager
def served(folder: Path, *, tls: RestTlsOptions | None = None) -> Iterator[Api]:
    """The API in a thread with a loop of its own, until left."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder / "world")
    ready, stop = threading.Event(), threading.Event()
    made: list[Api] = []

    async def run() -> None:
        clock = SystemClock()
        registry = Registry.open(str(folder / "registry.sqlite"), clock=clock)
        config = OrchestratorConfig(
            store=folder, state=folder / "state", rest=Address("127.0.0.1", 0), rest_tls=tls or RestTlsOptions()
        )
        door = Door.of(config.state, clock)
        for each in EVERYBODY:
            door.accounts.add(each.name, tuple(each.roles))
        tokens = {each.name: door.accounts.issue(each.name, 3600)[1] for each in EVERYBODY}
        engine = Engine(config, registry, world.site(), NoAgents(), "here", door)
        async with serve_rest(Orchestrator(engine)) as port:
            made.append(Api(port, world, engine, tokens))
            ready.set()
            await asyncio.to_thread(stop.wait)
        registry.close()

    def serve() -> None:
        try:
            asyncio.run(run())
        finally:
            ready.set()

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait(30)
    try:
        yield made[0]
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
