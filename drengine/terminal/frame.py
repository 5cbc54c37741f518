"""The frame of a command line: commands as typer apps, failures as one line with an id, an exit code and a hint."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from drengine import __version__
from drengine.model.errors import ACCESS_DENIED, DrengineError, error_kind
from drengine.ownership import barrier
from drengine.terminal.failure import kept_traceback
from drengine.terminal.output import write_output
from drengine.terminal.streams import harmless, printable, safe_streams, styled

INTERNAL = error_kind(
    "internal",
    125,
    "An unexpected failure inside drengine.",
    "Please report it with the file that was named.",
)
USAGE_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130
BROKEN_PIPE_EXIT_CODE = 141
_KEPT_OUT = re.compile(r"Path '(.+)' is not (?:read|writ)able\.")
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"]}


class Command(NamedTuple):
    """A command of a program: the module that has it, and the line that the program's help shows for it.

    The line repeats the first one of the command's docstring, so that help needs no module; a test compares them.
    """

    module: str
    summary: str


class Group(NamedTuple):
    """Commands under one name, with the line that help shows for them; `default` is the one that need not be typed."""

    summary: str
    commands: Mapping[str, Command | Group]
    default: str = ""


def app(name: str, help: str, *, group: type[TyperGroup] | None = None) -> typer.Typer:
    """A program: a command line with the option --version."""
    made = typer.Typer(
        name=name,
        help=help,
        cls=group,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT_SETTINGS,
    )

    @made.callback(help=help)
    def options(
        version: bool = typer.Option(
            False, "--version", is_eager=True, callback=_print_version, help="Print it and end."
        ),
    ) -> None:
        """The options of the program itself."""

    return made


def lazy_app(name: str, help: str, commands: Mapping[str, Command | Group]) -> typer.Typer:
    """A program whose commands' modules are imported only when they are used: a small command must start quickly.

    This is the one door for laziness: whatever stands behind it imports what it needs at its top.

    Args:
        name: of the program.
        help: what it does.
        commands: by name.
    """

    class Program(_LazyGroup):
        table = commands

    return app(name, help, group=Program)


class _LazyGroup(TyperGroup):
    """Commands from a table, which serves the help as well. A command's module is imported when it is asked for."""

    table: Mapping[str, Command | Group]
    default = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self.default and (
            not args or (args[0].startswith("-") and args[0] not in CONTEXT_SETTINGS["help_option_names"])
        ):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        match self.table.get(cmd_name):
            case Command() as found:
                return _imported(found, cmd_name)
            case Group() as found:
                made = _LazyGroup(
                    name=cmd_name, help=found.summary, no_args_is_help=True, context_settings=CONTEXT_SETTINGS
                )
                made.table, made.default = found.commands, found.default
                return made
        return None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = [TyperCommand(name, help=each.summary) for name, each in self.table.items()]
        listed = TyperGroup(name=self.name, help=self.help, params=self.params, commands=shown)
        listed.format_help(ctx, formatter)


def _imported(command: Command, name: str) -> Any:
    """A module's only command, or the one of that name."""
    made: Any = typer.main.get_command(importlib.import_module(command.module).app)
    made = made.commands[name] if isinstance(made, TyperGroup) else made
    made.name = name
    return made


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def main(commands: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command and return the exit code; no failure reaches the user as a traceback."""
    with safe_streams():
        return _run(commands, arguments)


def _run(commands: typer.Typer, arguments: Sequence[str]) -> int:
    try:
        result = typer.main.get_command(commands).main(list(arguments), standalone_mode=False)
        write_output("")
    except DrengineError as error:
        return _tell(arguments, error.kind.id, error.message, error.hint, error.kind.exit_code)
    except typer.Abort:
        return INTERRUPTED_EXIT_CODE
    except TyperException as error:
        said = error.format_message()
        if found := _KEPT_OUT.search(said):
            return _tell_kept_out(arguments, found[1])
        if "--help" in said or not said:  # asked for nothing: the help itself was the answer
            return USAGE_EXIT_CODE
        return _tell(arguments, "usage", said, "Add --help for what it takes.", USAGE_EXIT_CODE)
    except PermissionError as error:
        return _tell_kept_out(arguments, error.filename)
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        return BROKEN_PIPE_EXIT_CODE
    except SystemExit as end:  # typer's own answer to a broken pipe
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return BROKEN_PIPE_EXIT_CODE
    except Exception as error:  # noqa: BLE001 (the last resort: a person gets a line, the traceback goes to a file)
        message = f"{type(error).__name__}: {error}"
        return _tell(arguments, INTERNAL.id, message, f"Please report it with {kept_traceback()}.", INTERNAL.exit_code)
    return result if isinstance(result, int) else 0


def _tell_kept_out(arguments: Sequence[str], place: Any) -> int:
    said = barrier(Path(os.fsdecode(place))) if isinstance(place, (str, bytes, os.PathLike)) else "permission denied"
    return _tell(arguments, ACCESS_DENIED.id, said, ACCESS_DENIED.hint, ACCESS_DENIED.exit_code)


def _tell(arguments: Sequence[str], id: str, message: str, hint: str, exit_code: int) -> int:
    one_line = printable(" ".join(message.split()))
    if "--json" in arguments:
        print(json.dumps({"error": id, "message": one_line, "hint": hint, "exit_code": exit_code}), file=sys.stderr)
    else:
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        red, plain = ("\x1b[1;31m", "\x1b[0m") if colour else ("", "")
        said = f"{red}error:{plain} {one_line} [{id}]\n{'hint:':6} {harmless(hint)}"
        print(said, file=styled(sys.stderr), flush=True)
    return exit_code
