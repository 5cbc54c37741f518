"""Three servers join a site by the lines of one inventory; the field trial `twenty_joins` does it with twenty."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.agent.install.joining import site, states
from tests.agent.install.onefile import build_here

TOOLS = ("unshare", "nsenter", "losetup", "mkfs.ext4", "ip", "ss")
missing = [name for name in TOOLS if shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") is None]
pytestmark = [
    pytest.mark.machine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices, namespaces, BPF"),
    pytest.mark.skipif(bool(missing), reason=f"missing: {', '.join(missing)}"),
]


def test_servers_join_by_one_line_each_and_typing_it_again_changes_nothing(tmp_path: Path) -> None:
    agent = build_here(tmp_path / "drengine-agent")
    with site(tmp_path, agent, 3) as made:
        told = made.write_lines()
        assert all(each["token_made"] for each in told)
        made.join()
        assert states(made.servers) == dict.fromkeys((each.name for each in made.servers), "CONTINUOUS")
        assert all(made.points().values()) and len(made.points()) == 3

        files, processes = [each.files() for each in made.servers], [each.process() for each in made.servers]
        assert not any(each["token_made"] for each in made.write_lines()), "who has joined needs no token"
        made.join()
        assert [each.files() for each in made.servers] == files
        assert [each.process() for each in made.servers] == processes, "no agent was restarted"
        first = made.servers[0].there
        assert b"10.82.0.1:8883" in files[0][str(first.root / "etc/drengine/agent.toml")]
        first.run("drengine-agent", "uninstall", "--yes")
        left = [name for name in first.written() if "drengine" in name and not name.startswith(("tmp:", "root:"))]
        assert left == []
