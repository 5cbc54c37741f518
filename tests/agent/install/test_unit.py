"""The unit for systemd: valid, hardened, and with what tracking and freezing take."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import drengine_agent.cli.tracking
import drengine_agent.daemon.main
from drengine.model.errors import error_kinds
from drengine_agent.install.places import RUNTIME
from drengine_agent.install.unit import unit_text

ROOT = Path(__file__).parents[3]
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt systemd"
)
UNITS = {
    "usual": unit_text(command="/bin/true"),
    "one disk": unit_text(command="/bin/true", state_directory=RUNTIME / "state"),
    "tap": unit_text(command="/bin/true", writes_volumes=[Path("/srv/disks/a.img"), Path("/dev/vdb")]),
    "elsewhere": unit_text(command="/bin/true", state_directory=Path("/srv/agent")),
}


def test_the_unit_in_the_repository_is_the_one_that_is_installed() -> None:
    assert (ROOT / "deploy/systemd/drengine-agent.service").read_text() == unit_text()


@needs_analyze
@pytest.mark.parametrize("text", UNITS.values(), ids=UNITS.keys())
def test_systemd_finds_nothing_to_say_about_the_unit(text: str, tmp_path: Path) -> None:
    unit = tmp_path / "drengine-agent.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in done.stderr.splitlines() if "drengine-agent" in line]
    assert (done.returncode, said) == (0, []), done.stderr


@needs_analyze
def test_a_mistake_in_the_unit_would_be_found(tmp_path: Path) -> None:
    unit = tmp_path / "drengine-agent.service"
    unit.write_text(UNITS["usual"].replace("KillMode=process", "KillMode=none-of-them"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "kill mode" in done.stderr.lower()


@needs_analyze
def test_the_unit_is_exposed_no_more_than_its_work_needs(tmp_path: Path) -> None:
    """systemd's own measure, 0 to 10: a plain service has 9.6; root with CAP_SYS_ADMIN and disks can't have 2."""
    unit = tmp_path / "drengine-agent.service"
    unit.write_text(UNITS["usual"])
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "offline" in done.stderr:
        pytest.skip("this systemd-analyze can't judge a unit offline")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= 6.0


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z]\w+=", line))


def test_what_tracking_and_freezing_take_is_left_to_it() -> None:
    found = settings(unit_text())
    assert {"CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH", "CAP_IPC_LOCK"} <= {
        *found["CapabilityBoundingSet"].split()
    }
    assert found["LimitMEMLOCK"] == "infinity"
    assert found["KillMode"] == "process", "the process that thaws must outlive an agent that is killed"
    assert "/sys/fs/bpf" in found["ReadWritePaths"]
    assert found["DeviceAllow"] == "block-* r"
    for hiding in ("PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers", "InaccessiblePaths"):
        assert hiding not in found, f"{hiding} would hide file systems or devices from the agent"


def test_only_the_tap_may_write_to_volumes() -> None:
    found = settings(UNITS["tap"])
    assert found["DeviceAllow"] == "block-* rw"
    assert found["ReadWritePaths"] == "-/sys/fs/bpf /srv/disks/a.img"


def test_state_in_memory_outlives_a_restart() -> None:
    found = settings(UNITS["one disk"])
    assert found["RuntimeDirectoryPreserve"] == "yes"
    assert "StateDirectory" not in found


def test_the_exit_codes_that_a_restart_can_t_help_exist() -> None:
    assert drengine_agent.daemon.main and drengine_agent.cli.tracking, "they register what the service can end with"
    known = {kind.exit_code: kind for kind in error_kinds()}
    for code in map(int, settings(unit_text())["RestartPreventExitStatus"].split()):
        assert code in known
        assert not known[code].retryable or known[code].id == "volume-missing"
