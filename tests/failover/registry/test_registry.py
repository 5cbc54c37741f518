"""The registry keeps what it was given, and lets one orchestrator act."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from drengine.control.messages import AgentReport, PartyKind, Presence
from drengine.failover.registry.errors import LEASE_HELD, LEASE_LOST, RUN_ACTIVE
from drengine.failover.registry.registry import Registry
from drengine.failover.run import Event, JournalEntry, Outcome, RequestKind, RunState, run_lease
from drengine.failover.runbook.values import Mode
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.failover.registry.rig import run_named
from tests.persons import ANN, person

pytestmark = pytest.mark.parametrize("kind", ["sqlite", "postgresql"])


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    opened = Registry.open(url, clock=SystemClock())
    yield opened
    opened.close()


def test_a_run_is_listed_as_it_was_created_and_changed(registry: Registry) -> None:
    run = run_named("r1", "shop", "db", options={"point": "latest", "nested": {"a": [1, 2.5, None, "ü\0"]}})
    registry.create_run(run)
    assert registry.run("r1") == run
    lease = registry.acquire_lease("run:r1", "me", 10)
    registry.update_run("r1", token=lease.token, state=RunState.WAITING, reason="approval-needed")
    waiting = replace(run, state=RunState.WAITING, reason="approval-needed")
    assert registry.runs() == [waiting]
    assert registry.runs(mode=Mode.FAILOVER) == []
    assert registry.runs(mode=Mode.DRILL, runbook="shop", unfinished=True) == [waiting]
    registry.update_run("r1", token=lease.token, state=RunState.FINISHED, outcome=Outcome.COMPLETED, finished_ns=7)
    done = replace(waiting, state=RunState.FINISHED, outcome=Outcome.COMPLETED, finished_ns=7)
    assert registry.runs() == [done]
    assert registry.runs(unfinished=True) == []


def test_newest_runs_come_first_and_no_more_than_asked_for(registry: Registry) -> None:
    for number in range(5):
        registry.create_run(replace(run_named(f"r{number}", f"s{number}"), created_ns=number))
    assert [run.id for run in registry.runs(limit=3)] == ["r4", "r3", "r2"]


def test_an_unfinished_run_holds_its_sources(registry: Registry) -> None:
    registry.create_run(run_named("r1", "shop", "db"))
    with pytest.raises(DrengineError, match="db is held by the unfinished run r1") as refused:
        registry.create_run(run_named("r2", "db", "mail"))
    assert refused.value.kind is RUN_ACTIVE
    registry.create_run(run_named("r3", "mail"))
    with pytest.raises(DrengineError, match="unknown-run"):
        registry.run("r2")
    token = registry.acquire_lease("run:r1", "me", 10).token
    registry.update_run("r1", token=token, state=RunState.FINISHED)
    registry.create_run(run_named("r4", "shop"))
    with pytest.raises(DrengineError, match="shop is held by the unfinished run r4"):
        registry.update_run("r1", token=token, state=RunState.RUNNING)
    assert registry.run("r1").state is RunState.FINISHED
    token4 = registry.acquire_lease("run:r4", "me", 10).token
    registry.update_run("r4", token=token4, state=RunState.FINISHED)
    registry.update_run("r1", token=token, state=RunState.RUNNING)
    with pytest.raises(DrengineError, match="shop is held by the unfinished run r1"):
        registry.create_run(run_named("r5", "shop"))


def test_a_run_is_left_with_its_lease_unless_somebody_asks_something(registry: Registry) -> None:
    registry.create_run(run_named("r1", "shop"))
    lease = registry.acquire_lease(run_lease("r1"), "one", 30)
    entry = JournalEntry("", Event.DECISION, 0, 7, {"decision": "finished"})

    def leave(seen: int) -> bool:
        how = {"state": RunState.FINISHED, "outcome": Outcome.COMPLETED, "reason": "all-done", "finished_ns": 7}
        return registry.leave_run(lease, "r1", seen=seen, entry=entry, **how)

    asked = registry.request("r1", RequestKind.ABORT, "", person("ann"))
    assert not leave(0)
    assert (registry.run("r1").state, registry.entries("r1")) == (RunState.RUNNING, [])
    with pytest.raises(DrengineError) as held:
        registry.acquire_lease(run_lease("r1"), "two", 30)
    assert held.value.kind is LEASE_HELD
    assert leave(asked.seq)
    assert leave(asked.seq), "the answer to the first try got lost"
    assert registry.run("r1").finished_ns == 7
    assert [each.payload["decision"] for each in registry.entries("r1")] == ["finished"]
    registry.create_run(run_named("r2", "shop"))
    registry.acquire_lease(run_lease("r1"), "two", 30)
    with pytest.raises(DrengineError) as lost:
        leave(asked.seq)
    assert lost.value.kind is LEASE_LOST


def test_the_same_run_is_created_once(registry: Registry) -> None:
    registry.create_run(run_named("r1", "shop"))
    with pytest.raises(DrengineError, match="run-active"):
        registry.create_run(run_named("r1", "shop"))
    with pytest.raises(DrengineError, match="run-active"):
        registry.create_run(run_named("r1", "mail"))


def test_the_journal_keeps_order_and_content(registry: Registry) -> None:
    registry.create_run(run_named("r1", "shop"))
    token = registry.acquire_lease("run:r1", "me", 10).token
    entries = [
        JournalEntry(f"step:{number}", Event.INTENT, number, 1000 - number, {"n": number, "text": "\0\x1b[31m \u2028"})
        for number in range(5)
    ]
    assert [registry.append("r1", token, entry) for entry in entries] == [1, 2, 3, 4, 5]
    assert registry.entries("r1") == [replace(entry, seq=at + 1) for at, entry in enumerate(entries)]
    assert [entry.seq for entry in registry.entries("r1", after=3)] == [4, 5]


def test_what_a_program_printed_is_kept_even_if_it_is_no_text(registry: Registry) -> None:
    registry.create_run(run_named("r1", "shop"))
    token = registry.acquire_lease("run:r1", "me", 10).token
    output = b"caf\xe9".decode("utf-8", "surrogateescape")
    registry.append("r1", token, JournalEntry("s", Event.RESULT, 1, 0, {"output": output, "path": Path("/x")}))
    assert registry.entries("r1")[0].payload == {"output": "caf\\udce9", "path": "/x"}


def test_a_journal_of_a_run_that_never_was_is_refused(registry: Registry) -> None:
    token = registry.acquire_lease("run:ghost", "me", 10).token
    with pytest.raises(DrengineError, match="unknown-run"):
        registry.append("ghost", token, JournalEntry("s", Event.INTENT, 1, 0))
    with pytest.raises(DrengineError, match="unknown-run"):
        registry.update_run("ghost", token=token, state=RunState.FINISHED)
    with pytest.raises(DrengineError, match="unknown-run"):
        registry.request("ghost", RequestKind.ABORT, "", person("ann"))


def test_people_are_named_and_their_requests_kept_in_order(registry: Registry) -> None:
    registry.create_run(run_named("r1", "shop"))
    first = registry.request("r1", RequestKind.APPROVE, "before:web:0", ANN, "looks fine", digest="d" * 64)
    second = registry.request("r1", RequestKind.ABORT, "", person("ben"))
    assert (first.by, first.seq, second.seq) == ("ann", 1, 2)
    assert (first.proof, first.roles, first.digest) == ("login:ann", ("approver", "operator"), "d" * 64)
    assert registry.requests("r1") == [first, second]
    assert registry.requests("r1", after=1) == [second]
    for nobody in ("", "   ", "\x1b[2J", "a\nb", "x" * 300, "\ud800", "\0"):
        with pytest.raises(DrengineError, match="bad-approval"):
            registry.request("r1", RequestKind.APPROVE, "s", person(nobody))
    assert len(registry.requests("r1")) == 2


def test_each_version_of_a_runbook_is_kept_and_the_last_saved_is_current(registry: Registry) -> None:
    one = registry.save_runbook("shop", "version: 1\n")
    two = registry.save_runbook("shop", "version: 1 # changed\n")
    registry.save_runbook("mail", "other")
    assert one != two
    assert registry.runbook("shop").text == "version: 1 # changed\n"
    assert registry.runbook("shop", one).text == "version: 1\n"
    assert registry.save_runbook("shop", "version: 1\n") == one
    assert registry.runbook("shop").version == one
    assert [(each.name, each.version) for each in registry.runbooks()] == [
        ("mail", registry.runbook("mail").version),
        ("shop", one),
    ]
    for name, version in (("nobody", None), ("shop", "0" * 32)):
        with pytest.raises(DrengineError, match="unknown-runbook"):
            registry.runbook(name, version)
    with pytest.raises(DrengineError, match="bad-name"):
        registry.save_runbook("../shop", "")


def report(sequence: int, instance: str = "i1", **changes: object) -> AgentReport:
    base = AgentReport(
        name="shop",
        kind=PartyKind.AGENT,
        state="CONTINUOUS",
        reason="",
        generation=1,
        fenced=False,
        serving=True,
        lag_seconds=0.5,
        backlog_bytes=0,
        at_ns=5,
        sequence=sequence,
        instance=instance,
    )
    return msgspec.structs.replace(base, **changes)


def test_the_newest_report_of_a_party_is_kept(registry: Registry) -> None:
    registry.note_report(report(5, lag_seconds=5.0))
    registry.note_report(report(4, lag_seconds=4.0))
    (party,) = registry.parties()
    assert party.report is not None
    assert (party.name, party.report.lag_seconds, party.online) == ("shop", 5.0, False)
    registry.note_report(report(1, "i2", lag_seconds=1.0))
    registry.note_presence(PartyKind.AGENT, "shop", Presence(online=True, since_ns=9, instance="i2", version="0.1"))
    registry.note_presence(PartyKind.HOST, "edge", Presence(online=False, since_ns=3, instance="", version="0.2"))
    agent, host = registry.parties()
    assert agent.report is not None
    assert (agent.report.lag_seconds, agent.online, agent.since_ns, agent.release) == (1.0, True, 9, "0.1")
    assert (host.kind, host.name, host.report, host.online) == (PartyKind.HOST, "edge", None, False)
    with pytest.raises(DrengineError, match="bad-name"):
        registry.note_presence(PartyKind.HOST, "a/#", Presence(online=True, since_ns=0, instance="", version=""))


def test_each_due_moment_of_a_schedule_is_taken_once(registry: Registry, url: str) -> None:
    other = Registry.open(url, clock=SystemClock())
    assert registry.claim_due("shop", 100)
    assert not other.claim_due("shop", 100)
    assert not other.claim_due("shop", 99)
    assert other.claim_due("shop", 200)
    assert not registry.claim_due("shop", 200)
    assert registry.claim_due("mail", 100)
    other.close()


def test_everything_is_there_after_it_was_opened_again(registry: Registry, url: str) -> None:
    registry.create_run(run_named("r1", "shop"))
    token = registry.acquire_lease("run:r1", "me", 10).token
    registry.append("r1", token, JournalEntry("s", Event.INTENT, 1, 0))
    registry.close()
    again = Registry.open(url, clock=SystemClock())
    assert again.run("r1").sources == ("shop",)
    assert [entry.step for entry in again.entries("r1")] == ["s"]
    assert again.append("r1", token, JournalEntry("t", Event.INTENT, 1, 0)) == 2
    again.close()
