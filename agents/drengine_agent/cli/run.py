"""`drengine-agent run`: the agent in the foreground."""

from __future__ import annotations

import typer

from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption

app = typer.Typer(add_completion=False)


@app.command()
def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the agent in the foreground, until SIGTERM."""
    import asyncio  # noqa: PLC0415 - commands that only ask start faster without it

    from drengine.telemetry.logs import setup_logging  # noqa: PLC0415
    from drengine_agent.config import load_config  # noqa: PLC0415
    from drengine_agent.daemon import serve  # noqa: PLC0415

    options = load_config(config)
    setup_logging(level=options.log_level, form=options.log_form)
    asyncio.run(serve(options, config))
