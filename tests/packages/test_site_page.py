"""docs/site.md is typed as it stands, on four hosts, from packages: authority, Outpost, recovery host, server.

Debian's own systemd, Mosquitto, PostgreSQL and Prometheus with their own configuration files; services under their own
users; nothing but what the page says, and what a site has anyway: a database, and a switch for its power.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.install.host import Host
from tests.agent.install.live import wait_for
from tests.docs.pages import blocks
from tests.packages.test_packages import PACKAGES
from tests.packages.test_packages import pytestmark as needs_packages
from tests.system.lan import lan, listening

pytestmark = [*needs_packages[:-1], pytest.mark.timeout(900)]

PAGE = "docs/site.md"
HOSTS = ("outpost", "shop", "recovery-1", "office")
DISK_BYTES = 400 << 20
AS_POSTGRES = ("runuser", "-u", "postgres", "--")
PROGRAMS = "/usr/lib/postgresql/15/bin"
SQL = (*AS_POSTGRES, "psql", "-h", "127.0.0.1", "-p", "5433", "-qtAc")
POWER = """#!/bin/sh
# the site's power switch: `off` is done by the test, before
exit 0
"""
TOKENS = {
    "target": "TARGET_TOKEN",
    "orchestrator": "ORCHESTRATOR_TOKEN",
    "broker": "BROKER_TOKEN",
    "host": "HOST_TOKEN",
}


class Reader:
    """Types the page's blocks in order, and fills in what earlier lines have printed."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self._hosts = hosts
        self._known: dict[str, str] = {}
        self._exported: dict[str, str] = {}
        self.lines = 0

    def type_block(self, text: str) -> str:
        """All lines of a block on its host; what the last one printed."""
        where, _, body = text.partition("\n")
        name = where.removeprefix("# on ").partition(",")[0]
        printed = ""
        for line in _lines(body):
            printed = self._type(name, line)
        return printed

    def _type(self, name: str, line: str) -> str:
        self.lines += 1
        if line.startswith("export "):
            self._exported[name] = f"{line}; "
            return ""
        typed = re.sub(r"\b(?:[A-Z]+_TOKEN|JOIN_LINE)\b", lambda found: self._known[found[0]], line)
        typed = typed.replace("./", "/root/", 1) if line.startswith("apt-get") else typed
        there = self._hosts[name]
        done = there.run("sh", "-c", self._exported.get(name, "") + typed, seconds=200, check=False)
        assert done.returncode == 0, f"{name}: {line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}{_journal(there)}"
        assert "Traceback" not in done.stderr, done.stderr
        role = re.search(r"token create .*--role (\w+)", line)
        if role:
            self._known[TOKENS[role[1]]] = done.stdout.strip()
        if "join-command" in line:
            self._known["JOIN_LINE"] = done.stdout.strip()
        return done.stdout


def _lines(body: str) -> Iterator[str]:
    """Commands; a here-document is one."""
    rows = iter(body.splitlines())
    for row in rows:
        if row.endswith("<<'END'"):
            content = [row]
            while content[-1] != "END":
                content.append(next(rows))
            yield "\n".join(content)
        elif row:
            yield row


def _journal(there: Host) -> str:
    return there.run("journalctl", "--no-pager", "-n", "40", check=False).stdout


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    with lan(tmp_path / "lan", HOSTS) as made:
        for name, there in made.items():
            pattern = "drengine-agent_*.deb" if name == "recovery-1" else "drengine_*.deb"
            for file in PACKAGES.glob(pattern) if name != "shop" else ():
                shutil.copy(file, there.root / "root" / file.name)
        power = made["outpost"].root / "usr/local/sbin/power"
        power.write_text(POWER, encoding="utf-8")
        power.chmod(0o755)
        with _database(made["shop"], tmp_path):
            yield made


@contextlib.contextmanager
def _database(there: Host, place: Path) -> Iterator[None]:
    """PostgreSQL on /dev/vdb of a server, as it was there before anybody thought of recovery."""
    image = place / "shop.img"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    device = made.stdout.strip()
    there.run("mknod", "/dev/vdb", "b", "7", str(os.minor(Path(device).stat().st_rdev)))
    there.run("mkdir", "/srv/shop")
    there.run("mount", "/dev/vdb", "/srv/shop")
    there.run("chown", "postgres:", "/srv/shop")
    there.run(*AS_POSTGRES, f"{PROGRAMS}/initdb", "-A", "trust", "-D", "/srv/shop/pg")
    with (there.root / "srv/shop/pg/postgresql.conf").open("a", encoding="utf-8") as file:
        file.write("port = 5433\nunix_socket_directories = ''\nshared_buffers = 16MB\n")
    there.run(*AS_POSTGRES, f"{PROGRAMS}/pg_ctl", "-w", "-D", "/srv/shop/pg", "-l", "/srv/shop/log", "start")
    there.run(*SQL, "CREATE TABLE orders (number int)")
    try:
        yield
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)


def test_a_site_is_made_protected_drilled_watched_and_failed_over_as_the_page_says(hosts: dict[str, Host]) -> None:
    reader = Reader(hosts)
    typed = [content for _, language, content in blocks(PAGE) if language == "sh"]
    *before, worst_day = typed
    for block in before:
        if block.startswith("# on office, with"):
            _carry_monitoring(hosts)
        reader.type_block(block)
        if block.startswith("# on shop"):
            hosts["shop"].run(*SQL, "INSERT INTO orders VALUES (1)")
    _nothing_listens_at_the_source(hosts["shop"])
    _prometheus_sees_everything(hosts["office"])
    hosts["shop"].run(*SQL, "INSERT INTO orders VALUES (2)")
    wait_for("the order's point", lambda: _fleet(hosts)[0]["lag_seconds"] == 0, show=lambda: str(_fleet(hosts)))
    hosts["shop"].close()
    reader.type_block(worst_day)
    assert hosts["recovery-1"].run(*SQL, "SELECT count(*) FROM orders").stdout.strip() == "2"
    print(f"{reader.lines} lines typed")


def _carry_monitoring(hosts: dict[str, Host]) -> None:
    """What a person does with scp."""
    shutil.copytree(hosts["outpost"].root / "root/monitoring", hosts["office"].root / "etc/prometheus/drengine")


def _nothing_listens_at_the_source(there: Host) -> None:
    assert listening(there) == []


def _fleet(hosts: dict[str, Host]) -> list[dict[str, object]]:
    done = hosts["outpost"].run("env", "DRENGINE_CONFIG=/etc/drengine", "drengine", "fleet", "--json")
    found: list[dict[str, object]] = json.loads(done.stdout)["sources"]
    return found


def _prometheus_sees_everything(office: Host) -> None:
    def up() -> dict[str, str]:
        asked = office.run("curl", "-s", "http://127.0.0.1:9090/api/v1/query?query=up", check=False).stdout
        found = json.loads(asked or "{}").get("data", {}).get("result", [])
        return {each["metric"].get("source") or each["metric"]["instance"]: each["value"][1] for each in found}

    wait_for(
        "all parts", lambda: "shop" in up() and set(up().values()) == {"1"}, show=lambda: f"{up()}{_journal(office)}"
    )
