"""A secret that a runbook refers to is used, and stands nowhere: not in registry, journal, reports or messages."""

from __future__ import annotations

import hashlib
import http.server
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from drengine.audit import AuditLog
from drengine.control.agents import NoAgents
from drengine.failover.config import OrchestratorConfig
from drengine.failover.drivers.command import CommandDriver
from drengine.failover.engine import Engine
from drengine.failover.errors import NOT_READY
from drengine.failover.orders import Orders
from drengine.failover.preflight.examine import Preflight
from drengine.failover.reading.reader import examine
from drengine.failover.registry import Registry
from drengine.failover.run import Outcome, RunState, Status
from drengine.failover.runbook.values import Mode
from drengine.model.clock import SystemClock
from drengine.people.door import Door
from drengine.people.roles import Role
from tests.failover.engine.test_engine import begin
from tests.failover.engine.world import World
from tests.persons import ANN

SECRET = "corr3ct-h0rse+battery"
SHA256 = hashlib.sha256(SECRET.encode()).hexdigest()
BOOK = """
version: 1
name: shop
sources:
  shop:
    launch:
      driver: command
      settings:
        run: [sh, -c, 'printf %s "$DB" | sha256sum > @@/got; echo "started with $DB"; exec sleep 600']
        health: [sh, -c, 'echo "healthy with $DB"; test -s @@/got']
        environment: {DB: "REFERENCE", PLACE: /tmp}
        grace: 1s
waves:
  - name: all
    sources: [shop]
    then:
"""


