"""Runs that never were, with everything that a report can show; written by the journal's own rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from drengine.failover.plan import plan, sources_of
from drengine.failover.reading.reader import read_runbook
from drengine.failover.run import Event, JournalEntry, Outcome, Request, RequestKind, RunRecord, RunState
from drengine.failover.runbook.values import Mode
from drengine.failover.snapshot import plan_payload
from drengine.failover.steps.kinds import step_kinds
from drengine.failover.steps.step import PlannedStep

KINDS = step_kinds()

BEGIN_NS = 1_763_888_400_000_000_000
TEXT = """\
version: 1
name: web-shop
description: Web shop with its database, recovered at the edge site
objectives: {rpo: 2s, rto: 30s}
sources:
  db:
    fence: {command: [/usr/local/sbin/pdu, "off", "7"]}
    launch: {driver: qemu, settings: {memory_mib: 4096}}
  web:
    launch: {driver: command, settings: {run: [/srv/web], environment: {API_TOKEN: hunter2}}}
waves:
  - name: data
    sources: [db]
    before:
      - approval: {prompt: Fail over the shop?, by: [ann]}
    then:
      - sql: {dsn: "postgresql://check:s3cret@${db.address}/shop", query: SELECT count(*) FROM orders}
  - name: front
    sources: [web]
    then:
      - http: {url: "http://${web.address}/health", headers: {Authorization: Bearer abc123}}
      - notify: {url: "https://chat.example/hook"}
        critical: false
"""

NO_QUESTIONS = TEXT.replace("[ann]}", "[ann]}\n        modes: [failover]")
SECONDS = {KINDS["launch"]: 6.2, KINDS["approval"]: 4.0, KINDS["fence"]: 1.4, KINDS["sql"]: 1.1, KINDS["http"]: 0.6}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \x1b[31m\u202e"


class Story:
    """A journal as it grows."""

    def __init__(self, mode: Mode, text: str = TEXT, **options: Any) -> None:
        self.text = text
        self.book = read_runbook(text, where="test")
        self.run = RunRecord(
            id="20251123T090000-web-shop-4f2a",
            mode=mode,
            runbook=self.book.name,
            version="8c1f" * 8,
            sources=sources_of(self.book),
            started_by="ann",
            created_ns=BEGIN_NS,
            options=options,
        )
        self.at_ns = BEGIN_NS
        self.entries: list[JournalEntry] = []
        self.requests: list[Request] = []
        self.steps = plan(mode, self.book, options)
        self.note(plan_payload(self.steps, "planned", owner="edge-1:4711:aa"))

    def note(self, payload: Mapping[str, Any]) -> None:
        self._add(JournalEntry("", Event.DECISION, 0, self.at_ns, payload))

    def ask(self, kind: RequestKind, by: str, step: str = "", note: str = "") -> None:
        self.requests.append(Request(self.run.id, kind, step, by, note, self.at_ns, len(self.requests) + 1))

    def step(self, id: str, *, ok: bool = True, seconds: float | None = None, attempt: int = 1, **result: Any) -> None:
        step = next(each for each in self.steps if each.id == id)
        self.intent(id, attempt)
        self.at_ns += int((SECONDS.get(step.kind, 0.3) if seconds is None else seconds) * 1e9)
        data = {**self.data(step), **result.pop("data", {})} if ok else {}
        told = {"ok": ok, "message": f"{step.title}: {'done' if ok else 'failed'}", "data": data, **result}
        self._add(JournalEntry(id, Event.RESULT, attempt, self.at_ns, told))

    def intent(self, id: str, attempt: int = 1, **more: Any) -> None:
        self._add(JournalEntry(id, Event.INTENT, attempt, self.at_ns, {"owner": "edge-1:4711:aa", **more}))

    def finish(self, outcome: Outcome, reason: str = "all-done") -> None:
        self.run = replace(
            self.run, state=RunState.FINISHED, outcome=outcome, reason=reason, finished_ns=self.at_ns + 10**9
        )

    def data(self, step: PlannedStep) -> dict[str, Any]:
        """As the handlers say it."""
        if step.kind is KINDS["declare"]:
            facts = {"generation": 1, "branch": 1, "origin": 1, "sign_ns": self.at_ns, "online": False}
            return {"declared_ns": self.at_ns, "sources": dict.fromkeys(self.run.sources, facts)}
        if step.kind is KINDS["choose-point"]:
            return {
                "point": "1-81734",
                "time_ns": BEGIN_NS - 412_000_000,
                "kind": "write-order",
                "label": "",
                "verified_ns": BEGIN_NS - 3600 * 10**9,
                "size_bytes": 50 << 30,
                "volumes": {"root": 10 << 30, "data": 40 << 30},
                "rpo_seconds": 1.412,
                "rpo_known_by": "from the point to 1 s after the source's last sign of life",
            }
        if step.kind is KINDS["fence"]:
            return {"evidence": "command", "command": "/usr/local/sbin/pdu"}
        if step.kind is KINDS["promote"]:
            return {"branch": 2, "generation": 2}
        return {}

    def _add(self, entry: JournalEntry) -> None:
        self.entries.append(replace(entry, seq=len(self.entries) + 1))


def failover(*, hostile: str = "") -> Story:
    """A forced failover with a try that failed, an interruption, an approval and a notification that nobody took."""
    story = Story(Mode.FAILOVER, force=True)
    kinds = {step.id: step for step in story.steps}
    for id, step in kinds.items():
        output = f"postgres: ready {hostile}\npassword=s3cret dsn=postgresql://check:s3cret@10.0.0.5/shop"
        if step.kind is KINDS["fence"] and step.source == "web":
            forced = {"evidence": "none", "forced_by": "ann", "tried": ["its agent is not connected", "no command"]}
            story.step(id, data=forced, message="NOT FENCED, forced by ann: web may still be writing")
        elif step.kind is KINDS["launch"] and step.source == "db":
            story.step(id, ok=False, seconds=4, message="db-1 is not healthy", code="launch-failed", retryable=True)
            story.intent(id, 2)
            story.at_ns += 10**9
            story.step(id, attempt=2, output=output, message=f"db runs {hostile}")
        elif step.kind is KINDS["promote"] and step.source == "db":
            story.intent(id)
            story.intent(id, again=True)
            story.step(id)
        elif step.kind is KINDS["approval"]:
            story.step(id, seconds=0.1, ok=False, waiting=True)
            story.ask(RequestKind.APPROVE, "ann", id, f"the region is gone {hostile}")
            story.step(id)
        elif step.kind is KINDS["notify"]:
            story.step(id, ok=False, message="https://chat.example/hook: timed out", code="check-failed", output=output)
        else:
            story.step(id)
    story.finish(Outcome.COMPLETED)
    return story


def drill() -> Story:
    """A drill in which everything went well."""
    story = Story(
        Mode.DRILL, TEXT.replace("[ann]}", "[ann]}\n        modes: [failover]").replace("rto: 30s", "rto: 2m")
    )
    for step in story.steps:
        story.step(step.id)
    story.finish(Outcome.COMPLETED)
    return story
