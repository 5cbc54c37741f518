"""SIGHUP has daemons read again what can be read again, and ends none of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.site import environment, free_port, site, wait_for

pytestmark = [pytest.mark.timeout(120), pytest.mark.fault(75)]


def test_an_agent_takes_a_new_bandwidth_and_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(1 << 20))
    with site(tmp_path) as here:
        target = here.start_target()
        agent = here.start_agent(target, "shop", {"data": disk}, bandwidth="20MiB/s")
        wait_for("the session", lambda: agent.ask("status")["state"] == "CONTINUOUS", target, agent)
        path = tmp_path / "shop" / "agent.toml"
        path.write_text(path.read_text().replace("20MiB/s", "10MiB/s"))
        for _ in range(2):
            agent.popen.send_signal(signal.SIGHUP)
        wait_for(
            "the new limit",
            lambda: agent.ask("status")["bandwidth_limit_bytes_per_second"] == 10 << 20,
            target,
            agent,
        )
        path.write_text("not a configuration")
        agent.popen.send_signal(signal.SIGHUP)
        wait_for("a line", lambda: "not taken" in agent.log.read_text(), target, agent)
        assert agent.ask("status")["bandwidth_limit_bytes_per_second"] == 10 << 20


def test_a_recovery_host_goes_on(tmp_path: Path) -> None:
    config = tmp_path / "standby.toml"
    config.write_text(
        f'name = "spare"\nstate_directory = "{tmp_path}/state"\n[control]\naddress = "127.0.0.1:{free_port()}"\n'
    )
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "drengine_agent", "standby", "run", "--config", str(config)],
            stdout=output,
            stderr=output,
            env=environment(),
        )
    try:
        wait_for("the host", lambda: "is ready" in log.read_text() or process.poll() is not None)
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
