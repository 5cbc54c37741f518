"""The commands of both programs, as documents, man pages and completions need them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer

PROGRAMS = {
    "drengine": ("drengine.cli.main", "app"),
    "drengine-agent": ("drengine_agent.cli.main", "commands"),
}


@dataclass(frozen=True)
class Parameter:
    """An option by its spellings, or an argument by its name in capitals."""

    names: tuple[str, ...]
    help: str
    is_option: bool


@dataclass(frozen=True)
class Command:
    """A command that does something: `name` begins with its program's."""

    name: str
    summary: str
    parameters: tuple[Parameter, ...]


def commands_of(program: str) -> Iterator[Command]:
    """All of a program's commands, in the order of its help."""
    module, attribute = PROGRAMS[program]
    yield from _walk(program, typer.main.get_command(getattr(importlib.import_module(module), attribute)))


def _walk(name: str, command: Any) -> Iterator[Command]:
    subcommands = command.list_commands(None) if hasattr(command, "list_commands") else []
    for each in subcommands:
        yield from _walk(f"{name} {each}", command.get_command(None, each))
    if not subcommands:
        parameters = tuple(_parameter(each) for each in command.params if each.name != "help")
        yield Command(name, " ".join((command.help or "").split()), parameters)


def _parameter(found: Any) -> Parameter:
    is_option = found.param_type_name == "option"
    names = tuple(found.opts) if is_option else (found.name.upper(),)
    return Parameter(names, found.help or "", is_option)
