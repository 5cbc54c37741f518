"""`drengine-agent adopt`: this disk replaces the volume's old one."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.model.clock import SystemClock
from drengine.terminal import emit_json
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption
from drengine_agent.config import load_config
from drengine_agent.daemon.adopt import adopt as adopt_disk
from drengine_agent.daemon.home import housed

app = typer.Typer(add_completion=False)


@app.command()
def adopt(
    volume: Annotated[str, typer.Option(help="The volume's name.")],
    known_as: Annotated[
        str, typer.Option(help="What the target knows it as (`drengine points --json`), where the agent forgot it.")
    ] = "",
    with_content: Annotated[
        bool,
        typer.Option(
            "--with-content",
            help="The new disk has the volume's content already, restored or copied: go on with it, compare everything "
            "with the target and ship what differs.",
        ),
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Say that the disk under a volume's path replaces the one that was there. The agent must be stopped.

    The source is then fenced until a failback has written the whole disk, unless it has the content already.
    """
    done = adopt_disk(
        housed(load_config(config), SystemClock()), volume, SystemClock(), known_as=known_as, with_content=with_content
    )
    if json:
        emit_json(done)
        return
    print(f"volume {done.volume}: {done.identity} in place of {done.formerly or done.declared}")
    if done.standing == "fenced":
        print("this source is fenced until `drengine failback` has brought the content home; start the agent now")
    else:
        print("start the agent now: it compares everything with the target and ships what differs")
