"""What a report says, what it never says, and that it can't be made to say something else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from drengine.control.messages import AgentReport, PartyKind
from drengine.failover.masking import masked
from drengine.failover.plan import plan_rollback
from drengine.failover.registry import Registry
from drengine.failover.report.collect import keep_report_of, report_of
from drengine.failover.report.keep import keep_report, kept_reports, read_kept, report_path, summary
from drengine.failover.report.make import journal_digest, make_report
from drengine.failover.report.page import report_page
from drengine.failover.report.values import Report, Route, report_json
from drengine.failover.run import Outcome, RequestKind, RunState
from drengine.failover.runbook.values import Mode
from drengine.failover.snapshot import plan_payload
from drengine.failover.steps.kinds import step_kinds
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.failover.report.runs import HOSTILE, NO_QUESTIONS, Story, drill, failover

KINDS = step_kinds()

SECRETS = ("s3cret", "hunter2", "abc123")


def report_from(story: Story, routes: tuple[Route, ...] = ()) -> Report:
    return make_report(
        story.run, story.book, story.text, story.entries, story.requests, now_ns=story.at_ns, routes=routes
    )


class Structure(HTMLParser):
    """The tags of a page with their attributes, and what stands between them."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "style")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_passed_drill_says_what_was_promised_and_measured() -> None:
    report = report_from(drill())
    assert (report.verdict, report.good, report.warnings) == ("Drill of web-shop passed", True, [])
    rpo, rto = report.objectives
    assert (rpo.promised_seconds, rpo.measured_seconds, rpo.met) == (2.0, 1.412, True)
    assert (rto.promised_seconds, rto.measured_seconds, rto.met) == (120.0, 16.2, True)
    (db, _) = report.points
    assert (db.kind, db.meaning) == ("write-order", "captured in the order in which it was written")
    page = Structure(report_page(report)).words
    for expected in ("PASSED", "1.41 s", "16 s", "A drill fences nothing", "1-81734", "kept", "SHA-256"):
        assert expected in page


@pytest.mark.fault(47)
def test_what_was_not_fenced_comes_before_everything_else() -> None:
    report = report_from(failover())
    assert report.warnings[0].id == "not-fenced"
    assert "NOT FENCED: web" in report.warnings[0].text
    page = Structure(report_page(report)).words
    assert page.index("NOT FENCED") < page.index("RPO, longest")
    assert "COMPLETED WITH WARNINGS" in page
    evidence = {each.source: (each.evidence, each.forced_by) for each in report.fencing}
    assert evidence == {"db": ("command", ""), "web": ("none", "ann")}


def test_every_try_is_on_the_time_line_inside_of_it() -> None:
    report = report_from(failover())
    (launch,) = [each for each in report.steps if each.id == "launch:db"]
    assert [(each.number, each.ok, each.ended_ns > 0) for each in launch.attempts] == [
        (1, False, True),
        (2, False, False),
        (2, True, True),
    ]
    assert report.interruptions == 1
    page = report_page(report)
    bars = re.findall(r'<rect class="(ok|bad|wait|open)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', page)
    assert len(bars) == sum(len(each.attempts) for each in report.steps)
    assert all(float(x) >= 250 and float(x) + float(width) <= 1040 for _, x, width in bars)
    assert "recovered" in page
    assert "RTO promised" in page


def test_a_missed_objective_is_said_in_the_verdict() -> None:
    story = Story(Mode.DRILL, NO_QUESTIONS.replace("rto: 30s", "rto: 1s"))
    for step in story.steps:
        story.step(step.id)
    story.finish(Outcome.COMPLETED)
    report = report_from(story)
    assert report.verdict == "Drill of web-shop passed; RTO missed"
    assert [each.id for each in report.warnings] == ["rto-missed"]


