"""HTTP, TCP and SQL checks against real servers on loopback."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import pytest

from drengine.control.messages import Answer, Verb
from drengine.failover.runbook.values import Launch, Source
from drengine.failover.steps.errors import CHECK_FAILED
from drengine.failover.steps.http import HttpStep
from drengine.failover.steps.kinds import step_kinds
from drengine.failover.steps.sql import SqlStep
from drengine.failover.steps.step import Agents, StepContext
from drengine.failover.steps.tcp import TcpStep
from drengine.failover.steps.workloads import instance_name
from tests.failover.steps.context import RUNBOOK, HastyClock, context, planned

KINDS = step_kinds()


class Service(BaseHTTPRequestHandler):
    answers: ClassVar[list[tuple[int, bytes]]] = []
    asked = 0

    def do_GET(self) -> None:
        status, body = self.answers[min(type(self).asked, len(self.answers) - 1)]
        type(self).asked += 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def service() -> Iterator[str]:
    Service.asked = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


async def test_a_service_that_wakes_up_late_passes_and_says_how_often_it_was_asked(service: str) -> None:
    Service.answers = [(503, b""), (200, b"starting"), (200, b"ready: 42")]
    step = planned(KINDS["http"], {"http": {"url": service, "contains": "ready"}}, timeout_seconds=60)
    result = await HttpStep().act(step, context())
    assert result.ok
    assert result.data.tries == 3


async def test_the_wrong_status_fails_with_what_was_seen(service: str) -> None:
    Service.answers = [(500, b"boom")]
    step = planned(KINDS["http"], {"http": {"url": service}}, timeout_seconds=3)
    result = await HttpStep().act(step, context())
    assert (result.ok, result.code) == (False, CHECK_FAILED.id)
    assert "answered 500, not 200" in result.message


async def test_a_check_of_an_expected_refusal_passes(service: str) -> None:
    Service.answers = [(404, b"")]
    assert (await HttpStep().act(planned(KINDS["http"], {"http": {"url": service, "status": 404}}), context())).ok


async def test_another_scheme_is_no_way_to_read_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    step = planned(KINDS["http"], {"http": {"url": f"file://{tmp_path}/secret"}}, timeout_seconds=0)
    result = await HttpStep().act(step, context())
    assert not result.ok
    assert "neither http nor https" in result.message


async def test_the_address_of_a_launched_workload_is_filled_in(service: str) -> None:
    Service.answers = [(200, b"")]
    host = service.removeprefix("http://")
    step = planned(KINDS["http"], {"http": {"url": "http://${shop.address}/"}})
    assert (await HttpStep().act(step, context(results={"launch:shop": {"details": {"address": host}}}))).ok


async def test_a_reference_to_nothing_says_what_is_known() -> None:
    step = planned(KINDS["tcp"], {"tcp": {"host": "${shop.adress}", "port": 1}}, timeout_seconds=0)
    with pytest.raises(Exception, match=r"shop\.address") as raised:
        await TcpStep().act(step, context(results={"launch:shop": {"details": {"address": "x"}}}))
    assert raised.value.kind.id == "bad-reference"  # type: ignore[attr-defined]


async def test_a_port_that_nobody_listens_on_is_asked_until_the_time_is_up() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        clock = HastyClock()
        step = planned(KINDS["tcp"], {"tcp": {"host": "127.0.0.1", "port": port}}, timeout_seconds=10, every_seconds=2)
        result = await TcpStep().act(step, context(clock=clock))
    assert (result.ok, result.data.tries) == (False, 5)
    assert clock.slept < 10


async def test_sql_compares_the_first_value(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as database:
        database.execute("create table orders (id integer)")
        database.execute("insert into orders values (1), (2)")
    sql = {"dsn": f"sqlite:///{path}", "query": "select count(*) from orders", "expect": "2"}
    assert (await SqlStep().act(planned(KINDS["sql"], {"sql": sql}), context())).ok
    wrong = await SqlStep().act(planned(KINDS["sql"], {"sql": {**sql, "expect": "3"}}, timeout_seconds=0), context())
    assert "gave '2', not '3'" in wrong.message


@pytest.mark.fault(59)
async def test_a_password_in_a_database_address_is_never_shown() -> None:
    sql = {"dsn": "postgresql://app:hunter2@127.0.0.1:1/db", "query": "select 1"}
    said: list[str] = []
    step = planned(KINDS["sql"], {"sql": sql}, timeout_seconds=2)
    result = await SqlStep().act(step, context(say=said.append))
    assert not result.ok
    assert "hunter2" not in repr(result) + repr(said)


async def test_what_a_service_said_is_told_with_the_result_and_without_secrets(service: str) -> None:
    Service.answers = [(200, b"ready: 42 password=hunter2 " + b"x" * 9000)]
    result = await HttpStep().act(planned(KINDS["http"], {"http": {"url": service}}, timeout_seconds=3), context())
    assert result.output.startswith("ready: 42 password=***")
    assert len(result.output) <= 2000


class Hosts:
    """A broker on which one recovery host answers."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.orders = list(answers), list[dict[str, Any]]()

    async def command(self, name: str, verb: Verb, arguments: dict[str, Any], *, id: str, **_: Any) -> Answer:
        self.orders.append({"host": name, "verb": verb, "id": id, **arguments})
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def inside(hosts: Hosts) -> StepContext:
    launch = Launch(driver="standby", host="recovery-1")
    book = msgspec.structs.replace(RUNBOOK, sources={"shop": Source(launch=launch)})
    given = context(runbook=book)
    return replace(given, site=replace(given.site, agents=cast(Agents, hosts)))


async def test_a_check_inside_is_made_by_the_recovery_host_until_it_passes() -> None:
    late = Answer(id="", done=True, ok=False, code="standby-failed", message="connection refused, token: abc123def")
    well = Answer(id="", done=True, ok=True, result={"seen": "it answered 200", "output": "secret=hunter2"})
    hosts = Hosts(late, well)
    settings = {"http": {"url": "http://127.0.0.1/", "contains": "ready"}}
    result = await HttpStep().act(planned(KINDS["http"], settings, timeout_seconds=60, inside="shop"), inside(hosts))
    assert (result.ok, result.message, result.output) == (True, "it answered 200", "secret=***")
    first, second = hosts.orders
    assert (first["host"], first["verb"]) == ("recovery-1", Verb.CHECK)
    assert first["http"]["contains"] == "ready"
    assert first["id"] != second["id"], "a repeated id would get the first answer again"
    assert first["instance"] == instance_name("run-1", "shop")


async def test_a_command_inside_fails_with_the_hosts_words() -> None:
    why = "the command 'psql' ([allow] commands)"
    refused = Answer(id="", done=True, ok=False, code="order-not-allowed", message=why)
    step = planned(KINDS["command"], {"command": ["psql"]}, inside="shop")
    result = await KINDS["command"].act(step, inside(Hosts(refused)))
    assert (result.ok, result.message) == (False, why)
