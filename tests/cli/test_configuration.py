"""The configuration files of both programs: examples that load, mistakes that are named before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drengine.cli.main import app
from drengine.config import example
from drengine.target.config import TargetConfig, load_target_config
from drengine.terminal import main
from drengine_agent.cli.main import commands as agent_app
from drengine_agent.config import AgentConfig, load_config


def test_the_targets_example_is_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(app, ["target", "example-config"]) == 0
    path = tmp_path / "target.toml"
    path.write_text(capsys.readouterr().out)
    assert load_target_config(path, {}) == load_target_config(None, {"store": "/var/lib/drengine/store"})
    assert main(app, ["target", "check-config", str(path)]) == 0


def test_the_agents_example_is_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(agent_app, ["example-config"]) == 0
    path = tmp_path / "agent.toml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path).source == "shop"
    assert main(agent_app, ["check-config", "--config", str(path)]) == 0


@pytest.mark.parametrize("cls", [TargetConfig, AgentConfig])
def test_every_default_is_written_in_the_example_as_it_would_be_read(cls: type, tmp_path: Path) -> None:
    text = re.sub(r"^# ([a-z_]+ = (?!\"\"$).*)$", r"\1", example(cls), flags=re.MULTILINE)
    assert text != example(cls)
    path = tmp_path / "all.toml"
    path.write_text(text)
    plain = tmp_path / "plain.toml"
    plain.write_text(example(cls))
    if cls is TargetConfig:
        assert load_target_config(path, {}) == load_target_config(plain, {})
    else:
        assert load_config(path) == load_config(plain)


MISTAKES = {
    "no toml": "listen = ",
    "unknown": 'store = "/x"\nlissten = "127.0.0.1:1"',
    "nested too deep": "a = " + "[" * 5000,
    "a number without end": "a = " + "9" * 5000,
    "a size without end": 'store = "/x"\nmemory_budget = "' + "9" * 400 + 'TiB"',
    "a duration without end": 'store = "/x"\nstop_seconds = "' + "9" * 400 + 'w"',
    "half a tls": 'store = "/x"\n[tls]\nkey = "k"',
    "a certificate that is not there": 'store = "/x"\n[tls]\nkey = "/k"\ncertificate = "/c"\nca = "/a"',
}


@pytest.mark.parametrize("text", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_the_targets_file_is_one_line_with_an_id(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "target.toml"
    path.write_text(text)
    code = main(app, ["target", "check-config", str(path)])
    told = capsys.readouterr().err
    assert 10 <= code < 125, told
    assert len(told.splitlines()) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_an_endless_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(app, ["target", "check-config", "/dev/zero"]) == 50
    assert "larger than" in capsys.readouterr().err