@pytest.mark.parametrize(
    ("state", "outcome", "verdict", "good"),
    [
        (RunState.FINISHED, Outcome.FAILED, "failed", False),
        (RunState.FINISHED, Outcome.ROLLED_BACK, "rolled back", False),
        (RunState.FINISHED, Outcome.ABORTED, "aborted", False),
        (RunState.STOPPED, Outcome.BLOCKED, "blocked: a source could not be fenced, stopped for a person", False),
        (RunState.RUNNING, Outcome.NONE, "is under way", False),
        (RunState.WAITING, Outcome.NONE, "is waiting", False),
    ],
)
@pytest.mark.fault(58)
def test_only_what_was_completed_is_called_so(state: RunState, outcome: Outcome, verdict: str, good: bool) -> None:
    story = Story(Mode.FAILOVER)
    story.step("declare")
    story.intent("data.before.1")
    story.run = replace(story.run, state=state, outcome=outcome)
    report = report_from(story)
    assert verdict in report.verdict
    assert report.good is good
    assert all(each.met is None for each in report.objectives)
    assert "PASSED" not in Structure(report_page(report)).words.replace("NOT PASSED", "")


@pytest.mark.parametrize("mode", list(Mode))
def test_every_mode_has_its_report(mode: Mode) -> None:
    story = Story(mode, NO_QUESTIONS.replace("critical: false", "modes: [failback, drill]"))
    for step in story.steps:
        data = {"bytes_shipped": 5 << 20} if step.kind in (KINDS["reverse"], KINDS["reverse-last"]) else {}
        story.step(step.id, data=data)
    story.finish(Outcome.COMPLETED)
    report = report_from(story)
    assert report.good
    assert report.warnings == []
    page = Structure(report_page(report))
    assert len([tag for tag, _ in page.tags if tag == "rect"]) >= len(story.steps)
    home = mode in (Mode.REPROTECT, Mode.FAILBACK)
    assert bool(report.objectives) is not home
    assert (report.bytes_shipped_back > 0) is home
    assert ("Shipped back" in page.words) is home


def test_a_rollback_is_shown_with_what_it_undid() -> None:
    story = failover()
    begun = [step.id for step in story.steps]
    story.steps = plan_rollback(Mode.FAILOVER, story.book, {}, begun)
    story.note(plan_payload(story.steps, "rollback", by="ben"))
    story.ask(RequestKind.ROLLBACK, "ben", note="it was only the cable")
    for step in story.steps:
        story.step(step.id)
    story.finish(Outcome.ROLLED_BACK, "rolled-back")
    report = report_from(story)
    assert report.verdict == "Failover of web-shop rolled back"
    assert {each.id for each in report.steps if each.rollback} == {step.id for step in story.steps}
    assert [each.event for each in report.generations] == ["promoted", "promoted", "handed back", "handed back"]
    assert ("rollback", "ben", "it was only the cable") in [(each.did, each.by, each.note) for each in report.people]
    assert "NOT PASSED" in Structure(report_page(report)).words


def test_a_source_that_could_not_be_fenced_is_told_first() -> None:
    story = Story(Mode.FAILOVER)
    story.step("declare")
    story.step("data.before.1")
    story.step("fence:db", ok=False, code="unfenced", message="db could not be fenced: its agent is not connected")
    story.run = replace(story.run, state=RunState.STOPPED, outcome=Outcome.BLOCKED)
    report = report_from(story)
    assert report.warnings[0].id == "fencing-failed"
    assert [(each.source, each.evidence) for each in report.fencing] == [("db", "")]


@pytest.mark.fault(59)
def test_no_secret_is_in_any_form_of_a_report() -> None:
    story = failover()
    story.ask(RequestKind.COMMIT, "ben", note="password=hunter2")
    report = report_from(story)
    for form in (report_page(report), report_json(report).decode()):
        assert not [secret for secret in SECRETS if secret in form]


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    "text",
    [
        "PGPASSWORD=hunter2 psql",
        "api_key: hunter2",
        "X-Api-Key: 'hunter2'",
        '{"secret": "hunter2", "a": 1}',
        "Authorization: Basic hunter2",
        "authorization=Bearer hunter2",
        "https://ann:hunter2@host/path",
        "AWS_SECRET_ACCESS_KEY=hunter2",
        "db_password: hunter2",
        "session-token: hunter2",
        "Set-Cookie: hunter2",
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str) -> None:
    assert "hunter2" not in masked(text)
    assert "***" in masked(text)


def test_what_is_no_secret_stays() -> None:
    text = "key_file: /etc/dns.key\nmonkey: banana\ntokens of love\nsources: {db: {launch: {driver: qemu}}}"
    assert masked(text) == text


