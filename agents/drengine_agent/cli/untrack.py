"""`drengine-agent untrack`: take the tracker out of the kernel."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.model.names import check_name
from drengine.terminal import emit_json
from drengine_agent.capture.ebpf.watch import Watch
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption
from drengine_agent.config import load_config

app = typer.Typer(add_completion=False)


@app.command()
def untrack(
    source: Annotated[str, typer.Option(help="The source; else the configuration's.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Stop tracking in the kernel and give its memory back. The next run of the agent compares everything."""
    source = check_name(source, what="source") if source else load_config(config).party
    removed = Watch.detach(source)
    if json:
        emit_json({"source": source, "removed": removed})
    else:
        print(f"{source}: " + ("no longer tracked" if removed else "was not tracked"))
