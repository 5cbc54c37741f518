"""`drengine fleet policy`: what is decided here for sources."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.fleet.desk import ask_fleet
from drengine.cli.run_options import LookOptions
from drengine.fleet.answers import PolicyAnswer
from drengine.terminal import emit_json, note, show_table
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)

SourcesArgument = Annotated[str, typer.Argument(help="A source's name, or a pattern in quotes such as 'shop-*'.")]


@app.command()
@grouped
def show(json: JsonOption = False, *, options: LookOptions) -> None:
    """Show what was decided, by name or pattern of sources."""
    _tell(ask_fleet(options, lambda desk: desk.policy()), json)


@app.command("set")
@grouped
def set_(
    sources: SourcesArgument,
    values: Annotated[
        list[str],
        typer.Argument(metavar="NAME=VALUE...", help="cuts, bandwidth, point_interval, retention or ring."),
    ],
    json: JsonOption = False,
    *,
    options: LookOptions,
) -> None:
    """Decide settings for a source, or for all that a pattern means.

    Agents take them within seconds, without a restart. A source's own name counts more than a pattern, and a pattern
    with more letters more than one with fewer.
    """
    given = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
        given[name] = value
    _tell(ask_fleet(options, lambda desk: desk.set_policy(sources, given), decides=True), json)


@app.command()
@grouped
def unset(
    sources: SourcesArgument,
    names: Annotated[list[str] | None, typer.Argument(help="Settings; default: all of them.")] = None,
    json: JsonOption = False,
    *,
    options: LookOptions,
) -> None:
    """Take back what was decided; agents go by their own files again."""
    _tell(ask_fleet(options, lambda desk: desk.unset_policy(sources, names or []), decides=True), json)


def _tell(policy: PolicyAnswer, json: bool) -> None:
    if json:
        emit_json(policy)
        return
    rows = [(sources, name, value) for sources, rule in sorted(policy.rules.items()) for name, value in rule.items()]
    if rows:
        show_table(("sources", "setting", "value"), rows, title=f"Policy, version {policy.version}")
    else:
        note("nothing is decided: each agent goes by its own file")