def test_text_from_anywhere_is_only_text_in_the_page() -> None:
    calm, hostile = failover(), failover(hostile=HOSTILE)
    assert Structure(report_page(report_from(calm))).tags == Structure(report_page(report_from(hostile))).tags
    page = Structure(report_page(report_from(hostile)))
    assert not {"script", "img", "a", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, names in page.tags for name in names if name.startswith("on")]
    assert page.addresses == []
    assert "onerror=alert(2)" in page.words
    assert "\x1b" not in page.words
    assert "\u202e" not in page.words


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_no_output_or_note_changes_the_structure_of_the_page(output: str, note: str) -> None:
    def tags(output: str, note: str) -> list[tuple[str, tuple[str, ...]]]:
        story = Story(Mode.FAILOVER)
        story.step("declare", output=f"x{output}", message=output)
        story.ask(RequestKind.ABORT, "ann", "declare", note)
        return Structure(report_page(report_from(story))).tags

    assert tags(output, note) == tags("", "")


def test_a_page_needs_nothing_from_anywhere() -> None:
    page = report_page(report_from(failover(), (Route(network="10.0.0.0/24", received_bytes=5 << 30, sent_bytes=9),)))
    assert not re.search(r"url\(|@import|https?://(?!chat\.example|\$\{web)", page)
    assert "default-src 'none'" in page
    assert "5.0 GiB" in page


def test_the_digest_tells_one_journal_from_another() -> None:
    entries = failover().entries
    digest = journal_digest(entries)
    assert journal_digest(failover().entries) == digest
    assert journal_digest(entries[:-1]) != digest
    assert journal_digest([*entries[:-1], replace(entries[-1], at_ns=entries[-1].at_ns + 1)]) != digest
    assert journal_digest([entries[1], entries[0], *entries[2:]]) != digest


async def test_reports_are_kept_listed_and_read_again(tmp_path: Path) -> None:
    report = report_from(failover())
    page = await keep_report(tmp_path / "reports", report)
    assert page == tmp_path / "reports" / f"{report.run}.html"
    assert page.stat().st_mode & 0o077 == 0
    assert kept_reports(tmp_path / "reports") == [report.run]
    assert await summary(tmp_path / "reports", report.run) == report
    await keep_report(tmp_path / "reports", report)
    assert len(list((tmp_path / "reports").iterdir())) == 2
    assert kept_reports(tmp_path / "none") == []


@pytest.mark.fault(53)
@pytest.mark.parametrize("run", ["../x", "a/b", "/etc/passwd", "", ".hidden", "a..b", "x" * 200, "a\0b", "ü"])
async def test_a_report_is_found_in_its_directory_only(tmp_path: Path, run: str) -> None:
    with pytest.raises(DrengineError, match="report-unavailable"):
        report_path(tmp_path, run, "html")
    with pytest.raises(DrengineError, match="report-unavailable"):
        await read_kept(tmp_path, run, "json")


async def test_a_damaged_report_is_told(tmp_path: Path) -> None:
    (tmp_path / "r1.json").write_bytes(b'{"run": 5}')
    with pytest.raises(DrengineError, match="damaged"):
        await summary(tmp_path, "r1")


def keep_story(registry: Registry, story: Story) -> None:
    version = registry.save_runbook(story.book.name, story.text)
    registry.create_run(replace(story.run, version=version, state=RunState.RUNNING))
    token = registry.acquire_lease(f"run:{story.run.id}", "x", 60).token
    for entry in story.entries:
        registry.append(story.run.id, token, entry)
    registry.update_run(story.run.id, token=token, state=story.run.state, outcome=story.run.outcome)


def agent_report(name: str, details: dict[str, Any]) -> AgentReport:
    return AgentReport(
        name=name,
        kind=PartyKind.AGENT,
        state="CONTINUOUS",
        reason="",
        generation=1,
        fenced=False,
        serving=True,
        lag_seconds=0.0,
        backlog_bytes=0,
        at_ns=1,
        sequence=1,
        details=details,
    )


