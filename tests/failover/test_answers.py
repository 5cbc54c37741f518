"""What is told of a run: one JSON as its schema says, and no secret in it, wherever it stood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.answers import entry_answer, request_answer, run_answer, run_detail
from drengine.failover.run import Event, JournalEntry, Outcome, Request, RequestKind, RunState
from drengine.failover.snapshot import observe
from drengine.terminal import emit_json
from tests.console.schema import mistakes
from tests.failover.report.runs import Story, drill, failover

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/run.schema.json").read_text(encoding="utf-8"))


def told(value: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """As the commands print it."""
    emit_json(value)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("story", [drill(), failover()], ids=["drill", "failover"])
def test_a_run_is_what_its_schema_says(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = observe(story.entries, (), (), story.at_ns)
    run = told(run_detail(story.run, snapshot), capsys)
    assert mistakes(run, SCHEMA, SCHEMA) == []
    assert run.keys() == SCHEMA["properties"].keys()
    assert run["steps"]
    assert all(step.keys() == SCHEMA["$defs"]["Step"]["properties"].keys() for step in run["steps"])
    assert told(run_answer(story.run, snapshot), capsys) == {
        key: run[key] for key in run if key not in ("asked", "digest", "next", "steps")
    }


@pytest.mark.fault(59)
def test_no_secret_is_told_wherever_it_stood(capsys: pytest.CaptureFixture[str]) -> None:
    story, secret = drill(), "postgresql://shop:hunter2@db/shop"
    snapshot = observe(story.entries, (), (), story.at_ns)
    spoilt = tuple(
        replace(
            each,
            step=replace(each.step, title=f"ask {secret}"),
            message=secret,
            output="password=hunter2",
            data={"details": [{"console": f"token: hunter2 at {secret}"}], **each.data},
        )
        for each in snapshot.steps
    )
    run = told(run_detail(story.run, replace(snapshot, steps=spoilt)), capsys)
    assert "hunter2" not in json.dumps(run)
    assert run["steps"][0]["data"]["details"] == [{"console": "token: *** at postgresql://shop:***@db/shop"}]
    steps = [{"id": "a", "title": secret, "settings": {"dsn": secret, "word": "sesame"}}]
    entry = JournalEntry("", Event.DECISION, 0, 1, {"decision": "planned", "steps": steps, "deep": [[secret]]})
    line = json.dumps(told(entry_answer(entry), capsys))
    assert "hunter2" not in line
    assert "sesame" not in line
    asked = Request(story.run.id, RequestKind.ABORT, "", "ann", f"because of {secret}", 1)
    assert "hunter2" not in json.dumps(told(request_answer(asked), capsys))


def test_what_is_told_is_of_the_kind_that_it_was() -> None:
    story = drill()
    run = run_detail(story.run, observe(story.entries, (), (), story.at_ns))
    assert (run.state, run.outcome) == (RunState.FINISHED, Outcome.COMPLETED)
    assert isinstance(run.state, RunState)