@dataclass
class Hostile(http.server.ThreadingHTTPServer):
    """A web server that tells a secret whatever it is asked, and keeps what it is sent."""

    bodies: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Teller)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Teller(http.server.BaseHTTPRequestHandler):
    server: Hostile

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"the secret is {SECRET}".encode())

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@dataclass
class Place:
    """A site whose runs refer to one secret."""

    tmp_path: Path
    world: World
    web: Hostile

    def engine(self) -> Engine:
        """As a process opens it that has just started."""
        audit = AuditLog.open(self.tmp_path / "state/audit")
        registry = Registry.open(f"sqlite:///{self.tmp_path}/state/registry.sqlite", clock=SystemClock(), audit=audit)
        config = OrchestratorConfig(store=self.world.path, state=self.tmp_path / "state")
        door = Door.of(config.state, SystemClock())
        if not door.accounts.find("ann"):
            door.accounts.add("ann", (Role.APPROVER,))
        looked = Preflight(config, registry, door, NoAgents())
        drivers = {"command": CommandDriver()}
        site = replace(self.world.site(), drivers=drivers, directory=config.instances, preflight=looked)
        return Engine(config, registry, site, NoAgents(), "here", door)

    def book(self, steps: str, *, reference: str = "${env:DR_SECRET}") -> str:
        text = BOOK.replace("REFERENCE", reference).replace("@@", str(self.tmp_path)) + steps
        path = self.tmp_path / "shop.yaml"
        path.write_text(text)
        return str(path)

    def places_of_the_secret(self) -> list[str]:
        """Where it stands in the clear; the workload's own output is its own."""
        files = [each for each in (self.tmp_path / "state").rglob("*") if each.is_file() and each.name != "output.log"]
        assert {"registry.sqlite", "head"} <= {each.name for each in files}
        return [str(each) for each in files if SECRET.encode() in each.read_bytes()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("DR_SECRET", SECRET)
    web = Hostile()
    made = Place(tmp_path, World(tmp_path / "world"), web)
    yield made
    web.shutdown()
    web.server_close()


@pytest.mark.parametrize("way", ["env", "file", "credential"])
async def test_a_run_that_another_process_goes_on_with_finds_the_secret_again(
    place: Place, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = place.tmp_path / "given/DR_SECRET"
    kept.parent.mkdir()
    kept.write_text(SECRET + "\n")
    what = str(kept) if way == "file" else "DR_SECRET"
    if way != "env":
        monkeypatch.delenv("DR_SECRET")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(kept.parent))
    ask = '      - command: ["true"]\n    before:\n      - approval: {prompt: "go on?", by: [ann]}\n'
    path = place.book(ask, reference=f"${{{way}:{what}}}")
    first = place.engine()
    run = await first.execute(begin(first, Mode.DRILL, path), wait=False)
    assert run.state is RunState.WAITING
    first.registry.close()
    second = place.engine()
    Orders(second, ANN).approve(run.id)
    ended = await second.execute(run)
    failed = [
        (each.step.id, each.message, each.output)
        for each in second.snapshot(run.id).steps
        if each.status is Status.FAILED
    ]
    assert (ended.outcome, failed) == (Outcome.COMPLETED, [])
    assert (place.tmp_path / "got").read_text().split()[0] == SHA256
    second.registry.close()
    assert place.places_of_the_secret() == []


ROADS = {
    "output of the workload and its health": "      - command: ['true']\n",
    "output of a command": "      - command: [sh, -c, 'echo DR; cat FOLDER/told; exit 1']\n",
    "arguments of a command": "      - command: [sh, -c, 'exit 1', '${env:DR_SECRET}']\n",
    "body of a web page": "      - http: {url: 'URL/', contains: none}\n",
    "header of a request": "      - http: {url: 'URL/', headers: {X-Key: '${env:DR_SECRET}'}, contains: none}\n",
    "result of a query": "      - sql: {dsn: 'sqlite:///FOLDER/db', query: 'select told from secrets', expect: 'no'}\n",
    "text of a query": "      - sql: {dsn: 'sqlite:///FOLDER/db', query: \"select '${env:DR_SECRET}' from none\"}\n",
    "body of a notification": "      - notify: {url: 'URL/hook'}\n",
    "address of a notification": "      - notify: {url: 'http://127.0.0.1:1/${env:DR_SECRET}'}\n",
    "input of a command": "      - notify: {command: [sh, -c, 'cat; cat FOLDER/told; exit 1']}\n",
}


@pytest.mark.parametrize("road", ROADS)
async def test_no_road_leads_a_secret_into_the_registry_or_to_others(place: Place, road: str) -> None:
    (place.tmp_path / "told").write_text(f"the secret is {SECRET}\n")
    with sqlite3.connect(place.tmp_path / "db") as database:
        database.execute("create table secrets (told text)")
        database.execute("insert into secrets values (?)", (f"it is {SECRET}",))
    step = ROADS[road].replace("URL", place.web.url).replace("FOLDER", str(place.tmp_path))
    path = place.book(f"{step}        timeout: 1s\n")
    engine = place.engine()
    run = await engine.execute(begin(engine, Mode.DRILL, path))
    assert run.state is RunState.FINISHED
    states = engine.snapshot(run.id).steps
    assert next(each for each in states if each.step.id == "launch:shop").status is Status.DONE
    engine.registry.close()
    assert place.places_of_the_secret() == []
    assert SECRET not in repr(states) and "***" in repr(states)
    assert SECRET not in "".join(place.web.bodies)
    assert len(place.web.bodies) == (road == "body of a notification")


async def test_what_a_runbook_refers_to_must_be_there_before_anything_is_fenced(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DR_SECRET")
    engine = place.engine()
    run = await engine.execute(begin(engine, Mode.FAILOVER, place.book("      - command: ['true']\n")))
    assert run.outcome is not Outcome.COMPLETED
    states = {each.step.id: each for each in engine.snapshot(run.id).steps}
    assert states["preflight"].code == NOT_READY.id and "reference:env:DR_SECRET" in states["preflight"].message
    assert not states["fence:shop"].begun
    engine.registry.close()


def test_a_secret_in_the_clear_is_worth_a_warning(place: Place) -> None:
    text = Path(place.book("      - command: ['true']\n")).read_text()
    clear = text.replace('{DB: "${env:DR_SECRET}"', '{DB_PASSWORD: "hunter2", TOKEN_FILE: "${file:/run/x}"')

    def warned(text: str) -> list[tuple[str, str]]:
        found = examine(text, drivers={"command": CommandDriver()}).findings
        return [(each.id, each.path) for each in found if each.id == "clear-secret"]

    assert warned(text) == []
    assert warned(clear) == [("clear-secret", "sources.shop.launch.settings.environment.DB_PASSWORD")]