async def test_a_report_is_made_from_what_the_registry_holds(tmp_path: Path) -> None:
    registry = Registry.open(str(tmp_path / "registry"), clock=SystemClock())
    story = drill()
    keep_story(registry, story)
    counted = {"10.1.0.0/24": [1 << 20, 5 << 30], "broken": "many", "short": [1]}
    for name, details in (("db", {"bytes_by_network": counted}), ("web", {}), ("mail", {"bytes_by_network": counted})):
        registry.note_report(agent_report(name, details))
    report = report_of(registry, story.run.id, story.at_ns)
    assert report.verdict == "Drill of web-shop passed"
    assert report.journal_sha256 == journal_digest(story.entries)
    assert report.routes == [Route(network="10.1.0.0/24", received_bytes=1 << 20, sent_bytes=5 << 30)]
    page = await keep_report_of(registry, tmp_path / "reports", story.run.id, 1)
    assert page is not None
    assert "Drill of web-shop passed" in page.read_text()
    (tmp_path / "file").write_text("")
    assert await keep_report_of(registry, tmp_path / "file" / "reports", story.run.id, 1) is None
    registry.close()


def test_reports_are_handed_on_by_command(tmp_path: Path) -> None:
    from drengine.cli.main import app

    state = tmp_path / "state"
    registry = Registry.open(str(state / "registry.sqlite"), clock=SystemClock())
    story = drill()
    keep_story(registry, story)
    registry.close()
    where = ["--store", str(tmp_path), "--state", str(state)]
    command = CliRunner()
    done = command.invoke(app, ["reports", "export", story.run.id, *where])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("<!doctype html>")
    assert command.invoke(app, ["reports", "list", *where, "--json"]).stdout == "[]\n"
    (state / "reports").mkdir()
    out = state / "reports" / f"{story.run.id}.json"
    done = command.invoke(app, ["reports", "export", story.run.id, *where, "--form", "json", "-o", str(out)])
    assert done.exit_code == 0, done.output
    (listed,) = json.loads(command.invoke(app, ["reports", "list", *where, "--json"]).stdout)
    assert (listed["run"], listed["good"], listed["rpo_seconds"]) == (story.run.id, True, 1.412)
    assert "Drill of web-shop passed" in command.invoke(app, ["reports", "list", *where]).stdout


def test_a_kept_report_outlives_its_registry(tmp_path: Path) -> None:
    from drengine.cli.main import app

    reports = tmp_path / "state" / "reports"
    reports.mkdir(parents=True)
    (reports / "r1.html").write_text("as it was kept")
    where = ["--store", str(tmp_path), "--state", str(tmp_path / "state")]
    assert CliRunner().invoke(app, ["reports", "export", "r1", *where]).stdout == "as it was kept"
    assert getattr(CliRunner().invoke(app, ["reports", "export", "r2", *where]).exception, "kind", None) is not None


def test_a_source_that_was_handed_back_and_not_started_is_no_success_and_no_outage_is_over() -> None:
    story = Story(Mode.FAILBACK, NO_QUESTIONS)
    for step in story.steps:
        data = {"generation": 3, "branch": 5, "started": False} if step.kind.name == "release" else story.data(step)
        story.step(step.id, data=data)
    story.finish(Outcome.HANDED_BACK, "not-started")
    report = report_from(story)
    assert (report.good, report.outage_seconds) == (False, None)
    assert "handed back, not started" in report.verdict
    assert [each.id for each in report.warnings] == ["not-started", "not-started"]
    assert "NOT PASSED" in report_page(report)


def test_a_source_whose_agent_was_left_fenced_is_named_with_what_releases_it() -> None:
    story = Story(Mode.FAILOVER)
    story.step("declare")
    story.step("data.before.1")
    story.step("fence:web", data={"evidence": "agent", "agent": "fenced"})
    story.step("fence:db", ok=False, code="unfenced", message="db could not be fenced", data={"tried": ["no agent"]})
    story.run = replace(story.run, state=RunState.STOPPED, outcome=Outcome.BLOCKED)
    (left,) = [each.text for each in report_from(story).warnings if each.id == "left-fenced"]
    assert left.startswith("web is in charge, but this run stopped its agent")
    assert f"drengine rollback {story.run.id}" in left
