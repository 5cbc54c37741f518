"""The whole story on a host of its own: one file, three commands, a live disk protected, upgraded, and nothing left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.agent.install.host import host
from tests.agent.install.live import (
    Target,
    facts,
    journal,
    log,
    mounted,
    newest_has,
    ours,
    pins,
    standing,
    wait_for,
    write,
)
from tests.agent.install.onefile import build_here

TOOLS = ("unshare", "nsenter", "losetup", "mkfs.ext4", "e2fsck", "debugfs")
missing = [name for name in TOOLS if shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") is None]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices, namespaces, BPF"),
    pytest.mark.skipif(bool(missing), reason=f"missing: {', '.join(missing)}"),
]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_here(tmp_path_factory.mktemp("onefile") / "drengine-agent")


def test_three_commands_protect_a_live_disk_and_one_leaves_nothing(
    agent: Path, disk: Path, target: Target, tmp_path: Path
) -> None:
    with host(tmp_path / "host") as there, mounted(there, disk) as data:
        shutil.copy(agent, there.root / "root/drengine-agent")
        before, pins_before = there.written(), pins(there)

        words = ["--source", "shop", "--target", target.address, "--volume", f"data={disk}"]
        shown = there.run("./drengine-agent", "install", *words, "--dry-run")
        assert "write   /etc/drengine/agent.toml" in shown.stdout
        done = there.run("./drengine-agent", "install", *words, "--yes")
        assert "This host can be protected with tracker ebpf." in done.stdout
        assert "systemd is not running here" in done.stdout
        service = there.start("drengine-agent", "run")
        write(data, "first")
        wait_for("a point", newest_has(target, "first", tmp_path / "restored"), show=lambda: log(there))
        assert {point.kind for point in target.points()} <= {"quiet", "frozen", "application"}
        assert standing(there)["state"] == "CONTINUOUS"

        there.run("pkill", "-TERM", "-f", "drengine-agent run")
        service.wait(30)
        write(data, "second")
        seen = standing(there)
        assert (seen["running"], seen["tracking"]["whole"]) == (False, True)
        assert seen["tracking"]["active_blocks"] > 0, "the kernel tracks on while no agent runs"

        again = there.run("./drengine-agent", "install", "--yes")
        assert "write   /" not in again.stdout
        there.run("./drengine-agent", "uninstall", "--yes")
        after = {name: fact for name, fact in there.written().items() if not name.startswith("tmp:data/")}
        assert after == {name: fact for name, fact in before.items() if not name.startswith("tmp:data/")} | {
            "tmp:started.log": after["tmp:started.log"]
        }
        assert pins(there) == pins_before


def test_systemd_runs_it_hardened_through_upgrade_and_kill_and_uninstall_leaves_nothing(
    agent: Path, disk: Path, target: Target, tmp_path: Path
) -> None:
    newer = build_here(tmp_path / "newer", extra={"common/drengine_agent/newer.py": b""})
    with host(tmp_path / "host", systemd=True) as there, mounted(there, disk) as data:
        shutil.copy(agent, there.root / "root/drengine-agent")
        shutil.copy(newer, there.root / "root/newer")
        before, pins_before = ours(there), pins(there)

        words = ["--source", "shop", "--target", target.address, "--volume", f"data={disk}"]
        there.run("./drengine-agent", "install", *words, "--yes")
        assert there.run("systemctl", "is-active", "drengine-agent").stdout == "active\n"
        assert there.run("systemctl", "is-enabled", "drengine-agent").stdout == "enabled\n"
        write(data, "first")
        wait_for("a point", newest_has(target, "first", tmp_path / "restored"), show=lambda: journal(there))
        epoch = facts(there)["epoch"]

        there.run("./newer", "upgrade", "--yes")
        assert there.run("cmp", "/root/newer", "/usr/local/lib/drengine/drengine-agent").returncode == 0
        write(data, "second")
        wait_for("a point", newest_has(target, "second", tmp_path / "restored"), show=lambda: journal(there))
        assert facts(there)["epoch"] == epoch, "tracking went on through the upgrade"

        process = there.run("systemctl", "show", "--property=MainPID", "--value", "drengine-agent").stdout.strip()
        there.run("kill", "-KILL", process)
        write(data, "third")
        wait_for("a point", newest_has(target, "third", tmp_path / "restored"), show=lambda: journal(there))
        assert facts(there)["epoch"] == epoch, "tracking went on through the kill"

        there.run("drengine-agent", "uninstall", "--yes")
        assert there.run("systemctl", "is-active", "drengine-agent", check=False).stdout == "inactive\n"
        assert ours(there) == before
        assert pins(there) == pins_before
