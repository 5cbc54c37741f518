"""`drengine join-command`: a line that fetches the right agent and nothing else, tokens that are made once, and every
mistake of an inventory with its place.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drengine.cli.main import app
from drengine.identity.tokens import Invitation
from drengine.joining.line import SCRIPT, Line
from drengine.terminal import main
from tests.enrolment.site import Site, serving

AGENT = '#!/bin/sh\n# drengine-agent 9: one file\nprintf "%s\\n" "ran from $0" "$@" "token=$DRENGINE_TOKEN"\n'
INVENTORY = """\
defaults: {target: outpost.example:7440, data_networks: [192.0.2.0/24], broker: outpost.example:8883}
servers:
  shop-1:
  shop-2: {volumes: {data: /dev/vdb}, metrics: 0.0.0.0:9441}
"""
Typed = Callable[..., str]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An authority that hands out an agent which only says how it was called, in a thread of its own."""
    (tmp_path / "agent").write_text(AGENT)
    ready, stop, made = threading.Event(), asyncio.Event(), []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with serving(tmp_path, agent=tmp_path / "agent") as here:
            made.append(here)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(30)
    yield made[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    loop.close()


@pytest.fixture
def typed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    monkeypatch.setenv("DRENGINE_CA", str(tmp_path / "ca"))

    def type_(*words: str, code: int = 0) -> str:
        found = main(app, ["join-command", *words])
        told = capsys.readouterr()
        assert found == code, told.err
        return told.err if code else told.out

    return type_


def run(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False)


WISHES = ("--name", "shop", "--target", "192.0.2.7:7440", "--data-network", "192.0.2.0/24")


def test_the_line_fetches_the_agent_and_hands_it_what_the_server_is_told(site: Site, typed: Typed) -> None:
    line = typed(*WISHES, "--metrics", "0.0.0.0:9441", "--cuts", "quiet").strip()
    assert "\n" not in line
    done = run(line)
    assert (done.returncode, done.stderr) == (0, "")
    ran, *words, token = done.stdout.splitlines()
    assert not Path(ran.removeprefix("ran from ")).exists(), "nothing stays of the fetched file"
    assert words[:8] == [
        "install",
        "--yes",
        "--source",
        "shop",
        "--target",
        "192.0.2.7:7440",
        "--data-network",
        "192.0.2.0/24",
    ]
    assert " ".join(words[8:]) == "--all-disks --metrics 0.0.0.0:9441 --cuts quiet --tracker auto"
    invitation = Invitation.parse(token.removeprefix("token="))
    assert invitation.pin == site.authority.issuing.fingerprint
    known = {each.id: each for each in site.authority.index().tokens}[invitation.id]
    assert (known.role, known.name, known.uses) == ("agent", "shop", 1)


def test_another_ca_another_agent_and_nobody_are_each_refused_in_one_line(site: Site) -> None:
    pin, sha = site.authority.issuing.fingerprint.hex(), "00" * 32
    wrong = {
        "pin-mismatch": Line(site.address, "ab" * 32, sha, []),
        "agent-other": Line(site.address, pin, sha, []),
        "fetch-failed": Line(type(site.address)("127.0.0.1", 1), pin, sha, []),
    }
    for id, line in wrong.items():
        done = run(str(line))
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and f"[{id}]" in done.stderr, done.stderr


def test_the_script_is_one_that_a_shell_takes_whole() -> None:
    assert "'" not in SCRIPT and "\n" not in SCRIPT
    compile(SCRIPT, "line", "exec")


def test_an_inventory_gives_each_server_a_file_and_a_second_run_changes_nothing(
    site: Site, typed: Typed, tmp_path: Path
) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    words = ("--from", str(tmp_path / "inventory.yaml"), "--to", str(tmp_path / "lines"), "--json")
    dry = json.loads(typed(*words, "--dry-run"))
    assert [each["changed"] for each in dry] == [True, True] and not (tmp_path / "lines").exists()
    assert site.authority.index().tokens == ()
    typed(*words)
    first = {path.name: path.read_bytes() for path in (tmp_path / "lines").iterdir()}
    assert sorted(first) == ["shop-1.sh", "shop-2.sh"]
    assert (tmp_path / "lines/shop-1.sh").stat().st_mode & 0o777 == 0o600
    assert b"--volume data=/dev/vdb" in first["shop-2.sh"] and b"--all-disks" in first["shop-1.sh"]
    assert not any(each["changed"] for each in json.loads(typed(*words)))
    assert {path.name: path.read_bytes() for path in (tmp_path / "lines").iterdir()} == first
    assert len(site.authority.index().tokens) == 2


def test_a_server_that_has_joined_gets_a_line_without_a_token(site: Site, typed: Typed) -> None:
    asyncio.run(site.joined("shop"))
    (told,) = json.loads(typed(*WISHES, "--json"))
    assert (told["joined"], told["token_made"]) == (True, False)
    assert "DRENGINE_TOKEN" not in told["command"] and run(told["command"]).returncode == 0
    (told,) = json.loads(typed(*WISHES, "--replace", "--json"))
    assert (told["joined"], told["token_made"]) == (False, True)


def test_recovery_hosts_join_alike(site: Site, typed: Typed, tmp_path: Path) -> None:
    text = INVENTORY + "recovery_hosts:\n  r1: {mount_roots: [/srv, /mnt]}\n"
    (tmp_path / "inventory.yaml").write_text(text)
    told = json.loads(typed("--from", str(tmp_path / "inventory.yaml"), "--json"))
    assert [each["name"] for each in told] == ["shop-1", "shop-2", "r1"]
    words = run(told[-1]["command"]).stdout.splitlines()[1:-1]
    assert " ".join(words) == (
        "standby install --yes --name r1 --broker outpost.example:8883 --data-network 192.0.2.0/24 "
        "--mount-root /srv --mount-root /mnt"
    )
    assert site.authority.index().tokens[-1].role == "host"
    one = typed("--name", "r2", "--recovery-host", "--broker", "outpost.example:8883", "--json")
    assert "--name r2 --broker outpost.example:8883" in json.loads(one)[0]["command"]
    assert "[bad-config]" in typed("--name", "r2", "--recovery-host", code=50)


MISTAKES = {
    "not YAML": ("servers: [", "yaml-syntax"),
    "nothing": ("", "empty"),
    "no servers": ("defaults: {target: a:1}\n", "no-servers"),
    "an empty list": ("servers:\n", "no-servers"),
    "a list": ("servers: [shop]\n", "no-servers"),
    "an unknown key above": ("server: {}\nservers: {shop: {target: localhost:1}}\n", "unknown-key"),
    "an unknown key of a server": ("servers: {shop: {targt: localhost:1}}\n", "bad-config"),
    "no target": ("servers: {shop: {}}\n", "bad-config"),
    "no port": ("servers: {shop: {target: outpost}}\n", "bad-config"),
    "a name with a slash": ("servers: {a/b: {target: localhost:1}}\n", "bad-name"),
    "a reserved name": ("servers: {orchestrator: {target: localhost:1}}\n", "bad-name"),
    "a name twice": ("servers:\n  shop: {target: localhost:1}\n  shop: {target: localhost:1}\n", "duplicate-key"),
    "host bits": ("servers: {shop: {target: localhost:1, data_networks: [192.0.2.7/24]}}\n", "bad-config"),
    "no network": ("servers: {shop: {target: outpost.example:1}}\n", "bad-value"),
    "a target elsewhere": ("servers: {shop: {target: 192.0.2.7:1, data_networks: [10.0.0.0/8]}}\n", "bad-value"),
    "a disk twice": ("servers: {shop: {target: localhost:1, volumes: {a: /dev/vdb, b: /dev/vdb}}}\n", "bad-config"),
    "a disk's short name": ("servers: {shop: {target: localhost:1, volumes: {a: vdb}}}\n", "bad-config"),
    "cuts": ("servers: {shop: {target: localhost:1, cuts: fast}}\n", "bad-config"),
    "a unix broker": ("servers: {shop: {target: localhost:1, broker: 'unix:/x'}}\n", "bad-config"),
    "a host without a broker": ("recovery_hosts: {r1: {}}\n", "bad-config"),
    "a mount root that is none": ("recovery_hosts: {r1: {broker: a:1, mount_roots: [srv]}}\n", "bad-value"),
    "a server's key at a host": ("recovery_hosts: {r1: {broker: a:1, target: a:1}}\n", "bad-config"),
    "one name for two": ("servers: {a: {target: localhost:1}}\nrecovery_hosts: {a: {broker: a:1}}\n", "name-twice"),
    "a server that is text": ("servers: {shop: fast}\n", "bad-type"),
}


@pytest.mark.parametrize(("text", "id"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_of_an_inventory_is_named_and_no_token_is_made(
    text: str, id: str, site: Site, typed: Typed, tmp_path: Path
) -> None:
    (tmp_path / "inventory.yaml").write_text(text)
    said = typed("--from", str(tmp_path / "inventory.yaml"), code=168)
    assert "[bad-inventory]" in said and f"error {id}" in said and "Traceback" not in said
    assert "inventory.yaml:" in said
    assert site.authority.index().tokens == ()


def test_what_is_typed_wrong_is_refused(site: Site, typed: Typed, tmp_path: Path) -> None:
    assert "[bad-config]" in typed("--name", "shop", code=50)
    assert "--data-network" in typed("--name", "shop", "--target", "outpost.example:7440", code=168)
    assert "[bad-name]" in typed("--name", "../etc", "--target", "localhost:1", code=10)
    typed(code=2)
    typed("--from", str(tmp_path / "none"), code=168)
    (tmp_path / "ca/agent.json").unlink()
    assert "agent-missing" in typed("--name", "shop", "--target", "localhost:1", code=5)
    assert site.authority.index().tokens == ()
