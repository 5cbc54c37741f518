"""`drengine-agent status`: how the agent stands."""

from __future__ import annotations

import typer

from drengine.model.errors import DrengineError
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
            from drengine_agent.cli.tracking import show_kernel  # noqa: PLC0415 - an agent that runs answers without it

            show_kernel(config, json=json)
        raise
    show_standing(answer, json)
