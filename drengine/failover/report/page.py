"""A report as one page that needs nothing else: no script, no font, no address. It prints as it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from drengine.failover.report.style import STYLE
from drengine.failover.report.timeline import short_duration, timeline
from drengine.failover.report.values import Objective, Report, StepReport
from drengine.terminal import human_bytes, human_time

Cell = str
"""A cell's HTML: everything from outside has been through `_t`."""


def report_page(report: Report) -> str:
    """The page."""
    parts = [
        _head(report),
        _warnings(report),
        _objectives(report),
        _section("Fencing", _fencing(report)),
        _section("Recovery points", _points(report)),
        _section("Time line", timeline(report) or "<p>No step has begun.</p>"),
        _section("Steps", _steps(report)),
        _section("People", _people(report)),
        _section("Generations", _generations(report)),
        *([_section("Changed on the recovered disks", _conversions(report))] if report.conversions else []),
        _section("Data by network route", _routes(report)),
        _section("Output of steps", _outputs(report)),
        _section("Runbook as it was run", f"<pre>{_t(report.runbook_text)}</pre>"),
        _foot(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_t(report.verdict)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(report: Report) -> str:
    look, badge = _badge(report)
    ended = human_time(report.finished_ns) if report.finished_ns else "not finished"
    facts = [
        ("Run", report.run),
        ("Mode", report.mode),
        ("Runbook", f"{report.runbook}, version {report.version[:12]}"),
        ("Sources", ", ".join(report.sources)),
        ("Started by", report.started_by),
        ("Begun", human_time(report.created_ns)),
        ("Ended", ended),
        (
            "Outcome",
            " ".join(each for each in (report.state, report.outcome, f"({report.reason})") if each.strip("()")),
        ),
    ]
    listed = "".join(f"<div><dt>{_t(name)}</dt><dd>{_t(value)}</dd></div>" for name, value in facts)
    about = f'<p class="about">{_t(report.description)}</p>' if report.description else ""
    return (
        f'<header><p class="kind">Disaster recovery report</p>'
        f'<h1>{_t(report.verdict)} <span class="badge {look}">{badge}</span></h1>{about}<dl>{listed}</dl></header>'
    )


def _badge(report: Report) -> tuple[str, str]:
    """How the whole looks: what went through with something to be told is not simply good."""
    if report.good:
        word = "PASSED" if report.mode == "drill" else "COMPLETED"
        return ("open", f"{word} WITH WARNINGS") if report.warnings else ("good", word)
    return ("open", "OPEN") if report.state in ("running", "waiting") else ("bad", "NOT PASSED")


def _warnings(report: Report) -> str:
    if not report.warnings:
        return ""
    items = "".join(f'<li class="{_t(each.id)}">{_t(each.text)}</li>' for each in report.warnings)
    return f'<section class="warnings" role="alert"><ul>{items}</ul></section>'


def _objectives(report: Report) -> str:
    cards = [_objective(each) for each in report.objectives]
    if report.outage_seconds is not None and not report.objectives:
        cards.append(_card("Outage", short_duration(report.outage_seconds), "from the first stop on", ""))
    if report.bytes_shipped_back:
        cards.append(_card("Shipped back", human_bytes(report.bytes_shipped_back), "only what differed", ""))
    return f'<section class="cards">{"".join(cards)}</section>' if cards else ""


def _objective(objective: Objective) -> str:
    measured = short_duration(objective.measured_seconds) if objective.measured_seconds is not None else "not measured"
    look = {True: "good", False: "bad", None: "open"}[objective.met]
    judged = {True: "kept", False: "missed", None: "unknown"}[objective.met]
    promised = f"{short_duration(objective.promised_seconds)} promised: <b class='{look}'>{judged}</b>"
    return _card(f"{objective.name}, {objective.meaning}", measured, objective.known_by, promised, look)


def _card(name: str, value: str, known_by: str, promised: Cell, look: str = "plain") -> str:
    return (
        f'<div class="card {look}"><h3>{_t(name)}</h3><p class="value">{_t(value)}</p>'
        f"<p>{promised}</p><p class='how'>{_t(known_by)}</p></div>"
    )


def _fencing(report: Report) -> str:
    if not report.fencing:
        calm = "A drill fences nothing: production went on." if report.mode == "drill" else "Nothing was fenced."
        return f"<p>{calm}</p>"
    rows = []
    for each in report.fencing:
        look = "bad" if each.evidence in ("none", "") else "good"
        tried = f"<br><small>Tried: {_t('; '.join(each.tried))}</small>" if each.tried else ""
        evidence = f'<b class="{look}">{_t(each.evidence or "not fenced")}</b>'
        found = f'<span class="long">{_t(each.message)}</span>{tried}'
        rows.append((_t(each.source), evidence, found, _t(each.meaning), _time(each.at_ns)))
    return _table(("Source", "Evidence", "Found", "What it means", "When"), rows)


def _points(report: Report) -> str:
    rows = [
        (
            _t(each.source),
            f"<code>{_t(each.point)}</code>{'<br>' + _t(each.label) if each.label else ''}",
            _time(each.time_ns),
            f"<b>{_t(each.kind)}</b>: {_t(each.meaning)}",
            _time(each.verified_ns) if each.verified_ns else "each batch when it was received",
            "<br>".join(
                f'<span class="time">{_t(name)} {human_bytes(size)}</span>' for name, size in each.volumes.items()
            ),
            f"{short_duration(each.rpo_seconds)}<br><small>{_t(each.known_by)}</small>",
        )
        for each in report.points
    ]
    heads = (
        "Source",
        "Point",
        "Shows",
        "Known to be consistent because",
        "Hashes read again",
        "Volumes",
        "Loss at most",
    )
    return _table(heads, rows) if rows else "<p>No point was chosen.</p>"


def _steps(report: Report) -> str:
    rows = [
        (
            f"{_t(each.title)}<br><small><code>{_t(each.id)}</code>{'' if each.critical else ' optional'}</small>",
            _t(each.wave or ("rollback" if each.rollback else "")),
            f'<b class="{_look(each)}">{_t(each.status)}</b>',
            _time(each.began_ns),
            f'<span class="time">{short_duration(each.seconds)}</span>' if each.seconds is not None else "",
            str(len(each.attempts) or ""),
            f'<span class="long">{_t(each.message)}</span>{f"<br><code>{_t(each.code)}</code>" if each.code else ""}',
        )
        for each in report.steps
    ]
    return _table(("Step", "Wave", "Status", "Begun", "Took", "Tries", "Result"), rows)


def _look(step: StepReport) -> str:
    return {"done": "good", "failed": "bad", "waiting": "open", "retry": "open", "running": "open"}.get(step.status, "")


def _people(report: Report) -> str:
    rows = [
        (
            _time(each.at_ns),
            f"{_t(each.by)} <code>{_t(each.proof)}</code>" if each.proof else _t(each.by),
            _t(each.did),
            f"<code>{_t(each.step)}</code>" if each.step else "",
            f"{_t(each.note)} <code>{_t(each.digest[:16])}</code>" if each.digest else _t(each.note),
        )
        for each in report.people
    ]
    return _table(("When", "Who", "What", "Step", "Note"), rows)


def _generations(report: Report) -> str:
    rows = [
        (_t(each.source), _t(each.event), str(each.before), str(each.after), str(each.branch))
        for each in report.generations
    ]
    none = "<p>Who may write did not change.</p>"
    return _table(("Source", "Event", "Generation before", "after", "Branch"), rows) if rows else none


def _conversions(report: Report) -> Cell:
    parts = []
    for each in report.conversions:
        said = f"not converted: {each.skipped}" if each.skipped else each.system
        rows = [
            (
                _t(change.what),
                f"<code>{_t(change.path)}</code>",
                f"<pre>{_t(change.before)}</pre>",
                f"<pre>{_t(change.after)}</pre>",
            )
            for change in each.changes
        ]
        table = _table(("What", "Path", "Before", "After"), rows) if rows else ""
        parts.append(
            f"<h3>{_t(each.source)}</h3><p>{_t(said)}</p>{table}" + "".join(f"<p>{_t(note)}</p>" for note in each.notes)
        )
    return "".join(parts)


def _routes(report: Report) -> str:
    rows = [
        (_t(each.network), human_bytes(each.received_bytes), human_bytes(each.sent_bytes)) for each in report.routes
    ]
    if not rows:
        return "<p>The agents did not say; the target counts bytes by network in its metrics.</p>"
    return "<p>As the sources' agents counted since they started.</p>" + _table(("Network", "Received", "Sent"), rows)


def _outputs(report: Report) -> str:
    found = [each for each in report.steps if each.output.strip()]
    if not found:
        return "<p>No step printed anything.</p>"
    return "".join(
        f'<div class="output"><h3><code>{_t(each.id)}</code> {_t(each.title)}</h3><pre>{_t(each.output)}</pre></div>'
        for each in found
    )


def _foot(report: Report) -> str:
    executors = ", ".join(report.executors) or "nobody yet"
    return (
        f"<footer>Made {_time(report.made_ns)}. Carried out by {_t(executors)}; {report.interruptions} steps "
        f"interrupted and gone on with. Journal: {report.journal_entries} entries, SHA-256 "
        f"<code>{_t(report.journal_sha256)}</code>. "
        "Times are UTC, by the orchestrator's clock. What looks like a secret is masked.</footer>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_t(title)}</h2>{body}</section>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    head = "".join(f"<th>{_t(each)}</th>" for each in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _time(at_ns: int) -> str:
    return f'<span class="time">{human_time(at_ns)}</span>' if at_ns else ""


def _t(text: str) -> str:
    """Text from anywhere as HTML: escaped, and without characters that would change how the rest is shown."""
    return escape(
        "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)
    )
