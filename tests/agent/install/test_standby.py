"""A recovery host is installed like an agent: the same plan at its own places; both share the program."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from drengine.model.errors import error_kinds
from drengine.terminal import main
from drengine_agent.cli.main import commands
from drengine_agent.install import standby
from drengine_agent.install.acts import Plan, Run
from drengine_agent.install.perform import perform
from drengine_agent.install.places import AGENT, CACHE, COMMAND, PROGRAM, STANDBY, Service, look, within
from drengine_agent.install.plan import Wanted, directories_of, plan_install, plan_uninstall
from drengine_agent.install.standby import StandbyWishes
from drengine_agent.install.standby_unit import standby_unit_text
from drengine_agent.standby.config import load_standby_config
from tests.agent.install.test_plan import image, tree
from tests.agent.install.test_unit import needs_analyze, settings
from tests.system.test_hang_up import free_port
from tools.documents import import_everything

__all__ = ["image"]
ROOT = Path(__file__).parents[3]
UNIT_FILES = ("drengine-standby", "drengine-broker", "drengine-target", "drengine-orchestrator", "drengine-authority")


def wanted(service: Service, version: str = "1") -> Wanted:
    source = "shop" if service is AGENT else ""
    name = service.name.encode()
    return Wanted(version, source, service.state, b"program " + version.encode(), name, name, service=service)


def install(root: Path, service: Service, version: str = "1") -> Plan:
    asked = wanted(service, version)
    plan = plan_install(asked, look(root, directories_of(asked), service))
    perform(plan, root, told=lambda line: None)
    return plan


def uninstall(root: Path, service: Service) -> Plan:
    plan = plan_uninstall(look(root, (service.state, service.runtime, CACHE), service), purge=False)
    perform(plan, root, told=lambda line: None)
    return plan


@pytest.mark.parametrize("first", [AGENT, STANDBY])
def test_the_program_stays_as_long_as_one_of_them_runs_it(image: Path, first: Service) -> None:
    second = STANDBY if first is AGENT else AGENT
    before = tree(image)
    install(image, first)
    alone = tree(image)
    install(image, second)
    assert within(image, first.config).read_bytes() != within(image, second.config).read_bytes()
    kept = uninstall(image, second)
    assert f"kept {PROGRAM}: {first.name} runs it" in kept.notes
    assert tree(image) == alone
    install(image, second)
    uninstall(image, first)
    assert within(image, PROGRAM).exists() and within(image, COMMAND).is_symlink()
    assert within(image, second.enabled).resolve() == within(image, second.unit).resolve()
    uninstall(image, second)
    assert tree(image) == before


def test_another_program_restarts_the_other_service_too(image: Path) -> None:
    install(image, AGENT)
    install(image, STANDBY)
    asked = wanted(STANDBY, "2")
    present = look(image, directories_of(asked), STANDBY)
    running = present.__class__(**{**vars(present), "systemd": "running", "image": False})
    runs = [act.arguments[1:] for act in plan_install(asked, running).acts if isinstance(act, Run)]
    assert runs == [
        ("try-restart", "drengine-agent.service"),
        ("daemon-reload",),
        ("restart", "drengine-standby.service"),
    ]


def test_what_is_wished_is_a_file_that_loads_and_what_is_not_said_stays(tmp_path: Path) -> None:
    tls = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "ca")}
    wishes = StandbyWishes("recovery-1", "outpost:8883", "north", ["10.0.0.0/24"], ["/srv"], tls)
    values = wishes.values({}, is_enrolled=False)
    path = tmp_path / "standby.toml"
    path.write_text(standby.toml_text(values))
    loaded = load_standby_config(path)
    assert (loaded.name, str(loaded.control.address), loaded.allow.roots) == ("recovery-1", "outpost:8883", ("/srv",))
    assert loaded.tls.files() == loaded.control.tls_files() is not None
    assert tomllib.loads(path.read_text()) == values
    assert StandbyWishes().values(values, is_enrolled=True) == values
    changed = StandbyWishes(broker="other:8883").values(values, is_enrolled=False)
    assert changed["control"] == {**values["control"], "address": "other:8883"} and changed["tls"] == values["tls"]
    enrolled = StandbyWishes("recovery-1", "outpost:8883").values({}, is_enrolled=True)
    assert enrolled["control"]["key"] == enrolled["tls"]["key"] == "/var/lib/drengine-standby/identity/key.pem"


def test_the_commands_install_into_an_image_twice_and_leave_nothing(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--name", "recovery-1", "--broker", "127.0.0.1:1883", "--mount-root", "/srv", "--root", str(image)]
    before = tree(image)
    assert main(commands, ["standby", "install", *words, "--yes"]) == 0
    once = tree(image)
    assert load_standby_config(within(image, STANDBY.config)).name == "recovery-1"
    assert main(commands, ["standby", "install", *words, "--yes"]) == 0
    assert tree(image) == once
    instance = within(image, STANDBY.state) / "instances/run-shop"
    instance.mkdir(parents=True)
    assert main(commands, ["standby", "uninstall", "--root", str(image), "--yes"]) == 91
    assert "workloads are up on this host: run-shop" in capsys.readouterr().err
    instance.rmdir()
    assert main(commands, ["standby", "uninstall", "--root", str(image), "--yes"]) == 0
    assert tree(image) == before


def test_bad_input_installs_nothing(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(image)
    for words, code, said in (
        (["--name", "recovery-1"], 2, "--name and --broker are needed"),
        (["--name", "orchestrator", "--broker", "127.0.0.1:1883"], 50, "reserved"),
        (["--name", "recovery-1", "--broker", "broker.example:8883"], 50, "needs certificate, key and ca"),
        (["--name", "recovery-1", "--broker", "127.0.0.1:1883", "--data-network", "10.0.0.0/40"], 50, "10.0.0.0/40"),
        (["--name", "recovery-1", "--broker", "127.0.0.1:1883", "--mount-root", "srv"], 50, "is no absolute path"),
        (["--name", "recovery-1", "--broker", "127.0.0.1:1883", "--wait", "soon"], 2, "soon"),
    ):
        assert main(commands, ["standby", "install", "--root", str(image), "--yes", *words]) == code, words
        assert said in capsys.readouterr().err
    assert tree(image) == before


def test_a_broker_that_is_not_there_is_known_before_anything_is_written(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(standby, "HOST", image)  # as if it were this host
    monkeypatch.setattr("drengine_agent.install.places._systemd", lambda root: "installed")
    before = tree(image)
    words = ["--name", "recovery-1", "--broker", f"127.0.0.1:{free_port()}", "--wait", "0.1s", "--yes"]
    assert main(commands, ["standby", "install", "--root", str(image), *words]) == 94
    assert "broker-unreachable" in capsys.readouterr().err
    assert tree(image) == before


def test_a_host_that_can_attach_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("drengine_agent.standby.programs._PATH", str(tmp_path))
    words = ["--name", "recovery-1", "--broker", "127.0.0.1:1883", "--dry-run"]
    assert main(commands, ["standby", "install", *words]) == 92
    told = capsys.readouterr().err
    assert "nbdfuse is not here" in told and "apt install libnbd-bin fuse3" in told


def test_the_unit_in_the_repository_is_the_one_that_is_installed() -> None:
    assert (ROOT / "deploy/systemd/drengine-standby.service").read_text() == standby_unit_text()


@needs_analyze
@pytest.mark.parametrize("name", UNIT_FILES)
def test_systemd_finds_nothing_to_say_about_a_unit(name: str, tmp_path: Path) -> None:
    text = (ROOT / f"deploy/systemd/{name}.service").read_text()
    for program in ("/usr/local/lib/drengine/drengine-agent", "/usr/bin/drengine"):
        text = text.replace(f"ExecStart={program}", "ExecStart=/bin/true")
    unit = tmp_path / f"{name}.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if name in line]) == (0, []), done.stderr


def test_nothing_in_the_unit_keeps_its_mounts_from_the_host_or_ends_workloads() -> None:
    found = settings(standby_unit_text())
    assert found["KillMode"] == "process" and found["OOMPolicy"] == "continue"
    for hiding in (
        *("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateNetwork"),
        *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc"),
        *("ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "TemporaryFileSystem", "BindPaths", "RootDirectory"),
    ):
        assert hiding not in found, f"{hiding} brings a mount namespace: what is mounted would be nobody else's"
    assert {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"} <= {*found["CapabilityBoundingSet"].split()}


@pytest.mark.parametrize("name", UNIT_FILES)
def test_the_exit_codes_that_a_restart_can_t_help_exist(name: str) -> None:
    import_everything()
    known = {kind.exit_code for kind in error_kinds()} | {2}
    text = (ROOT / f"deploy/systemd/{name}.service").read_text()
    assert {*map(int, settings(text)["RestartPreventExitStatus"].split())} <= known
