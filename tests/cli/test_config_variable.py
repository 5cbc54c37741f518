"""DRENGINE_CONFIG serves every command: a target's file, an orchestrator's, or the folder of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.config.chosen import CONFIG_VARIABLE
from drengine.store.store import Store
from drengine.terminal import main
from tests.hints.words import COMMANDS

WITHOUT = {
    "target example-config", "orchestrator example-config", "runbook schema",  # print what is the same everywhere
    "launch-policy",
    "store create", "store join", "mirror",  # of places that are typed: no file decides what is made or copied where
    "hydrate", "enrol", "keys generate", "broker run", "broker config", "broker follow",  # of hosts that have neither
}  # fmt: skip
OURS = {" ".join(words[1:]): command for words, command in COMMANDS.items() if words[0] == "drengine"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both files, and the store that they name."""
    Store.create(tmp_path / "store").close()
    store = f'store = "{tmp_path}/store"\n'
    (tmp_path / "target.toml").write_text(store + 'listen = "127.0.0.1:7440"\n')
    (tmp_path / "orchestrator.toml").write_text(
        store + f'state = "{tmp_path}/state"\nexport = "127.0.0.1:1"\n[fleet]\nca = "{tmp_path}/ca"\n'
    )
    for name in ("DRENGINE_CA", "DRENGINE_STORE", "DRENGINE_STATE", "DRENGINE_EXPORT", "DRENGINE_URL", CONFIG_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _value(command: Any, name: str) -> Any:
    """What a parameter is when nothing is typed."""
    parameter = next(each for each in command.params if each.name == name)
    value, _ = parameter.handle_parse_result(command.context_class(command), {}, [])
    return value


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("chosen", [".", "target.toml", "orchestrator.toml"])
def test_a_command_finds_store_or_file(folder: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, name: str) -> None:
    command = OURS[name]
    names = {each.name for each in command.params}
    if name in WITHOUT:
        return
    monkeypatch.setenv(CONFIG_VARIABLE, str(folder / chosen))
    assert names & {"store", "config", "log", "ca"}, f"`drengine {name}` takes nothing from {CONFIG_VARIABLE}"
    if "config" in names:
        wanted = "target.toml" if name.startswith(("target ", "source ", "store ")) else "orchestrator.toml"
        assert _value(command, "config") == folder / wanted
    elif "store" in names:
        assert _value(command, "store") == folder / "store"
    if "ca" in names:
        assert _value(command, "ca") == folder / "ca"
    if "log" in names:
        assert _value(command, "log") in (folder / "store", folder / "state")


@pytest.mark.parametrize("chosen", ["target.toml", "orchestrator.toml"])
@pytest.mark.parametrize("words", [["status"], ["source", "list"], ["runs"], ["keys", "status"], ["target", "init"]])
def test_a_file_of_the_other_kind_alone_still_says_where_the_store_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chosen: str, words: list[str]
) -> None:
    other = {"target.toml": "orchestrator.toml", "orchestrator.toml": "target.toml"}[chosen]
    (folder / other).unlink()
    monkeypatch.setenv(CONFIG_VARIABLE, str(folder / chosen))
    monkeypatch.setenv("DRENGINE_STATE", str(folder / "state"))
    code = main(app, [*words, "--json"])
    told = capsys.readouterr()
    if words == ["target", "init"]:
        assert f"{folder}/store" in told.err, "it is there already, and is named"
    else:
        assert code == 0, told.err
        json.loads(told.out)


def test_what_is_typed_wins(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Store.create(folder / "another").close()
    monkeypatch.setenv(CONFIG_VARIABLE, str(folder))
    assert main(app, ["status", "--store", str(folder / "another"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == str(folder / "another")


@pytest.mark.parametrize("content", [None, "listen = ", "a = 1", 'store = "x"\nstoer = "y"'])
def test_a_file_that_is_wrong_or_missing_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = folder / "elsewhere" / "named.toml"
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    monkeypatch.setenv("DRENGINE_STATE", str(folder / "state"))
    for words in (["status"], ["runs"], ["target", "run"], ["orchestrator", "check-config"]):
        code = main(app, words)
        told = capsys.readouterr().err
        assert 0 < code < 125, (words, told)
        assert "Traceback" not in told
        assert str(path) in told or "store" in told or CONFIG_VARIABLE in told, (words, told)
