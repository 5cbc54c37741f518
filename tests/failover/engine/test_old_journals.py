"""Journals that were written before kinds of steps had types of their own: they say today what they said then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.failover.measure import measure
from drengine.failover.run import Event, JournalEntry, Status
from drengine.failover.snapshot import Snapshot, observe
from drengine.failover.steps.kinds import step_json
from drengine.failover.steps.step import MissingKind

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))


def journal(sample: Path) -> tuple[dict[str, Any], list[JournalEntry]]:
    kept = json.loads(sample.read_text())
    entries = [JournalEntry(step, Event(event), *rest, seq=seq) for seq, step, event, *rest in kept["entries"]]
    return kept, entries


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return msgspec.json.decode(msgspec.json.encode(value))


def seen(entries: list[JournalEntry]) -> Snapshot:
    return observe(entries, [], (), 0)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda each: each.stem)
def test_an_old_journal_says_what_it_said(sample: Path) -> None:
    kept, entries = journal(sample)
    snapshot = seen(entries)
    assert {each.step.id: each.status.value for each in snapshot.steps} == kept["statuses"]
    assert plain(measure(snapshot)) == {"left_fenced": [], "not_started": [], **kept["measures"]}
    done = {each.step.id for each in snapshot.steps if each.status is Status.DONE}
    assert snapshot.results.keys() == done, "each result could be read"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda each: each.stem)
def test_nothing_of_an_old_plan_is_lost_when_it_is_written_anew(sample: Path) -> None:
    _, entries = journal(sample)
    plans = [each for entry in entries for each in entry.payload.get("steps", ())]
    steps = {each.step.id: each.step for each in seen(entries).steps}
    for written in plans:
        step = steps[written["id"]]
        assert not isinstance(step.kind, MissingKind), step.id
        anew = plain(step_json(step))
        assert anew | {"settings": {**written["settings"]}} == written
        # Settings that did not apply were left out, and an empty `cleans` was written where nothing is cleaned up.
        assert {"cleans": "", **anew["settings"]}.items() >= written["settings"].items(), step.id


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda each: each.stem)
def test_results_keep_their_keys(sample: Path) -> None:
    _, entries = journal(sample)
    states = {each.step.id: each for each in seen(entries).steps}
    for entry in entries:
        if entry.event is Event.RESULT and entry.payload["ok"]:
            result = states[entry.step].step.kind.read_result(entry.payload["data"])
            assert plain(result).items() >= entry.payload["data"].items(), entry.step


def test_there_are_samples_of_every_way() -> None:
    kinds = {each.step.kind.name for sample in SAMPLES for each in seen(journal(sample)[1]).steps}
    assert {"declare", "fence", "promote", "branch", "drop-branch", "preserve", "reverse-last", "hand-back"} <= kinds
    assert {"approval", "command", "notify", "wait", "tcp", "release", "quiesce-source", "launch"} <= kinds
