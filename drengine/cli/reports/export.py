"""`drengine reports export`: the report of a run, for somebody else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.run_options import RegistryOptions, RunArgument
from drengine.failover.config import load_orchestrator_config
from drengine.failover.registry import Registry
from drengine.failover.report.collect import report_as
from drengine.failover.report.errors import REPORT_UNAVAILABLE
from drengine.failover.report.keep import Form, is_kept, kept_reports, read_kept
from drengine.failover.run import LAST
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.terminal import note
from drengine.terminal.options import grouped
from drengine.terminal.output import write_output

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def export(
    run: RunArgument,
    form: Annotated[
        Form, typer.Option("--form", help="html: one page that needs nothing else; json: values.")
    ] = Form.HTML,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: standard output.")] = None,
    *,
    options: RegistryOptions,
) -> None:
    """Hand on the report of a run as it stands now; where the registry can't tell any more, as it was kept."""
    config = load_orchestrator_config(options.config, options.given())
    run, found = asyncio.run(_report(config.registry_url, config.reports, run, form))
    text = found.decode()
    if output is None:
        write_output(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DrengineError(REPORT_UNAVAILABLE, f"report of {run}: {error.strerror or error}") from error
    note(f"wrote {output}")


async def _report(registry_url: str, reports: Path, run: str, form: Form) -> tuple[str, bytes]:
    """A run's id and its report; `run` may be LAST."""
    clock = SystemClock()
    try:
        registry = await asyncio.to_thread(Registry.open, registry_url, clock=clock)
    except DrengineError:
        run = next(iter(kept_reports(reports)), run) if run == LAST else run
        if not is_kept(reports, run, form):
            raise
        return run, await read_kept(reports, run, form)
    try:
        run = await asyncio.to_thread(registry.named, run)
        return run, await report_as(registry, reports, run, form, clock.now_ns())
    finally:
        await asyncio.to_thread(registry.close)
