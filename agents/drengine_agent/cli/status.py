"""`drengine-agent status`: how the agent stands."""

from __future__ import annotations

from pathlib import Path

import typer

from drengine.model.errors import DrengineError
from drengine.terminal import emit_json
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ask_agent
from drengine_agent.cli.standing import show_standing
from drengine_agent.errors import AGENT_NOT_RUNNING

app = typer.Typer(add_completion=False)


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Show how the running agent stands; without one, what the kernel tracks meanwhile."""
    try:
        answer = ask_agent(config, "status")
    except DrengineError as error:
        if error.kind is AGENT_NOT_RUNNING:
            _show_kernel(config, json=json)
        raise
    show_standing(answer, json)


def _show_kernel(config: Path, *, json: bool) -> None:
    from drengine_agent.cli.tracking import show_tracking, tracking_facts  # noqa: PLC0415
    from drengine_agent.config import load_config  # noqa: PLC0415

    options = load_config(config)
    if json:
        emit_json({"running": False, "source": options.source, "tracking": tracking_facts(options.source)})
    elif options.tracker == "ebpf":
        show_tracking(options.source)
