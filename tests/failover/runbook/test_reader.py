"""Runbooks are read as they are meant, or every mistake is told at its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from drengine.failover.drivers.available import load_drivers
from drengine.failover.reading.reader import examine, read_runbook, read_runbook_text
from drengine.failover.runbook.errors import BAD_RUNBOOK, UNKNOWN_RUNBOOK
from drengine.failover.runbook.findings import FINDINGS_MAX
from drengine.failover.runbook.values import Mode, OnFailure
from drengine.failover.steps.approval import Approval
from drengine.model.errors import DrengineError
from tests.failover.runbook.books import SMALL, WHOLE


def test_everything_a_runbook_can_hold_is_read() -> None:
    examined = examine(WHOLE)
    assert examined.findings == ()
    book = examined.runbook
    assert book is not None
    assert book.sources["web"].fence == book.sources["db"].fence
    assert book.sources["db"].fence is not None
    assert book.sources["db"].fence.command == ["/sbin/power-off", "12"]
    assert book.sources["db"].launch.settings == {"memory_mib": 2048, "details": {"address": "10.0.0.5"}}
    assert book.description.count("\n") == 2
    data, front, last = book.waves
    assert data.before_steps[0].actions == {
        "approval": Approval(prompt="Start the failover of the shop?", by=["ann", "ben"])
    }
    assert data.before_steps[0].modes == (Mode.FAILOVER,)
    assert data.after_steps[2].on_failure is OnFailure.CONTINUE
    assert (data.after, front.after, last.after) == (None, ["data"], [])


CASES = {
    # what is replaced, by what: id and place of the only mistake that is told, and a part of its hint
    "unknown key": ("driver: command", "drivr: x, driver: command", "unknown-key", 6, 14, ""),
    "unknown key near a known one": ("fence:", "fense:", "unknown-key", 5, 5, "Did you mean 'fence'?"),
    "unknown key at the top": ("version: 1", "version: 1\nobjektives: {}", "unknown-key", 2, 1, "'objectives'"),
    "missing key": ("driver: command, ", "", "missing-key", 6, 13, "Add driver:"),
    "text for a number": ("version: 1", 'version: "1"', "wrong-type", 1, 10, "without quotes"),
    "number for a text": ("name: shop", "name: 5", "wrong-type", 2, 7, '"5"'),
    "nothing for a text": ("name: shop", "name:", "wrong-type", 2, 6, "Give it a value"),
    "text for a mapping": ("fence: {command: [/sbin/power-off, db]}", "fence: off", "wrong-type", 5, 12, "KEY: VALUE"),
    "a shell line where words belong": (
        "[/sbin/power-off, db]",
        '"ssh pdu off | tee log"',
        "wrong-type",
        5,
        22,
        '[ssh, pdu, off, "|", tee, log]',
    ),
    "a shell line in the first word": ("[/sbin/power-off, db]", '["off;reboot"]', "bad-command", 5, 23, "No shell"),
    "an empty command": ("[/sbin/power-off, db]", "[]", "bad-command", 5, 22, "PROGRAM"),
    "a fence of nothing": ("{command: [/sbin/power-off, db]}", "{}", "bad-command", 5, 12, "PROGRAM"),
    "a fence of a host without a command": (
        "[/sbin/power-off, db]",
        "[/sbin/power-off, db], homes: {db2: {}}",
        "missing-key",
        5,
        58,
        "Add command:",
    ),
    "a host with a way up": (
        "[/sbin/power-off, db]",
        "[off], homes: {../db: {command: [off]}}",
        "bad-name",
        5,
        37,
        "a-z",
    ),
    "a host twice": (
        "[/sbin/power-off, db]",
        "[off], homes: {db: {command: [off]}}",
        "duplicate-name",
        5,
        37,
        "the fence itself",
    ),
    "a number in a command": ("[/sbin/power-off, db]", "[/sbin/power-off, 12]", "wrong-type", 5, 40, '"12"'),
    "version of the future": ("version: 1", "version: 2", "bad-value", 1, 10, "Write 1"),
    "upper case in a name": ("name: shop", "name: Shop", "bad-name", 2, 7, "a-z"),
    "a way up in a name": ("name: shop", "name: ../shop", "bad-name", 2, 7, ""),
    "a topic in a name": ("name: first", "name: 'a/#'", "bad-name", 8, 11, ""),
    "a way up in a path": ("[/sbin/power-off, db]", "[/sbin/../off, db]", "way-up", 5, 23, "without '..'"),
    "a way up in settings": ("{run: [sleep", "{details: {x: ../../etc}, run: [sleep", "way-up", 6, 55, ""),
    "an escaped control character": ("name: shop", 'name: "sh\\x1bop"', "control-character", 2, 7, "Remove"),
    "a raw control character": ("name: shop", "name: sh\x07op", "control-character", 2, 9, "Remove"),
    "a name with what nobody sees": ("name: shop", "name: sh\u200bop", "control-character", 2, 9, "Remove"),
    "an escaped tag": ("name: shop", 'name: "shop\\U000e0041"', "control-character", 2, 7, "Remove"),
    "a filler": ("name: shop", "description: a\u3164b", "control-character", 2, 15, "Remove"),
    "a mark that turns text around": ("name: shop", "description: a\u202eb", "control-character", 2, 15, "Remove"),
    "a tag": ("version: 1", "version: !!python/object/apply:os.system [id]", "yaml-tag", 1, 10, "Remove"),
    "a harmless tag": ("version: 1", "version: !!int 1", "yaml-tag", 1, 10, "Remove"),
    "an own tag": ("name: shop", "name: !env NAME", "yaml-tag", 2, 7, "Remove"),
    "a key twice": ("version: 1", "version: 1\nversion: 1", "duplicate-key", 2, 1, "Remove one"),
    "a merge key": ("{driver: command,", "{<<: {retries: 1}, driver: command,", "merge-key", 6, 14, "KEY: *ANCHOR"),
    "a merge key in settings": ("{run: [sleep", "{<<: {a: 1}, run: [sleep", "merge-key", 6, 42, "alias"),
    "a number for a duration": (
        "name: shop",
        "name: shop\nobjectives: {rto: 120}",
        "wrong-type",
        3,
        19,
        "with its unit: 120s",
    ),
    "a list as a key": ("version: 1", "? [a]\n: 1\nversion: 1", "bad-key", 1, 3, "KEY"),
    "an alias of nothing": ("name: shop", "name: *x", "yaml-alias", 2, 7, "&x"),
    "an alias inside what it stands for": ("[/sbin/power-off, db]", "&x [a, *x]", "yaml-alias", 5, 29, "outside"),
    "a tab": ("  db:", "\tdb:", "yaml-syntax", 4, 1, "spaces"),
    "a colon in a text": ("name: shop", "description: a: b", "yaml-syntax", 2, 15, "quotes"),
    "a quote that is not closed": ("name: shop", 'name: "shop', "yaml-syntax", 6, 56, "quotes"),
    "two documents": ("waves:", "---\nwaves:", "many-documents", 7, 1, ""),
    "no duration": ("{command: [/sbin/power-off, db]}", "{command: [off], timeout: 5}", "wrong-type", 5, 38, "5s"),
    "no unit": ("{command: [/sbin/power-off, db]}", '{command: [off], timeout: "5"}', "bad-duration", 5, 38, "10m"),
    "no time": ("{command: [/sbin/power-off, db]}", "{command: [off], timeout: 0s}", "bad-duration", 5, 38, "30s"),
    "for ever": ("{command: [/sbin/power-off, db]}", "{command: [off], timeout: 99w}", "bad-duration", 5, 38, ""),
    "a source that is not there": ("sources: [db]", "sources: [db, bd]", "unknown-source", 9, 19, "'db'"),
    "a source that starts twice": ("sources: [db]", "sources: [db, db]", "duplicate-name", 9, 19, "once"),
    "a source that never starts": ("sources: [db]", "sources: []", "unused-source", 4, 3, "Add it"),
    "two waves of one name": ("waves:", "waves:\n  - {name: first}", "duplicate-name", 9, 11, "Rename"),
    "a wave after one that is not there": (
        "sources: [db]",
        "sources: [db]\n    after: [frist]",
        "unknown-wave",
        10,
        13,
        "",
    ),
    "a wave after itself": ("sources: [db]", "sources: [db]\n    after: [first]", "wave-cycle", 10, 12, "remove"),
    "waves in a ring": (
        "waves:",
        "waves:\n  - {name: a, after: [b]}\n  - {name: b, after: [c]}\n  - {name: c, after: [a]}",
        "wave-cycle",
        8,
        22,
        "remove one",
    ),
    "a step without action": ("- tcp: {", "- name: x\n      - tcp: {", "one-action", 11, 9, "exactly one of"),
    "a step with two": ("- tcp: {", "- wait: 1s\n        tcp: {", "one-action", 11, 9, "exactly one of"),
    "a port that is none": ("port: 5432", "port: 70000", "bad-value", 11, 44, "65535"),
    "a reference to nobody": ("${db.address}", "${bd.address}", "bad-reference", 11, 21, "db.address"),
    "a reference that is none": ("${db.address}", "${HOME}", "bad-reference", 11, 21, "SOURCE.KEY"),
    "a point that can't be": ("    fence:", "    point: before:yesterday\n    fence:", "bad-point", 5, 12, "latest"),
    "no schedule": ("name: shop", "name: shop\nschedule: every day", "bad-schedule", 3, 11, "Five fields"),
    "a schedule that never is": ("name: shop", 'name: shop\nschedule: "61 3 * * *"', "bad-schedule", 3, 11, ""),
    "an approval by nobody": (
        "- tcp: {",
        '- approval: {prompt: x, by: [""]}\n      - tcp: {',
        "bad-value",
        11,
        36,
        "remove `by`",
    ),
    "a word that is none": ("- tcp: {", "- on_failure: explode\n        tcp: {", "bad-value", 11, 21, "rollback"),
    "an address that is none": (
        'tcp: {host: "${db.address}", port: 5432}',
        "http: {url: 'file:///etc/x'}",
        "bad-value",
        11,
        21,
        "",
    ),
    "a database that is none": (
        'tcp: {host: "${db.address}", port: 5432}',
        "sql: {dsn: 'mysql://x', query: q}",
        "bad-value",
        11,
        20,
        "sqlite:///",
    ),
    "a notification to nobody": ("- tcp: {", "- notify: {}\n      - tcp: {", "one-action", 11, 17, "one of them"),
    "retries below zero": ("- tcp: {", "- retries: -1\n        tcp: {", "bad-value", 11, 18, "0 to"),
}


@pytest.mark.fault(53)
@pytest.mark.fault(54)
@pytest.mark.fault(55)
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_with_its_place_and_what_to_do(name: str) -> None:
    old, new, id, line, column, hint = CASES[name]
    assert SMALL.count(old) == 1, f"{old!r} must stand once in the runbook"
    examined = examine(SMALL.replace(old, new))
    assert examined.runbook is None
    errors = [each for each in examined.findings if not each.warning]
    assert [(each.id, each.place.line, each.place.column) for each in errors] == [(id, line, column)], errors
    assert hint in errors[0].hint
    assert errors[0].message
    assert errors[0].hint.endswith((".", "?", ")", "-'.", "/"))


def test_all_mistakes_are_told_in_order() -> None:
    text = (
        SMALL.replace("version: 1", "version: one")
        .replace("port: 5432", "prot: 5432")
        .replace("name: first", "name: 1")
    )
    assert [each.id for each in examine(text).findings] == ["wrong-type", "wrong-type", "missing-key", "unknown-key"]


def test_no_more_mistakes_are_told_than_anybody_reads() -> None:
    text = "version: 1\n" + "".join(f"key{number}: 1\n" for number in range(5000))
    examined = examine(text)
    assert len(examined.findings) == FINDINGS_MAX


def test_words_mean_what_they_look_like() -> None:
    words = "{a: yes, b: 010, c: 12:30, d: 1e3, e: 0x1f, f: null, g: ~, h: true, i: -5, j: 2.5, k: '5', l: 2026-01-01}"
    book = read_runbook(SMALL.replace('{run: [sleep, "60"]}', words), where="x")
    assert book.sources["db"].launch.settings == {
        **{"a": "yes", "b": "010", "c": "12:30", "d": "1e3", "e": "0x1f", "f": None, "g": None, "h": True, "i": -5},
        **{"j": 2.5, "k": "5", "l": "2026-01-01"},
    }


def test_what_may_be_meant_so_is_a_warning() -> None:
    text = re.sub(r"    fence.*\n", "", SMALL)
    text = text[: text.index("    then:")]
    examined = examine(text)
    assert examined.runbook is not None
    assert [(each.id, each.warning) for each in examined.findings] == [("no-fence", True), ("no-check", True)]


def test_settings_are_checked_by_their_driver() -> None:
    drivers = load_drivers()
    assert examine(SMALL, drivers=drivers).findings == ()
    (found,) = examine(SMALL.replace("{run: [", "{runn: ["), drivers=drivers).findings
    assert (found.id, found.place.line) == ("launch-settings", 6)
    assert "runn" in found.message
    (found,) = examine(SMALL.replace("driver: command", "driver: comand"), drivers=drivers).findings
    assert (found.id, found.hint) == ("unknown-driver", "Did you mean 'command'?")


def test_a_bad_runbook_is_an_error_with_place_and_hint() -> None:
    with pytest.raises(DrengineError) as refused:
        read_runbook(SMALL.replace("fence:", "fense:").replace("port: 5432", "port: x"), where="shop.yaml")
    assert refused.value.kind is BAD_RUNBOOK
    told = "shop.yaml:5:5: error unknown-key at sources.db.fense: there is no key 'fense' here (and 1 more)"
    assert refused.value.message == told
    assert "validate" in refused.value.hint


@pytest.mark.parametrize("content", [b"\xff\xfe", b"version: 1\nname: \xc3\x28\n"])
def test_a_file_that_is_no_text_is_told_with_its_place(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(DrengineError, match=r"x\.yaml:\d:\d: error not-utf-8"):
        read_runbook_text(path)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no.yaml", tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(DrengineError) as refused:
            read_runbook_text(place)
        assert refused.value.kind is UNKNOWN_RUNBOOK


def test_the_command_tells_all_mistakes_and_ends_with_103(tmp_path: Path) -> None:
    from drengine.cli.main import app

    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(SMALL)
    bad.write_text(SMALL.replace("driver:", "drivr:"))
    assert CliRunner().invoke(app, ["runbook", "validate", str(good)]).exit_code == 0
    result = CliRunner().invoke(app, ["runbook", "validate", str(bad)])
    assert result.exit_code == BAD_RUNBOOK.exit_code
    assert f"{bad}:6:14: error unknown-key at sources.db.launch.drivr" in result.stdout
    machine = json.loads(CliRunner().invoke(app, ["runbook", "validate", str(bad), "--json"]).stdout)
    assert machine["valid"] is False
    assert {each["id"] for each in machine["findings"]} == {"unknown-key", "missing-key"}
