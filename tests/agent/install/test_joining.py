"""Three servers join a site by the lines of one inventory; the field trial `twenty_joins` does it with twenty."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.agent.install.joining import OUTPOST, site, states
from tests.agent.install.onefile import build_here

TOOLS = ("unshare", "nsenter", "losetup", "mkfs.ext4", "ip", "ss")
missing = [name for name in TOOLS if shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") is None]
pytestmark = [
    pytest.mark.machine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices, namespaces, BPF"),
    pytest.mark.skipif(bool(missing), reason=f"missing: {', '.join(missing)}"),
]


def test_a_line_that_can_not_work_says_why_and_leaves_nothing_and_the_right_one_goes_on(tmp_path: Path) -> None:
    agent = build_here(tmp_path / "drengine-agent")
    with site(tmp_path, agent, 1) as made:
        (server,) = made.servers
        made.write_lines()
        line = (tmp_path / f"lines/{server.name}.sh").read_text()

        code, said = server.typed(line.replace("10.82.0.0/16", "10.99.0.0/16"))
        assert code == 90 and "outside the data networks" in said and "data_networks" in said
        assert server.left() == []
        code, said = server.typed(line.replace(f"--source {server.name}", "--source another"))
        assert code == 5 and "(token-name)" in said
        assert server.left() == []
        code, said = server.typed(
            line.replace(f"data={server.disk}", f"data={server.disk} --volume twice={server.disk}")
        )
        assert code == 90 and "its bytes are also in volume" in said
        assert server.left() == []

        code, said = server.typed(
            line.replace(f"{OUTPOST}:7440", f"{OUTPOST}:7441").replace("--yes", "--yes --wait 1s")
        )
        assert code == 166 and "[session-missing]" in said and "The certificate is kept" in said
        assert {name.split("/")[3] for name in server.left() if name.count("/") > 2} == {"identity"}
        server.type_line(tmp_path / f"lines/{server.name}.sh")
        assert server.standing()["state"] == "CONTINUOUS"

        words = ("--name", "r1", "--recovery-host", "--broker", f"{OUTPOST}:8883", "--data-network", "10.82.0.0/16")
        code, said = server.typed(made.drengine("join-command", *words))
        assert (code, server.there.run("systemctl", "is-active", "drengine-standby").stdout) == (0, "active\n"), said

        code, said = server.typed(line.replace("--yes", "--yes --metrics 127.0.0.1:9441"))
        assert (code, server.standing()["state"]) == (0, "CONTINUOUS"), said
        assert b'metrics = "127.0.0.1:9441"' in b"".join(server.files().values())


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
        assert made.servers[0].left() == []
