"""`drengine audit`, and what commands leave in the log, as they are typed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from drengine.audit import AuditLog, Outcome
from drengine.audit.verify import read_entries
from drengine.cli.main import app
from drengine.store.errors import UNKNOWN_BRANCH
from drengine.terminal import main
from tests.clock import ManualClock
from tests.recovery.replica import make


class Person:
    """Somebody at a prompt."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def types(self, *words: object, code: int = 0) -> str:
        found = main(app, [str(word) for word in words])
        told = self._capsys.readouterr()
        assert found == code, told.err
        return told.err if code else told.out

    def sees(self, *words: object) -> Any:
        return json.loads(self.types(*words, "--json"))


@pytest.fixture
def person(capsys: pytest.CaptureFixture[str]) -> Person:
    return Person(capsys)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    clock = ManualClock(1_700_000_000_000_000_000)
    log = AuditLog.open(tmp_path / "state/audit", clock=clock)
    for number in range(6):
        log.record(who=f"person:{'ann' if number % 2 else 'bob'}", proved="token", did="run.begin", on=f"r{number}")
        clock.advance(60)
    log.record(who="\x1b[31meve", did="run.abort", on="r1", outcome=Outcome.REFUSED, error="run-state", times=7)
    return tmp_path / "state"


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ([], [1, 2, 3, 4, 5, 6, 7]),
        (["-n", "2"], [6, 7]),
        (["--who", "person:ann"], [2, 4, 6]),
        (["--did", "run.a*"], [7]),
        (["--on", "r1"], [2, 7]),
        (["--outcome", "refused"], [7]),
        (["--after", "5"], [6, 7]),
        (["--since", "2023-11-14T22:16:20Z"], [4, 5, 6, 7]),
        (["--since", "1h"], []),
        (["--who", "*ann", "--after", "3"], [4, 6]),
    ],
)
def test_entries_are_found(person: Person, log: Path, words: list[str], numbers: list[int]) -> None:
    assert [each["number"] for each in person.sees("audit", "show", log, *words)] == numbers
    if "-n" not in words:
        exported = person.types("audit", "export", log, *words).splitlines()
        assert [json.loads(each)["number"] for each in exported] == numbers


def test_a_table_for_people(person: Person, log: Path) -> None:
    shown = person.types("audit", "show", log)
    assert "\x1b" not in shown
    assert shown.splitlines()[-1].split() == [
        *("7", "2023-11-14", "22:19:20.000Z", "\ufffd[31meve", "-", "run.abort", "r1", "refused:", "run-state", "(7"),
        "times)",
    ]


def test_an_export_goes_into_a_file(person: Person, log: Path, tmp_path: Path) -> None:
    person.types("audit", "export", log, "--output", tmp_path / "out.jsonl")
    first, *rest = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(rest) == 6
    assert json.loads(first)["hash"] == next(read_entries(log / "audit")).head.hash
    assert "audit-unusable" in person.types("audit", "export", log, "--output", tmp_path, code=6)


def test_verify_compares_with_anchors(person: Person, log: Path, tmp_path: Path) -> None:
    head = person.sees("audit", "verify", log)
    assert (head["intact"], head["first"], head["last"]) == (True, 1, 7)
    hashed = head["hash"]
    received = tmp_path / "received"
    received.write_text(f"<110>1 - drengine audit log={head['log']} number=7 hash={hashed}\n")
    assert "anchors that agree: 1" in person.types("audit", "verify", log, "--anchors", received)
    assert "anchors that agree: 1" in person.types("audit", "verify", log / "audit", "--anchor", f"7:{hashed}")
    assert person.sees("audit", "verify", log, "--anchor", hashed)["anchors"] == 1
    assert "entry 7: it is another entry" in person.types("audit", "verify", log, "--anchor", f"7:{'0' * 64}", code=9)
    assert "entry 8: the log ends here" in person.types("audit", "verify", log, "--anchor", f"8:{hashed}", code=9)
    assert "no entry has the hash" in person.types("audit", "verify", log, "--anchor", "f" * 64, code=9)
    assert "HASH" in person.types("audit", "verify", log, "--anchor", "7:xyz", code=2)
    received.write_text("nothing")
    assert "no anchor" in person.types("audit", "verify", log, "--anchors", received, code=6)


def test_verify_names_the_first_entry_that_does_not_fit(person: Person, log: Path) -> None:
    file = log / "audit/000000000001.log"
    file.write_bytes(file.read_bytes().replace(b'"on":"r3"', b'"on":"r4"'))
    told = person.types("audit", "verify", log, code=9)
    assert "000000000001.log: entry 4: it does not fit the entry before it [audit-broken]" in told
    main(app, ["audit", "verify", str(log), "--json"])
    answer = json.loads(person._capsys.readouterr().out)
    assert (answer["intact"], answer["broken_number"], answer["last"]) == (False, 4, 3)


def test_there_is_no_log(person: Person, tmp_path: Path) -> None:
    for command in ("show", "export", "verify"):
        assert "holds no audit log" in person.types("audit", command, tmp_path, code=6)


def did(directory: Path) -> list[tuple[str, str, str]]:
    return [(line.entry.did, line.entry.on, line.entry.who) for line in read_entries(directory / "audit")]


def test_a_ca_records_whom_it_issued_and_revoked(person: Person, tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    me = f"local:{os.getuid()}"
    person.types("ca", "init", "--site", "main", "--ca", ca)
    person.types("ca", "issue", "agent/shop", "--ca", ca, "--to", tmp_path / "shop")
    person.types("ca", "renew", "agent/shop", "--ca", ca, "--to", tmp_path / "shop")
    person.types("ca", "revoke", "agent/shop", "--ca", ca)
    person.types("ca", "crl", "--ca", ca)
    person.types("ca", "revoke", "agent/nobody", "--ca", ca, code=4)
    shop = "drengine://main/agent/shop"
    assert did(ca) == [
        ("ca.init", "main", me),
        ("ca.issue", shop, me),
        ("ca.renew", shop, me),
        ("ca.revoke", shop, me),
        ("ca.crl", "", me),
        ("ca.revoke", "drengine://main/agent/nobody", me),
        ("ca.revoke", "drengine://main/agent/nobody", me),
    ]
    assert [each["error"] for each in person.sees("audit", "show", ca, "--on", "*nobody")] == ["", "ca-refused"]
    assert person.sees("audit", "show", ca, "--did", "ca.issue")[0]["details"]["valid"] == "30d"


def test_a_ca_that_can_not_record_issues_nothing(person: Person, tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    person.types("ca", "init", "--ca", ca)
    (ca / "audit/head").unlink()
    (ca / "audit/head").mkdir()
    person.types("ca", "issue", "agent/shop", "--ca", ca, "--to", tmp_path / "shop", code=6)
    assert not (tmp_path / "shop").exists()
    assert person.sees("ca", "list", "--ca", ca) == []


def test_pins_and_dropped_branches_are_recorded(person: Person, tmp_path: Path) -> None:
    store = tmp_path / "store"
    make(store)
    point = person.sees("points", "--store", store)[0]
    person.types("pin", point["id"], "--store", store, "--note", "audit")
    person.types("unpin", point["id"], "--store", store)
    named = f"{point['source']} {point['id']}"
    me = f"local:{os.getuid()}"
    assert did(store) == [("point.pin", named, me), ("point.unpin", named, me)]
    person.types("branches", "--store", store, "--drop", "7", code=UNKNOWN_BRANCH.exit_code)
    assert did(store)[2:] == [("branch.drop", "shop#7", me)] * 2
