"""`drengine-agent track`: begin before the agent runs."""

from __future__ import annotations

import typer

from drengine.terminal import emit_json, note
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption
from drengine_agent.cli.tracking import begin_tracking, show_tracking, shown
from drengine_agent.config import load_config

app = typer.Typer(add_completion=False)


@app.command()
def track(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Begin tracking in the kernel without shipping, for instance early at boot; the agent takes it up later.

    Tracking that runs already, and proves itself, goes on as it is.
    """
    options = load_config(config)
    doubt = begin_tracking(options)
    if json:
        emit_json(shown(options.party, doubt))
    else:
        note("tracking runs already" if doubt == "none" else f"tracking began anew ({doubt})")
        show_tracking(options.party)
