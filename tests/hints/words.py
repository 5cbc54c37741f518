"""All hints of the product, and what they tell a person to type."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import typer

from drengine.cli.main import app as drengine
from drengine_agent.cli.main import commands as drengine_agent

ROOT = Path(__file__).parent.parent.parent
PROGRAMS: dict[str, Any] = {
    "drengine": typer.main.get_command(drengine),
    "drengine-agent": typer.main.get_command(drengine_agent),
}


@dataclass(frozen=True)
class Hint:
    """A hint where it is written; what is filled in there is `{}`."""

    place: str
    text: str

    @property
    def typed(self) -> list[list[str]]:
        """The commands that it names, in words."""
        return [shlex.split(each) for each in self.quoted if each.split()[0] in PROGRAMS]

    @property
    def quoted(self) -> list[str]:
        """What stands between backticks."""
        return re.findall(r"`([^`]+)`", self.text)

    @property
    def options(self) -> list[str]:
        """Options that are named outside of a command."""
        return re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"`drengine[^`]*`", "", self.text))


def every_hint() -> list[Hint]:
    """All of them, in the order of their places."""
    found = []
    for base in (ROOT / "drengine", ROOT / "agents/drengine_agent"):
        for path in sorted(base.rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                found += [Hint(f"{path.relative_to(ROOT)}:{node.lineno}", text) for text in _hints_of(node)]  # type: ignore[attr-defined]
    return found


def _hints_of(node: ast.AST) -> Iterator[str]:
    """Arguments and variables called `hint`, the fourth argument of `error_kind`, the third of `Check`."""
    values: list[ast.expr] = []
    if isinstance(node, ast.Call):
        values += [each.value for each in node.keywords if each.arg == "hint"]
        if isinstance(node.func, ast.Name) and node.func.id == "error_kind":
            values += node.args[3:4]
        if isinstance(node.func, ast.Name) and node.func.id == "Check":
            values += node.args[2:3]
    elif isinstance(node, ast.Assign):
        names = [each.id for each in node.targets if isinstance(each, ast.Name)]
        values += [node.value] * any(name in ("hint", "HINT") or name.endswith("_HINT") for name in names)
    for value in values:
        yield from filter(None, _texts(value))


def _texts(value: ast.expr) -> Iterator[str]:
    match value:
        case ast.Constant(value=str() as text):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(each.value) if isinstance(each, ast.Constant) else "{}" for each in parts)
        case ast.IfExp(body=body, orelse=otherwise):
            yield from _texts(body)
            yield from _texts(otherwise)
        case ast.BinOp(left=left, right=right):
            yield from ("".join(pair) for pair in zip(_texts(left), _texts(right), strict=False))
        case ast.BoolOp(values=values):
            for each in values:
                yield from _texts(each)


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that can be typed, by its words."""
    for name, group in PROGRAMS.items():
        yield from _below((name,), group)


def _below(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "list_commands"):
        yield words, command
        return
    if default := getattr(command, "default", ""):  # it need not be typed
        yield words, command.get_command(None, default)
    for each in command.list_commands(None):
        yield from _below((*words, each), command.get_command(None, each))


COMMANDS = dict(commands())
OPTIONS = {
    option for command in COMMANDS.values() for each in command.params for option in each.opts + each.secondary_opts
}


def complaint(words: list[str], *, named: bool = False) -> str:
    """Why a command can't be typed like this; upper case stands for what is filled in. Empty if it can.

    Args:
        words: of the command.
        named: it is only spoken of: what it needs may be left out, and so may all but its first words.
    """
    if words[1:] in (["--version"], ["--help"]):
        return ""
    if named:
        words = list(takewhile(lambda word: word not in ("|", ">", "&"), words))
        if any(each[: len(words)] == tuple(words) for each in COMMANDS):
            return ""
    size = next((size for size in range(len(words), 1, -1) if tuple(words[:size]) in COMMANDS), 0)
    if not size:
        return "there is no such command"
    params = COMMANDS[tuple(words[:size])].params
    taken = {option: each for each in params for option in (*each.opts, *each.secondary_opts)}
    rest, arguments = words[size:], [each for each in params if each.param_type_name == "argument"]
    given = 0
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            given += 1
        elif word not in taken:
            return f"it has no option {word}"
        elif not taken[word].is_flag:
            if not (rest or named):
                return f"{word} wants a value"
            rest = rest[1:]
    if given > len(arguments) and not any(each.nargs < 0 for each in arguments):
        return "it takes fewer arguments"
    if named:
        return ""
    needed = [each.name.upper() for each in arguments if each.required]
    return f"it needs {' '.join(needed[given:])}" if given < len(needed) else ""


def written_commands() -> Iterator[tuple[str, list[str]]]:
    """Commands between backticks in the product's texts, and lines of commands in its documents, with their places."""
    for base in (ROOT / "drengine", ROOT / "agents/drengine_agent"):
        for path in sorted(base.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Constant, ast.JoinedStr)):
                    for text in _texts(node):
                        place = f"{path.relative_to(ROOT)}:{node.lineno}"
                        yield from ((place, words) for words in Hint(place, text).typed)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        within = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            within ^= line.startswith("```")
            place = f"{path.relative_to(ROOT)}:{number}"
            for quoted in re.findall(r"`([^`]+)`", "" if within else line):
                if quoted.split()[0] in PROGRAMS and not re.search(r"\w\|\w", quoted):
                    yield place, shlex.split(quoted)
            for each in re.split(r"; |\s{3,}", line) if within else ():
                if re.search(r"\w\|\w", each):
                    continue  # alternatives
                if each.split()[:1] and each.split()[0] in PROGRAMS and not each.endswith("\\"):
                    yield place, shlex.split(each, comments=True)
