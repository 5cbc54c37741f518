"""`drengine-agent check-config`: whether a configuration is right."""

from __future__ import annotations

import time

import typer

from drengine.config import joined
from drengine.terminal import emit_json
from drengine.transport.tls_check import Side, check_files
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption
from drengine_agent.config import load_config
from drengine_agent.daemon.trackers import configured_capture

app = typer.Typer(add_completion=False)


@app.command()
def check_config(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Read the configuration and its certificates and say whether they are right. Nothing is opened or changed."""
    options = load_config(config)
    configured_capture(options)
    names = [volume.name for volume in options.volume]
    sections = {"tls": options.tls.files(), "control": options.control.tls_files("[control]")}
    reports = {
        name: check_files(files, Side.CLIENT, now=time.time()) for name, files in sections.items() if files is not None
    }
    if json:
        certificates = {name: report.as_json() for name, report in reports.items()}
        emit_json(
            {
                "ok": True,
                "source": options.source,
                "volumes": names,
                "target": joined(options.target),
                "certificates": certificates,
            }
        )
        return
    print(f"{config}: source {options.source} to {joined(options.target)}, volumes {', '.join(names)}")
    for name, report in reports.items():
        for line in report.lines():
            print(f"[{name}] {line}" if line.startswith("certificate") else line)
