"""Whatever people ask, they may ask any orchestrator; what is to be done or told once is done and told once."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from drengine.failover.duties import duty_lease
from drengine.failover.run import Outcome, RunState
from drengine.model.clock import SystemClock
from drengine.people.accounts import Accounts, accounts_file
from drengine.people.door import FILE
from drengine.people.passwords import hash_password
from drengine.people.roles import Role
from tests.orchestrators.rig import LEASE_SECONDS, Rig, until

ASKING = "before: [{approval: {prompt: really, self_approval: true}}, {command: [sh, "


@contextmanager
def pager() -> Iterator[tuple[str, list[str]]]:
    """A service that takes notices, as Apprise's json:// sends them; and their titles."""
    told: list[str] = []

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.append(body["title"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Taking)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"json://127.0.0.1:{server.server_port}", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.timeout(300)
def test_a_run_is_watched_approved_and_read_at_any_and_people_hear_of_it_once(site: Rig) -> None:
    with pager() as (url, told):
        tell = f'[notifications]\nto = ["{url}"]\n'
        one, two = site.add("one", extra=tell), site.add("two", extra=tell)
        site.ready()
        asking = site.runbook().replace("before: [{command: [sh, ", ASKING)
        one.ask("PUT", "/runbooks/shop", {"text": asking})
        run = two.ask("POST", "/runs", {"mode": "drill", "runbook": "shop"})["run"]
        until(lambda: one.ask("GET", f"/runs/{run}")["state"] == "waiting", "it waits")
        until(lambda: told, "the notice")
        until(lambda: site.registry.told(f"run:{run}"), "that it was sent is kept")
        two.send(signal.SIGKILL)
        until(lambda: len(set(site.owners(run))) == 2, "the other takes it up")
        two.start()
        until(two.answers, "it is back")
        digest = two.ask("GET", f"/runs/{run}")["digest"]
        two.ask("POST", f"/runs/{run}/approve", {"digest": digest, "note": "seen here"})
        assert site.ends(run).outcome is Outcome.COMPLETED
        assert len(set(site.owners(run))) == 2, "who approves it elsewhere does not take it away"
        for each in (one, two):
            assert each.ask("GET", f"/reports/{run}")["verdict"]
            until(lambda each=each: [kept["run"] for kept in each.ask("GET", "/reports")] == [run], "its report")
        until(lambda: len(told) == 2, "the end is told")
        assert [title.partition(":")[0] for title in told] == ["drill of shop waits for an approval", "drill of shop"]


@pytest.mark.timeout(300)
def test_accounts_and_tokens_are_everyones(site: Rig) -> None:
    formerly = site.folder / "one" / "state"
    accounts = Accounts(accounts_file(formerly / FILE), SystemClock())
    accounts.add("ann", (Role.OPERATOR,), hash_password("correct horse battery"))
    one, two = site.add("one"), site.add("two")
    site.ready()
    token = one.ask("POST", "/login", {"name": "ann", "password": "correct horse battery"})["token"]
    assert two.ask("GET", "/me", token=token)["name"] == "ann", "what lay with one is taken over, and is everyone's"
    one.ask("POST", "/logout", {}, token=token)
    with pytest.raises(AssertionError, match="not-signed-in"):
        two.ask("GET", "/me", token=token)
    assert [each.name for each in Accounts(site.registry.document("people"), SystemClock()).all()] == ["ann"]


@pytest.mark.campaign  # it waits for the wall clock; tests/failover/test_daemon.py owns one
@pytest.mark.timeout(300)
def test_a_due_drill_runs_once_and_an_abort_at_one_ends_what_the_other_executes(site: Rig) -> None:
    one, two = site.add("one"), site.add("two")
    site.ready()
    hold = f"sh, -c, 'while ! test -e {site.folder}/hold; do sleep 0.02; done'"
    text = site.runbook().replace(f"sh, {site.folder}/effect, before", hold)
    text = text.replace("name: shop\n", 'name: shop\nschedule: "* * * * *"\n', 1)
    one.ask("PUT", "/runbooks/shop", {"text": text})
    run = until(site.registry.runs, "the drill", 90)[0].id
    until(lambda: "all.before.1" in {each.step for each in site.registry.entries(run)}, "its step")
    one.ask("PUT", "/runbooks/shop", {"text": text.replace('schedule: "* * * * *"\n', "")})
    for each in (one, two):
        each.ask("POST", f"/runs/{run}/abort", {"note": "enough"})
    record = site.ends(run)
    assert (record.state, record.outcome) == (RunState.FINISHED, Outcome.ABORTED)
    assert [each.id for each in site.registry.runs()] == [run]
    assert len(set(site.owners(run))) == 1


@pytest.mark.timeout(300)
def test_each_duty_is_somebodys_and_goes_over_when_he_dies(site: Rig) -> None:
    for name in ("one", "two"):
        site.add(name)
    site.ready()
    holder = until(lambda: _holder(site, "policies"), "somebody has it")
    first = next(each for each in site.daemons if each.process is not None and f":{each.process.pid}:" in holder)
    first.send(signal.SIGKILL)
    again = until(lambda: (found := _holder(site, "policies")) != holder and found, "another has it", LEASE_SECONDS * 5)
    assert again.rpartition(":")[2] != holder.rpartition(":")[2]


def _holder(site: Rig, duty: str) -> str:
    with site.registry._database.reading() as connection:
        found = connection.exec_driver_sql(f"SELECT owner FROM leases WHERE name = '{duty_lease(duty)}'").scalar()
    return found or ""
