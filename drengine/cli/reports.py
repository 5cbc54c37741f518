"""`drengine reports`: what runs did and achieved, as kept for people who were not there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import ConfigOption, EngineStoreOption, RunArgument, StateOption, load_config
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, human_duration, human_time, note, show_table
from drengine.terminal.output import write_output

app = typer.Typer(add_completion=False)


@app.command(name="list")
def list_reports(
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10000, help="How many at most, newest first.")] = 30,
    json: JsonOption = False,
) -> None:
    """List the reports that are kept, newest first."""
    from drengine.failover.report.keep import kept_reports, summary  # noqa: PLC0415

    directory = load_config(config, store, state).reports

    async def read() -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for run in kept_reports(directory)[:limit]:
            try:
                report = await summary(directory, run)
            except DrengineError as error:
                note(f"{error.message} [{error.kind.id}]")
                continue
            measured = {each.name.lower(): each.measured_seconds for each in report.objectives}
            rows.append(
                {
                    "run": run,
                    "verdict": report.verdict,
                    "good": report.good,
                    "warnings": len(report.warnings),
                    "rto_seconds": measured.get("rto"),
                    "rpo_seconds": measured.get("rpo"),
                    "made_ns": report.made_ns,
                    "page": str(directory / f"{run}.html"),
                }
            )
        return rows

    found = asyncio.run(read())
    if json:
        emit_json(found)
        return
    if not found:
        note("no report is kept yet: each run leaves one when it ends")
        return
    heads = ("run", "verdict", "warnings", "RTO", "RPO", "made")
    show_table(heads, [_row(each) for each in found], title="Reports")


@app.command()
def export(
    run: RunArgument,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    form: Annotated[str, typer.Option("--form", help="html: one page that needs nothing else; json: values.")] = "html",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: standard output.")] = None,
) -> None:
    """Hand on the report of a run as it stands now; where the registry can't tell any more, as it was kept."""
    from drengine.failover.report.errors import REPORT_UNAVAILABLE  # noqa: PLC0415
    from drengine.failover.report.keep import FORMS, report_path  # noqa: PLC0415

    if form not in FORMS:
        raise typer.BadParameter(f"--form is one of {', '.join(FORMS)}")
    options = load_config(config, store, state)
    kept = report_path(options.reports, run, form)
    try:
        try:
            text = _as_it_stands(options.registry_url, run, form)
        except DrengineError:
            if not kept.exists():
                raise
            text = kept.read_text("utf-8")
        if output is None:
            write_output(text)
        else:
            output.write_text(text, encoding="utf-8")
            note(f"wrote {output}")
    except OSError as error:
        raise DrengineError(REPORT_UNAVAILABLE, f"report of {run}: {error.strerror or error}") from error


def _as_it_stands(registry_url: str, run: str, form: str) -> str:
    from drengine.failover.registry import Registry  # noqa: PLC0415
    from drengine.failover.report.collect import report_of  # noqa: PLC0415
    from drengine.failover.report.page import report_page  # noqa: PLC0415
    from drengine.failover.report.values import report_json  # noqa: PLC0415
    from drengine.model.clock import SystemClock  # noqa: PLC0415

    clock = SystemClock()
    registry = Registry.open(registry_url, clock=clock)
    try:
        report = report_of(registry, run, clock.now_ns())
    finally:
        registry.close()
    return report_page(report) if form == "html" else report_json(report).decode()


def _row(each: dict[str, object]) -> tuple[str, ...]:
    def seconds(key: str) -> str:
        value = each[key]
        return human_duration(value) if isinstance(value, float) else ""

    made = each["made_ns"]
    assert isinstance(made, int)
    return (
        str(each["run"]),
        str(each["verdict"]),
        str(each["warnings"] or ""),
        seconds("rto_seconds"),
        seconds("rpo_seconds"),
        human_time(made)[:19],
    )
