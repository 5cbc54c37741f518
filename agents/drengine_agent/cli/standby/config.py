"""`drengine-agent standby check-config` and `example-config`: a recovery host's configuration file."""

from __future__ import annotations

import time

import typer

from drengine.config import example
from drengine.terminal import emit_json
from drengine.transport.tls_check import Side, check_files
from drengine_agent.cli.common import JsonOption
from drengine_agent.cli.standby.options import DEFAULT_STANDBY_CONFIG, StandbyConfigOption
from drengine_agent.standby.config import StandbyConfig, load_standby_config
from drengine_agent.standby.programs import missing_programs

app = typer.Typer(add_completion=False)


@app.command("check-config")
def check_config(config: StandbyConfigOption = DEFAULT_STANDBY_CONFIG, json: JsonOption = False) -> None:
    """Read the configuration and its certificates and say whether they are right. Nothing is opened or changed."""
    options = load_standby_config(config)
    sections = {"tls": options.tls.files(), "control": options.control.tls_files("[control]")}
    reports = {
        name: check_files(files, Side.CLIENT, now=time.time()) for name, files in sections.items() if files is not None
    }
    missing = missing_programs()
    if json:
        certificates = {name: report.as_json() for name, report in reports.items()}
        told = {"broker": str(options.control.address), "certificates": certificates, "missing": missing}
        emit_json({"ok": True, "name": options.name, **told})
        return
    print(f"{config}: recovery host {options.name}, orders over {options.control.address}")
    for name, report in reports.items():
        for line in report.lines():
            print(f"[{name}] {line}" if line.startswith("certificate") else line)
    for program, use in missing.items():
        print(f"warning: {program} is not here: {use}")


@app.command("example-config")
def example_config() -> None:
    """Print a configuration file with every option, its meaning and its default."""
    print(example(StandbyConfig), end="")
