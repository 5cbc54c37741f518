"""`drengine-agent release`: this source is in charge again."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ask_agent
from drengine_agent.cli.standing import show_standing

app = typer.Typer(add_completion=False)


@app.command()
def release(
    generation: Annotated[
        int, typer.Option(min=0, help="The generation that the store is at (`drengine status`); 0: the source's own.")
    ] = 0,
    branch: Annotated[int, typer.Option(min=0, help="The branch that it writes; 0: as before.")] = 0,
    force: Annotated[
        bool,
        typer.Option("--force", help="Even if the disks were only half brought home, or the generation is an old one."),
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Serve and ship again. A failback does this by itself; by hand, make sure first that nobody else is in charge.

    A store that has another generation than this refuses the source, which is then fenced again.
    """
    show_standing(ask_agent(config, "release", generation=generation, branch=branch, force=force), json)
