"""`drengine-agent cut`: a recovery point now."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.model.points import check_new_label
from drengine.terminal import emit_json
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ask_agent

app = typer.Typer(add_completion=False)


@app.command()
def cut(
    label: Annotated[str, typer.Option(help="A name for the point; not one that reads as a time or an id.")] = "",
    seconds: Annotated[float, typer.Option(help="How long to wait until it is durable.")] = 30.0,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Cut a recovery point now, and wait until it is durable at the target."""
    answer = ask_agent(config, "cut", seconds=seconds, label=check_new_label(label))
    if json:
        emit_json(answer)
    else:
        print(f"recovery point at stream position {answer['sequence']}" + (f" ({label})" if label else ""))
