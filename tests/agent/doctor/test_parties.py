"""Whether target, broker and authority would have to do with this agent is known before anything is installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.config import Address
from drengine.control.broker import embedded_broker
from drengine.identity.names import Identity, Role
from drengine.model.errors import DrengineError
from drengine.store.store import Store
from drengine.transport.files import TlsFiles
from drengine_agent.config import AgentConfig, parse_config
from drengine_agent.daemon.trial import try_broker
from drengine_agent.doctor import parties
from drengine_agent.doctor.examine import Asked, examine
from drengine_agent.doctor.facts import Reach
from drengine_agent.doctor.judge import Finding, Level
from drengine_agent.doctor.parties import certificate_troubles, reached, reached_before_enrolling
from drengine_agent.install.configuration import configuration_text
from tests.control.identities import SHOP, Site
from tests.control.site import free_port
from tests.enrolment.site import serving

ROOT = Path(__file__).parents[3]
OUTPOST = Identity("main", Role.TARGET, "outpost")
OLDER = "import drengine.wire.connection as c; c.VERSION_MIN = c.VERSION_MAX = 0; "
RUN = "import runpy; runpy.run_module('drengine.cli.main', run_name='__main__')"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.make(tmp_path)


@contextlib.contextmanager
def target(site: Site, *, before: str = "") -> Iterator[int]:
    """A target with TLS, as a process of its own."""
    port = free_port()
    store = site.folder / "store"
    Store.create(store).close()
    files = site.files(OUTPOST)
    tls = {"certificate": str(files.certificate), "key": str(files.key), "ca": str(files.ca), "identities": "required"}
    config = site.folder / "target.toml"
    lines = [f'store = "{store}"', f'listen = "127.0.0.1:{port}"', "[tls]", *(f'{k} = "{v}"' for k, v in tls.items())]
    config.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-c", before + RUN, "target", "run", "--config", str(config)]
    with (site.folder / "target.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None and time.monotonic() < until, (site.folder / "target.log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def config_of(site: Site, port: int, files: TlsFiles | None, *, broker: int = 0, **more: Any) -> AgentConfig:
    """An agent's configuration."""
    named = {"certificate": str(files.certificate), "key": str(files.key), "ca": str(files.ca)} if files else {}
    tls = {"tls": named} if files else {}
    control = {"control": {"address": f"127.0.0.1:{broker}", **named}} if broker else {}
    volume = [{"name": "data", "path": str(site.folder / "disk")}]
    values = {"source": "shop", "target": f"127.0.0.1:{port}", "state_directory": str(site.folder / "state")}
    (site.folder / "disk").write_bytes(bytes(1 << 20))
    return parse_config({**values, **tls, **control, "volume": volume, **more})


def finding(config: AgentConfig, id: str) -> Finding:
    _, report = examine(Asked.of(config, tracker="scan"))
    (found,) = (each for each in report.findings if each.id == id)
    return found


def test_a_session_that_would_work_is_said_to_and_leaves_nothing(site: Site) -> None:
    with target(site) as port:
        (seen,) = reached(config_of(site, port, site.files(SHOP)))
        assert seen == Reach(f"127.0.0.1:{port}", tried="opens a session for this source")
    with Store.open(site.folder / "store", read_only=True) as store:
        assert store.sources() == []


def test_who_may_not_ship_as_this_source_is_told_so_by_the_target(site: Site) -> None:
    mill = site.files(Identity("main", Role.AGENT, "mill"))
    with target(site) as port:
        (seen,) = reached(config_of(site, port, mill))
    assert seen.refused and "identity-source" in seen.problem and seen.hint


def test_a_target_of_an_older_version_is_named(site: Site) -> None:
    with target(site, before=OLDER) as port:
        found = finding(config_of(site, port, site.files(SHOP)), "target")
    assert found.level is Level.FAIL
    assert "this target 0 to 0" in found.seen
    assert "same version" in found.hint or "ersion" in found.hint


