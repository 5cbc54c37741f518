"""`drengine-agent check-config`: whether a configuration is right."""

from __future__ import annotations

import typer

from drengine.terminal import emit_json
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption
from drengine_agent.config import load_config

app = typer.Typer(add_completion=False)


@app.command()
def check_config(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Read the configuration and say whether it is right. Nothing is opened or changed."""
    options = load_config(config)
    names = [volume.name for volume in options.volume]
    if json:
        emit_json({"ok": True, "source": options.source, "volumes": names, "target": str(options.target)})
    else:
        print(f"{config}: source {options.source} to {options.target}, volumes {', '.join(names)}")
