"""The configuration files of both programs: examples that load, mistakes that are named before anything starts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from drengine.cli.main import app
from drengine.config import example
from drengine.target.config import TargetConfig, load_target_config
from drengine.terminal import main
from drengine.transport.errors import BAD_TLS_FILES
from drengine.transport.files import TlsFiles
from drengine_agent.cli.main import commands as agent_app
from drengine_agent.config import AgentConfig, load_config
from drengine_agent.standby.config import load_standby_config
from tests.transport.certificates import Authority


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


def test_a_recovery_hosts_example_is_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(agent_app, ["standby", "example-config"]) == 0
    path = tmp_path / "standby.toml"
    path.write_text(capsys.readouterr().out)
    assert load_standby_config(path).name == "recovery-1"
    assert main(agent_app, ["standby", "check-config", "--config", str(path)]) == 0
    path.write_text(path.read_text().replace("address =", "# address ="))
    assert main(agent_app, ["standby", "check-config", "--config", str(path)]) == 50
    assert "control.address" in capsys.readouterr().err


def test_a_recovery_host_says_which_programs_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("drengine_agent.standby.programs._PATH", str(tmp_path))
    path = tmp_path / "standby.toml"
    path.write_text(STANDBY + '[control]\naddress = "127.0.0.1:1"\n')
    assert main(agent_app, ["standby", "check-config", "--config", str(path), "--json"]) == 0
    assert "apt install libnbd-bin" in json.loads(capsys.readouterr().out)["missing"]["nbdfuse"]


@pytest.mark.parametrize("cls", [TargetConfig, AgentConfig])
def test_every_default_is_written_in_the_example_as_it_would_be_read(cls: type, tmp_path: Path) -> None:
    text = re.sub(r"^# ([a-z_]+ = (?!\"\"$).*|\[\[[a-z_.]+\]\])$", r"\1", example(cls), flags=re.MULTILINE)
    assert text != example(cls)
    path = tmp_path / "all.toml"
    path.write_text(text)
    plain = tmp_path / "plain.toml"
    plain.write_text(example(cls))
    if cls is TargetConfig:
        loaded = load_target_config(path, {})
        assert replace(loaded, quota=()) == load_target_config(plain, {})
        assert [each.source for each in loaded.quota] == ["shop"], "of this there is none by default"
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


AGENT = """source = "shop"
target = "127.0.0.1:7440"
[[volume]]
name = "data"
path = "/dev/vdb"
"""
CHECK_STANDBY = ["standby", "check-config", "--config"]
STANDBY = 'name = "recovery-1"\n'
PROGRAMS = {
    "target": (app, ["target", "check-config"], 'store = "/x"\n', "tls"),
    "agent": (agent_app, ["check-config", "--config"], AGENT, "tls"),
    "agent's broker": (agent_app, ["check-config", "--config"], AGENT, "control"),
    "standby": (agent_app, CHECK_STANDBY, f'{STANDBY}control.address = "127.0.0.1:1883"\n', "tls"),
    "standby's broker": (agent_app, CHECK_STANDBY, f'{STANDBY}[control]\naddress = "127.0.0.1:1883"\n', ""),
    "orchestrator": (app, ["orchestrator", "check-config"], 'store = "/x"\nstate = "/y"\n', "broker"),
}


def headed(name: str) -> str:
    """Nothing for the section that the text ends with."""
    return f"[{name}]\n" if name else ""


def section(name: str, files: TlsFiles) -> str:
    return (
        f'{f"[{name}]" if name else ""}\ncertificate = "{files.certificate}"\nkey = "{files.key}"\nca = "{files.ca}"\n'
    )


@pytest.mark.fault(75)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("days", "exit_code", "said"),
    [((-1, 1), 0, "valid until"), ((-9, -1), BAD_TLS_FILES.exit_code, "expired"), ((1, 9), 22, "not valid yet")],
)
def test_certificates_are_read_and_judged(
    program: str,
    days: tuple[float, float],
    exit_code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli, command, text, name = PROGRAMS[program]
    path = tmp_path / "config.toml"
    path.write_text(text + section(name, Authority.make(tmp_path / "ca").issue("us", days=days)))
    assert main(cli, [*command, str(path)]) == exit_code
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert ("hint" in told.err) == bool(exit_code)


@pytest.mark.fault(75)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_certificate_of_another_ca_is_doubted_and_not_refused(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli, command, text, name = PROGRAMS[program]
    files = Authority.make(tmp_path / "other", "other").issue("us")
    path = tmp_path / "config.toml"
    path.write_text(text + section(name, replace(files, ca=Authority.make(tmp_path / "ca").path)))
    assert main(cli, [*command, str(path)]) == 0
    told = capsys.readouterr().out
    assert "warning" in told and "[tls-own-issuer]" in told and "hint" in told


@pytest.mark.fault(75)
def test_what_certificates_say_is_there_for_programs_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text(AGENT + section("tls", Authority.make(tmp_path / "ca").issue("shop")))
    assert main(agent_app, ["check-config", "--config", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["certificates"]["tls"]
    assert (found["subject"], found["names"], found["doubts"]) == ("shop", ["127.0.0.1"], [])


@pytest.mark.parametrize("program", PROGRAMS)
def test_certificate_key_and_ca_are_asked_for_together(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli, command, text, name = PROGRAMS[program]
    path = tmp_path / "config.toml"
    path.write_text(f'{text}{headed(name)}key = "/k"\n')
    assert main(cli, [*command, str(path)]) == 50
    assert f"[{name or 'control'}] needs certificate, key and ca together" in capsys.readouterr().err


def test_an_endless_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(app, ["target", "check-config", "/dev/zero"]) == 50
    assert "larger than" in capsys.readouterr().err
