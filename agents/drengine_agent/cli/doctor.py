"""`drengine-agent doctor`: whether this host can be protected, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.terminal import emit_json
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, named_volumes
from drengine_agent.doctor.errors import DOCTOR_REFUSES
from drengine_agent.doctor.examine import Asked, examine
from drengine_agent.doctor.show import as_json, show_report

app = typer.Typer(add_completion=False)


@app.command()
def doctor(
    volume: Annotated[list[str] | None, typer.Option(help="NAME=PATH to protect; once for each.")] = None,
    tracker: Annotated[str, typer.Option(help="Judge for this tracker: auto, ebpf, nbd or scan.")] = "",
    state_directory: Annotated[Path | None, typer.Option(help="Where the agent would keep its state.")] = None,
    store: Annotated[Path | None, typer.Option(help="A target's store on this host, if there is one.")] = None,
    self_test: Annotated[bool, typer.Option(help="Try the tracker on a small loop device made for it.")] = True,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Say whether this host can be protected, which tracker each volume would get, and why.

    What is not said on the command line comes from the configuration file, if there is one. Nothing is changed; the
    self-test makes a small loop device, writes to it, sees the tracker's bits, and removes it. Exit status 0 when
    nothing speaks against protecting this host, 90 otherwise.
    """
    asked = Asked.read(config, named_volumes(volume or ()), tracker, state_directory, store)
    host, report = examine(asked, try_tracker=self_test)
    if json:
        emit_json(as_json(host, report))
    else:
        show_report(report)
    if not report.ok:
        raise typer.Exit(DOCTOR_REFUSES.exit_code)
