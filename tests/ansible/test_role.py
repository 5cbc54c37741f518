"""The role joins a host of its own, and a second run changes nothing. `make ansible` brings ansible-core and -lint.

Ansible goes by SSH; in its place stands a program that enters the host's namespaces.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.agent.install.joining import NETWORK, OUTPOST, Server, Site, site
from tests.agent.install.onefile import build_here

ROOT = Path(__file__).parents[2]
ROLES = ROOT / "deploy/ansible/roles"
TOOLS = Path(os.environ.get("DRENGINE_ANSIBLE", "/nonexistent"))
pytestmark = [
    pytest.mark.machine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices, namespaces, BPF"),
    pytest.mark.skipif(not TOOLS.is_dir(), reason="`make ansible` brings ansible-core first"),
]


def play(made: Site, server: Server, agent: Path, *words: str, **more: Any) -> dict[str, int]:
    """Run the role on a server; returns what Ansible counts."""
    folder = made.folder
    enter = server.there.command("sh", "-c")
    ssh = folder / "ssh"  # its last word is what shall be run there
    ssh.write_text(f'#!/bin/sh\nfor word; do :; done\nexec {" ".join(enter)} "$word"\n')
    ssh.chmod(0o755)
    values = {
        "drengine_agent_file": str(agent),
        "drengine_agent_target": f"{OUTPOST}:7440",
        "drengine_agent_data_networks": [NETWORK],
        "drengine_agent_broker": f"{OUTPOST}:8883",
        "drengine_agent_volumes": {"data": str(server.disk)},
        **more,
    }
    playbook = [{"hosts": "all", "gather_facts": False, "roles": ["drengine_agent"], "vars": values}]
    (folder / "play.yaml").write_text(json.dumps(playbook))
    (folder / "hosts").write_text(f"{server.name} ansible_python_interpreter=/usr/bin/python3 ansible_user=root\n")
    environment = {
        **os.environ,
        "ANSIBLE_ROLES_PATH": str(ROLES),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_REMOTE_TMP": "/root/.ansible",
        "ANSIBLE_SSH_EXECUTABLE": str(ssh),
        "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
        "PATH": f"{TOOLS}:{os.environ['PATH']}",
    }
    command = [TOOLS / "ansible-playbook", "-i", folder / "hosts", folder / "play.yaml", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    recap = done.stdout.splitlines()
    (line,) = (each for each in recap if each.startswith(server.name) and "changed=" in each)
    return {key: int(value) for key, value in (each.split("=") for each in line.split() if "=" in each)}


def test_a_second_run_changes_nothing_and_a_check_says_what_would(tmp_path: Path) -> None:
    agent = build_here(tmp_path / "drengine-agent")
    with site(tmp_path, agent, 1) as made:
        (server,) = made.servers
        token = made.drengine("token", "create", "--role", "agent", "--name", "server-*", "--uses", "40").strip()
        checked = play(made, server, agent, "--check", drengine_agent_token=token)
        assert (checked["changed"], server.files()) == (1, {})
        assert play(made, server, agent, drengine_agent_token=token)["changed"] == 1
        assert server.standing()["state"] == "CONTINUOUS"
        files, process = server.files(), server.process()
        again = play(made, server, agent)
        assert (again["changed"], again["failed"]) == (0, 0)
        assert play(made, server, agent, "--check")["changed"] == 0
        assert (server.files(), server.process()) == (files, process)
        assert not list((server.there.root / "tmp").glob("*drengine*"))