def test_a_target_outside_the_data_networks_is_refused_and_a_silent_one_warned_of(site: Site) -> None:
    port = free_port()
    silent = finding(config_of(site, port, None), "target")
    assert (silent.level, f":{port}" in silent.seen) == (Level.WARN, True)
    outside = finding(config_of(site, port, site.files(SHOP), target="192.0.2.1:7440"), "target")
    assert outside.level is Level.FAIL and "data_networks" in outside.hint


@pytest.mark.parametrize(
    ("identity", "seen"),
    [
        (Identity("main", Role.AGENT, "mill"), "agent/mill"),
        (Identity("main", Role.HOST, "shop"), "host/shop"),
        (OUTPOST, "target/outpost"),
    ],
)
def test_a_certificate_for_another_host_or_role_is_refused_before_it_is_used(
    site: Site, identity: Identity, seen: str
) -> None:
    found = finding(config_of(site, free_port(), site.files(identity)), "certificate")
    assert found.level is Level.FAIL
    assert seen in found.seen or "tls-own-purpose" in found.seen or "server" in found.seen


def test_a_second_program_beside_a_packages_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packaged = tmp_path / "usr-bin-drengine-agent"
    monkeypatch.setattr(parties, "PACKAGED", packaged)
    monkeypatch.setattr(parties, "own_archive", lambda: tmp_path / "fetched")
    assert list(parties.program_troubles()) == []
    packaged.touch()
    (trouble,) = parties.program_troubles()
    assert (trouble.id, str(packaged) in trouble.hint) == ("package", True)
    monkeypatch.setattr(parties, "own_archive", lambda: None)
    assert list(parties.program_troubles()) == [], "it is the package's own, which takes over"


def test_files_that_are_no_pair_are_told(site: Site) -> None:
    shop, mill = site.files(SHOP), site.files(Identity("main", Role.AGENT, "mill"))
    mixed = TlsFiles(shop.certificate, mill.key, shop.ca)
    (trouble,) = certificate_troubles(config_of(site, 1, mixed))
    assert trouble.hint


async def test_a_broker_that_knows_another_ca_is_told_from_one_that_is_down(site: Site, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Site.make(tmp_path / "other")
    port = free_port()
    ours, theirs = site.files(SHOP), other.files(SHOP)
    broker = site.files(Identity("main", Role.BROKER, "broker"))
    async with embedded_broker(Address("127.0.0.1", port), site="main", files=broker):
        await try_broker(config_of(site, 1, ours, broker=port))
        stranger = TlsFiles(theirs.certificate, theirs.key, ours.ca)
        with pytest.raises(DrengineError) as refused:
            await try_broker(config_of(site, 1, stranger, broker=port))
        assert refused.value.kind.id == "broker-refused"
    with pytest.raises(DrengineError) as silent:
        await try_broker(config_of(site, 1, ours, broker=port))
    assert silent.value.kind.id == "broker-unreachable"


async def test_a_token_of_another_ca_is_found_out_before_it_is_shown(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    async with serving(tmp_path / "one") as one, serving(tmp_path / "other") as other:
        config = config_of(Site(tmp_path, one.authority), free_port(), None)
        wrong = one.invitation()
        moved = type(wrong)(other.address, wrong.pin, wrong.id, wrong.secret)
        seen = await asyncio.to_thread(lambda: [*reached_before_enrolling(moved, config)])
        assert (seen[0].role, seen[0].refused, "pin-mismatch" in seen[0].problem) == ("authority", True, True)
        good = await asyncio.to_thread(lambda: [*reached_before_enrolling(wrong, config)])
        assert (good[0].problem, good[1].refused) == ("", False)


def test_values_are_written_so_that_they_are_read_again() -> None:
    odd = 'a "quoted" \\ path with ü'
    values = {"source": "shop", "target": "127.0.0.1:1", "state_directory": odd, "data_networks": ["192.0.2.0/24"]}
    more = {"tls": {}, "cuts": {"kinds": "quiet", "hook_before": ["a", "b c"]}, "volume": [{"name": "x", "path": odd}]}
    config = parse_config({**values, **more})
    assert parse_config(tomllib.loads(configuration_text({**values, **more}))) == config
