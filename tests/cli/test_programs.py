"""Both programs as a shell sees them: help for everything, quick starts, bad input refused before anything happens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from drengine.cli.main import COMMANDS, app
from drengine.terminal import Command, Group, main
from drengine_agent.cli.main import COMMANDS as AGENT_COMMANDS
from drengine_agent.cli.main import commands as agent_app
from tests.recovery.replica import make

DOCUMENT = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")
PROGRAMS: dict[str, typer.Typer] = {"drengine": app, "drengine-agent": agent_app}


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = command.list_commands(None) if hasattr(command, "list_commands") else []
    for name in below:
        yield from leaves(command.get_command(None, name), (*words, name))
    if not below:
        yield words, command


ALL = [leaf for name, program in PROGRAMS.items() for leaf in leaves(typer.main.get_command(program), (name,))]


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_a_command_says_what_it_does_and_so_does_each_of_its_options(
    words: tuple[str, ...], command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(PROGRAMS[words[0]], [*words[1:], "--help"]) == 0
    assert "Usage:" in capsys.readouterr().out
    assert command.help
    assert all(parameter.help for parameter in command.params if parameter.name != "help"), "an option has no help"
    assert f"### {' '.join(words)}\n" in DOCUMENT


def summaries(table: Mapping[str, Command | Group], words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, each in table.items():
        if isinstance(each, Group):
            yield from summaries(each.commands, (*words, name))
        else:
            yield (*words, name), each.summary


def test_the_line_that_help_shows_for_a_command_is_the_first_of_what_the_command_says_itself() -> None:
    shown = dict(summaries(COMMANDS, ("drengine",))) | dict(summaries(AGENT_COMMANDS, ("drengine-agent",)))
    assert shown == {words: (command.help or "").splitlines()[0] for words, command in ALL}


@pytest.mark.parametrize(
    "line", ["drengine --help", "drengine", "drengine-agent -h", "drengine run", "drengine target -h"]
)
def test_help_for_commands_is_served_without_importing_one(line: str) -> None:
    """Whatever the machine's load: what is imported is looked at, not how long it takes."""
    name, *words = line.split()
    place = {
        "drengine": "drengine.cli.main import app",
        "drengine-agent": "drengine_agent.cli.main import commands as app",
    }
    program = (
        f"import sys; from drengine.terminal import main; from {place[name]}; main(app, {words});"
        "print(sorted(each for each in sys.modules if '.cli.' in each))"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    module = place[name].split()[0]
    assert done.stdout.splitlines()[-1] == f"['{module}']"
    table: Mapping[str, Command | Group] = COMMANDS if name == "drengine" else AGENT_COMMANDS
    for word in words:
        if not word.startswith("-"):
            group = table[word]
            assert isinstance(group, Group)
            table = group.commands
    assert all(each in done.stdout for each in table)


def test_all_commands_of_the_issue_are_there() -> None:
    expected = {"points", "export", "restore", "verify", "scrub", "rebuild", "pin", "unpin", "status", "target"}
    assert expected <= COMMANDS.keys()


def test_a_small_command_imports_nothing_large() -> None:
    """What makes a start slow is not measured but named: the store's numpy, rich, asyncio, the metrics."""
    program = (
        "import sys; from drengine.terminal import main; from drengine.cli.main import app;"
        "assert main(app, ['--version']) == 0;"
        "print(sorted({'numpy', 'rich', 'asyncio', 'prometheus_client', 'sqlite3'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("line", ["points --help", "runs --help", "target check-config --help", "ca list --help"])
def test_a_command_imports_the_store_only_to_open_one(line: str) -> None:
    """The options of every program are read by every command; what they configure is not loaded for it."""
    program = (
        "import sys; from drengine.terminal import main; from drengine.cli.main import app;"
        f"assert main(app, {line.split()}) == 0;"
        "print(sorted({'numpy', 'sqlite3', 'drengine.store.store', 'drengine.store.context'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


READING = ["points", "status", "verify latest", "pin latest", "unpin latest", "scrub", "rebuild", "branches"]
READING += ["export latest", "restore latest --to {tmp}/out.img"]
READING += ["runs --state {tmp}/state", "run show last --state {tmp}/state"]


@pytest.mark.parametrize("line", READING)
@pytest.mark.parametrize("store", ["missing", "a-file", "empty", "\udcff-not-utf8", "x" * 300])
def test_what_is_no_store_is_refused_and_nothing_is_made(
    line: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").write_text("hello")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = line.format(tmp=tmp_path).split()
    code = main(app, [*words, "--store", str(tmp_path / store)])
    told = capsys.readouterr().err
    assert 10 <= code < 125, told
    assert len(told.splitlines()) == 2, told
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("point", ["", " ", "before:", "before:9999999", "label:", "a\x1b[2J", "x" * 300])
def test_what_names_no_point_is_refused(point: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from drengine.store.store import Store

    Store.create(tmp_path / "store").close()
    code = main(app, ["verify", "--store", str(tmp_path / "store"), "--", point])
    told = capsys.readouterr().err
    assert code == 11, told
    assert "[bad-point]" in told


@pytest.mark.parametrize("point", ["nonsense", "0-0", "1-" + "9" * 40, "../../etc"])
def test_what_is_no_points_label_is_told_so(point: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "store")
    code = main(app, ["verify", "--store", str(tmp_path / "store"), "--", point])
    told = capsys.readouterr().err
    assert code == 41, told
    assert "[unknown-point]" in told
