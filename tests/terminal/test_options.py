"""A group of options stands for its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from drengine.terminal.options import grouped

app = typer.Typer()


@dataclass(frozen=True)
class Place:
    where: Annotated[str, typer.Option("--where", help="The place.")] = "here"


@dataclass(frozen=True)
class Visit(Place):
    often: Annotated[int, typer.Option("--often", "-o", min=1)] = 1


@app.command()
@grouped
def visit(name: Annotated[str, typer.Argument()], loud: bool = False, *, options: Visit) -> None:
    """Go there."""
    print(name, loud, options)


def said(*arguments: str) -> str:
    return CliRunner().invoke(app, list(arguments)).output


def test_a_group_is_filled_from_the_command_line_and_its_defaults() -> None:
    assert said("me") == "me False Visit(where='here', often=1)\n"
    assert said("me", "--where", "there", "-o", "3", "--loud") == "me True Visit(where='there', often=3)\n"


def test_the_fields_of_a_group_are_checked_and_explained_as_options() -> None:
    assert "0 is not in the range" in " ".join(said("me", "-o", "0").split())
    assert "The place." in said("--help")
    assert "Go there." in said("--help")
    assert "--options" not in said("--help")
