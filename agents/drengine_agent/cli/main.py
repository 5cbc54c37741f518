"""`drengine-agent`: run it, ask it, command it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from drengine.config import example
from drengine.model.errors import DrengineError
from drengine.terminal import app, emit_json, human_bytes, human_duration, main, note
from drengine_agent.config import AgentConfig, load_config, parse_config
from drengine_agent.errors import CONFIG_EXISTS

commands = app(
    "drengine-agent",
    "Protects this server's disks: captures their changes and ships them to a target.",
    program=True,
)

Config = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_CONFIG = Path("/etc/drengine/agent.toml")


@commands.command("run")
def run_agent(config: Config = DEFAULT_CONFIG) -> None:
    """Run the agent in the foreground, until SIGTERM."""
    import asyncio  # noqa: PLC0415 - commands that only ask start faster without it

    from drengine.telemetry.logs import setup_logging  # noqa: PLC0415
    from drengine_agent.daemon import serve  # noqa: PLC0415

    options = load_config(config)
    setup_logging(level=options.log_level, form=options.log_form)
    asyncio.run(serve(options, config))


@commands.command()
def status(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Show how the running agent stands."""
    _show(_ask(config, "status"), json)


@commands.command()
def pause(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Stop shipping until `resume`, also over restarts. Changes are still captured."""
    _show(_ask(config, "pause"), json)


@commands.command()
def resume(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Ship again after `pause`."""
    _show(_ask(config, "resume"), json)


@commands.command()
def sync(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Compare everything with the target now; with tracker `scan`, begin the next scan now."""
    _show(_ask(config, "sync"), json)


@commands.command()
def cut(
    label: Annotated[str, typer.Option(help="A name for the point.")] = "",
    seconds: Annotated[float, typer.Option(help="How long to wait until it is durable.")] = 30.0,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Cut a recovery point now, and wait until it is durable at the target."""
    answer = _ask(config, "cut", seconds=seconds, label=label)
    if json:
        emit_json(answer)
    else:
        print(f"recovery point at stream position {answer['sequence']}" + (f" ({label})" if label else ""))


@commands.command()
def check_config(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Read the configuration and say whether it is right. Nothing is opened or changed."""
    options = load_config(config)
    names = [volume.name for volume in options.volume]
    if json:
        emit_json({"ok": True, "source": options.source, "volumes": names, "target": str(options.target)})
    else:
        print(f"{config}: source {options.source} to {options.target}, volumes {', '.join(names)}")


@commands.command()
def protect(
    target: Annotated[str, typer.Option(help="The target's HOST:PORT.")],
    source: Annotated[str, typer.Option(help="This server's name at the target.")],
    volume: Annotated[list[str], typer.Option(help="NAME=PATH; once for each volume.")],
    tracker: Annotated[str, typer.Option(help="nbd or scan.")] = "nbd",
    listen: Annotated[str, typer.Option(help="For nbd: unix:PATH or HOST:PORT where the volumes are served.")] = "",
    state_directory: Annotated[Path | None, typer.Option(help="Where the agent keeps its journal and indexes.")] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Write a configuration file; `run` then protects these volumes. Nothing is opened or changed yet."""
    values: dict[str, Any] = {"source": source, "target": target, "tracker": tracker}
    if state_directory is not None:
        values["state_directory"] = str(state_directory.absolute())
    named = [each.partition("=") for each in volume]
    for each, (_, equals, path) in zip(volume, named, strict=True):
        if not equals or not path:
            raise typer.BadParameter(f"{each!r} is not NAME=PATH")
    parse_config(
        {
            **values,
            "volume": [{"name": name, "path": path} for name, _, path in named],
            **({"nbd": {"listen": listen}} if listen else {}),
        }
    )
    lines = [f"{key} = {_quoted(text)}" for key, text in values.items()]
    if listen:
        lines += ["", "[nbd]", f"listen = {_quoted(listen)}"]
    for name, _, path in named:
        lines += ["", "[[volume]]", f"name = {_quoted(name)}", f"path = {_quoted(str(Path(path).absolute()))}"]
    try:
        with config.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError as error:
        raise DrengineError(CONFIG_EXISTS, f"{config} is there already") from error
    except OSError as error:
        raise DrengineError(CONFIG_EXISTS, f"{config}: {error.strerror}", hint="Name another file.") from error
    note(f"wrote {config}; start with: drengine-agent run --config {config}")


@commands.command()
def example_config() -> None:
    """Print a configuration file with every option, its meaning and its default."""
    print(example(AgentConfig), end="")


def run() -> None:
    """The entry point `drengine-agent`."""
    sys.exit(main(commands, sys.argv[1:]))


def _ask(config: Path, command: str, **arguments: Any) -> Any:
    from drengine_agent.control_client import ask  # noqa: PLC0415

    return ask(load_config(config).control_socket, command, **arguments)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _show(answer: dict[str, Any], json: bool) -> None:
    if json:
        emit_json(answer)
        return
    reason = "" if answer["reason"] == "none" else f" ({answer['reason']})"
    lag = human_duration(answer["lag_seconds"]) if answer["has_point"] else "no recovery point yet"
    rows = [
        ("source", f"{answer['source']} to {answer['target']}, tracker {answer['tracker']}"),
        ("state", f"{answer['state']}{reason}"),
        ("hint", answer["hint"]),
        ("detail", answer["detail"]),
        ("lag", lag),
        ("backlog", human_bytes(answer["backlog_bytes"])),
        ("sent", f"{human_bytes(answer['bytes_sent'])} for {human_bytes(answer['bytes_sent_plain'])} of changes"),
        ("points", str(answer["points_cut"])),
    ]
    if answer["state"] in ("INITIAL_SYNC", "RESCAN"):
        done, total = answer["sweep_scanned_bytes"], answer["sweep_bytes"]
        rows.insert(2, ("progress", f"{human_bytes(done)} of {human_bytes(total)}"))
    rows += [("volume", f"{v['name']}  {human_bytes(v['size_bytes'])}  {v['path']}") for v in answer["volumes"]]
    for name, text in rows:
        if text:
            print(f"{name:9} {text}")


if __name__ == "__main__":
    run()
