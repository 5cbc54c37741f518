"""`drengine-agent fence`: this source is not in charge any more."""

from __future__ import annotations

from pathlib import Path

import typer

from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ask_agent
from drengine_agent.cli.standing import show_standing
from drengine_agent.config import load_config
from drengine_agent.daemon.state import StateDirectory
from drengine_agent.errors import AGENT_NOT_RUNNING
from drengine_agent.fencing.fence import Fence, fenced_record

app = typer.Typer(add_completion=False)


@app.command()
def fence(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Stop serving and shipping at once and until `release`, also over restarts; to be used when nobody else can.

    Without a running agent it is noted for the next start.
    """
    try:
        answer = ask_agent(config, "fence")
    except DrengineError as error:
        if error.kind is not AGENT_NOT_RUNNING:
            raise
        source = _fence_at_rest(config)
        if json:
            emit_json({"running": False, "source": source, "standing": "fenced"})
        else:
            print(f"{source} is fenced; no agent is running")
    else:
        show_standing(answer, json)


def _fence_at_rest(config: Path) -> str:
    options = load_config(config)
    directory = StateDirectory(options.state_directory)
    try:
        held = Fence(options.state_directory)
        if held.may_ship:
            held.replace(fenced_record(directory.load().generation, "operator", SystemClock()))
    finally:
        directory.close()
    return options.source
