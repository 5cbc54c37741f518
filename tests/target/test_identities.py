"""Who may ship and read what, by certificate: real ones, over real TLS, at the target's door and at the agent's."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from drengine.audit.verify import read_entries
from drengine.config import BAD_CONFIG
from drengine.model.errors import DrengineError
from drengine.model.grants import Access
from drengine.model.homes import Home
from drengine.model.points import PointSelector
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.store import Store
from drengine.target.config import TlsOptions, load_target_config
from drengine.transport.causes import CAUSES
from drengine.transport.endpoints import connect
from drengine.transport.files import TlsFiles
from drengine.transport.networks import DataNetworks
from drengine.transport.tls import client_context
from drengine.wire.events import ABILITIES, Hello, Purpose, Refuse
from tests.recovery.replica import make
from tests.target.agent import Site, running
from tests.target.test_certificates import reason, replicating, until
from tests.transport.certificates import Authority

pytestmark = pytest.mark.timeout(90)

WELCOME = "welcome"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca")


def options(files: TlsFiles, **more: str) -> TlsOptions:
    return TlsOptions(files.certificate, files.key, files.ca, **more)


def party(authority: Authority, identity: str) -> TlsFiles:
    """A certificate of a party, by its role and name or with its site."""
    uri = identity if ":" in identity else f"drengine://main/{identity}"
    return authority.issue("named", uris=(uri,), file=identity.replace("/", "-"))


def a_target(authority: Authority, identity: str = "target/outpost", **more: str) -> TlsOptions:
    return options(party(authority, identity), **more)


async def answered(site: Site, files: TlsFiles, source: str, purpose: Purpose = Purpose.REPLICATE) -> str:
    """What the target says to HELLO: the code of its refusal, or WELCOME."""
    stream = await connect(*site.address, networks=DataNetworks(), tls=client_context(files))
    try:
        await stream.send(Hello(2, 2, ABILITIES, source, b"i" * 16, 1, purpose, *PLACES[purpose]))
        answer = await stream.receive()
        return answer.code if isinstance(answer, Refuse) else WELCOME
    finally:
        stream.abort()


ALLOWED = {Purpose.REPLICATE: WELCOME, Purpose.PRESERVE: "grant-missing", Purpose.REVERSE: "grant-missing"}
"""What the store answers about a new source to whoever is let in."""
PLACES = {Purpose.REPLICATE: (0, 0), Purpose.PRESERVE: (9, 0), Purpose.REVERSE: (1, 7)}


@pytest.mark.parametrize("purpose", list(Purpose))
async def test_only_the_sources_own_agent_opens_a_session_whatever_it_is_for(
    tmp_path: Path, authority: Authority, purpose: Purpose
) -> None:
    async with running(tmp_path / "store", tls=a_target(authority)) as site:
        site.store.ensure_source("shop", generation=1)
        for identity, code in (
            ("agent/shop", ALLOWED[purpose]),
            ("agent/web", "identity-source"),
            ("host/shop", "identity-role"),
            ("target/shop", "identity-role"),
            ("broker/shop", "identity-role"),
            ("orchestrator/shop", "identity-role"),
            ("drengine://other/agent/shop", "identity-site"),
            ("drengine://main/agent/shop/x", "identity-malformed"),
            ("DRENGINE://main/agent/shop", "identity-malformed"),
        ):
            assert await answered(site, party(authority, identity), "shop", purpose) == code, identity
        two = authority.issue("two", uris=("drengine://main/agent/shop", "drengine://main/agent/web"))
        assert await answered(site, two, "shop", purpose) == "identity-malformed"
        assert await answered(site, authority.issue("shop"), "shop", purpose) == ALLOWED[purpose]


async def test_a_refusal_says_who_was_seen_and_is_counted_and_leaves_no_source(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with running(tmp_path / "store", tls=a_target(authority)) as site:
        assert await answered(site, party(authority, "agent/web"), "shop") == "identity-source"
        assert await answered(site, party(authority, "agent/web"), "shop") == "identity-source"
        await until(lambda: len([each for each in caplog.messages if "identity-source" in each]) == 2)
        assert "drengine://main/agent/web, source 'shop'" in caplog.messages[0]
        assert CAUSES["identity-source"].hint in caplog.messages[0]
        text = site.daemon.metrics.metrics.render().decode()
        assert 'target_peers_refused_total{reason="identity-source"} 2.0' in text
        assert site.store.sources() == []
        assert [state.name for state in site.daemon.sources.all()] == []


@pytest.mark.parametrize("purpose", list(Purpose))
async def test_who_was_refused_is_in_the_audit_log(tmp_path: Path, authority: Authority, purpose: Purpose) -> None:
    async with running(tmp_path / "store", tls=a_target(authority)) as site:
        site.store.ensure_source("shop", generation=1)
        for _ in range(5):
            assert await answered(site, party(authority, "agent/web"), "shop", purpose) == "identity-source"
        assert await answered(site, party(authority, "agent/shop"), "shop", purpose) == ALLOWED[purpose]
    told = [line.entry for line in read_entries(tmp_path / "store/audit")]
    assert told[0].did == "target.start"
    refused = [each for each in told if each.error == "identity-source"]
    assert {(each.who, each.proved, each.did, each.on, each.outcome) for each in refused} == {
        ("drengine://main/agent/web", "certificate", f"target.{purpose.name.lower()}", "shop", "refused")
    }
    assert sum(each.times for each in refused) == 5
    others = [(each.who, each.error) for each in told[1:] if each not in refused]
    missing = [("drengine://main/agent/shop", "grant-missing")]
    assert others == ([] if purpose is Purpose.REPLICATE else missing)


async def test_a_required_identity_turns_the_nameless_away(tmp_path: Path, authority: Authority) -> None:
    async with running(tmp_path / "store", tls=a_target(authority, identities="required")) as site:
        assert await answered(site, authority.issue("shop"), "shop") == "identity-missing"
        assert await answered(site, party(authority, "agent/shop"), "shop") == WELCOME


async def test_a_common_name_names_the_source_where_that_is_configured(tmp_path: Path, authority: Authority) -> None:
    tls = a_target(authority, identities="required", identity_map="cn")
    async with running(tmp_path / "store", tls=tls) as site:
        assert await answered(site, authority.issue("shop"), "shop") == WELCOME
        assert await answered(site, authority.issue("shop"), "web") == "identity-source"
        # A name of ours wins over the common name.
        named = authority.issue("web", uris=("drengine://main/agent/shop",))
        assert await answered(site, named, "web") == "identity-source"


async def test_a_target_without_a_name_asks_for_no_site(tmp_path: Path, authority: Authority) -> None:
    async with running(tmp_path / "store", tls=options(authority.issue("target"))) as site:
        assert await answered(site, party(authority, "drengine://any/agent/shop"), "shop") == WELCOME
        assert await answered(site, party(authority, "drengine://any/agent/shop"), "web") == "identity-source"


async def test_attack_any_certificate_of_the_ca_ships_as_any_source(tmp_path: Path, authority: Authority) -> None:
    """A whole agent, configured for another source than its certificate names, ships nothing."""
    async with running(tmp_path / "store", tls=a_target(authority)) as site:
        async with replicating(tmp_path, site.address, party(authority, "agent/other")) as agent:
            await until(lambda: "identity-source" in str(agent.status()["detail"]))
            assert site.store.sources() == []
        async with replicating(tmp_path, site.address, party(authority, "agent/server")) as agent:
            await until(lambda: reason(agent)[0] == "CONTINUOUS")
        assert [each.name for each in site.store.sources()] == ["server"]


@pytest.mark.parametrize("role", ["agent", "host", "orchestrator", "broker"])
async def test_attack_one_certificate_any_role(tmp_path: Path, authority: Authority, role: str) -> None:
    """A certificate that names the address and may serve is not taken for the target's: nothing goes there."""
    tls = a_target(authority, f"{role}/thief")
    async with (
        running(tmp_path / "store", tls=tls) as site,
        replicating(tmp_path, site.address, party(authority, "agent/server")) as agent,
    ):
        await until(lambda: reason(agent) == ("DISCONNECTED", "tls-failed"))
        status = agent.status()
        assert f"drengine://main/{role}/thief" in str(status["detail"])
        assert status["hint"] == CAUSES["identity-role"].hint
        assert site.store.sources() == []


async def test_an_agent_takes_a_target_of_its_own_site_only(tmp_path: Path, authority: Authority) -> None:
    async with (
        running(tmp_path / "store", tls=a_target(authority, "drengine://other/target/outpost")) as site,
        replicating(tmp_path, site.address, party(authority, "agent/server")) as agent,
    ):
        await until(lambda: reason(agent) == ("DISCONNECTED", "tls-failed"))
        assert agent.status()["hint"] == CAUSES["identity-site"].hint


def test_identities_are_not_required_of_whoever_can_not_prove_one(tmp_path: Path) -> None:
    path = tmp_path / "target.toml"
    for line in ('identities = "required"', 'identity_map = "cn"'):
        path.write_text(f'store = "/x"\n[tls]\n{line}\n')
        with pytest.raises(DrengineError) as refused:
            load_target_config(path, {})
        assert refused.value.kind is BAD_CONFIG


STRANGER = """
import asyncio, concurrent.futures.thread, encodings.idna, os, sys
from tests.target.agent import Refused, join

async def main():
    os.setgid(65534)
    os.setuid(65534)
    try:
        await join(("127.0.0.1", int(sys.argv[1])))
    except Refused as refused:
        print(refused.code, end="")
    else:
        print("let in", end="")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("options", "answer"),
    [({}, "local-stranger"), ({"agent_users": ("nobody",)}, "let in"), ({"allow_plain": True}, "let in")],
)
async def test_another_local_user_ships_nothing_over_loopback(
    tmp_path: Path, options: dict[str, object], answer: str
) -> None:
    """Any local user could ship as any source, and read any: an address on loopback says nothing of who is there."""
    async with running(tmp_path / "store", **options) as site:
        words = [sys.executable, "-c", STRANGER, str(site.address[1])]
        said = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=60, check=True)
        assert said.stdout == answer


async def test_a_source_is_shipped_from_where_it_lives_and_its_old_host_is_refused_for_good(
    tmp_path: Path, authority: Authority
) -> None:
    """A run moves it, in the promotion's own transaction; before that, a grant lets the new host read and no more."""
    make(tmp_path / "store")
    async with running(tmp_path / "store", tls=a_target(authority, identities="required")) as site:
        old, new, third = (party(authority, f"agent/{name}") for name in ("shop", "shop2", "web"))
        point = site.store.find_point("shop", PointSelector())
        assert await answered(site, new, "shop") == "identity-source"
        site.store.grants.give("shop", 1, Access.REVERSE, holder="agent/shop2", instance="run", seconds=60)
        at = Purpose.REVERSE, 1, point.sequence
        assert [await greeting(site, each, *at) for each in (new, third)] == [WELCOME, "identity-source"]
        assert await answered(site, new, "shop") == "identity-source", "it may read what it is to hold, and no more"
        moved = site.store.promote(point, expected_generation=1, label="run:r1:back:shop2")
        assert (moved.home, moved.is_sources_own, moved.generation) == ("shop2", True, 2)
        for generation in (0, 1, 2, 3):
            assert await greeting(site, old, generation=generation) == "source-moved"
            assert await greeting(site, third, generation=generation) == "identity-source"
        assert await greeting(site, old, generation=1, abilities=ABILITIES - {"homes"}) == "fenced"
        assert await greeting(site, old, *at) == "source-moved"
        assert [await greeting(site, new, generation=each) for each in (0, 2, 1)] == [WELCOME, WELCOME, "fenced"]
        # Failed over again, and home again: it lives where it lived.
        away = site.store.promote(site.store.find_point("shop", PointSelector()), expected_generation=2, label="run:r2")
        assert (away.home, site.store.home("shop").agent) == ("", "shop2")
        assert await greeting(site, old, generation=3) == "source-moved"
        assert await greeting(site, new, generation=2) == "fenced"
    (tmp_path / "store" / CATALOGUE_NAME).unlink()
    Store.rebuild(tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        assert store.home("shop") == Home("shop2", frozenset({"shop"})), "a lost catalogue lets no old host in"


async def greeting(
    site: Site,
    files: TlsFiles,
    purpose: Purpose = Purpose.REPLICATE,
    branch: int = 0,
    sequence: int = 0,
    *,
    generation: int = 1,
    abilities: frozenset[str] = ABILITIES,
) -> str:
    """What the target says to this HELLO, of a source that it knows."""
    stream = await connect(*site.address, networks=DataNetworks(), tls=client_context(files))
    try:
        await stream.send(Hello(2, 2, abilities, "shop", b"i" * 16, generation, purpose, branch, sequence))
        answer = await stream.receive()
        return answer.code if isinstance(answer, Refuse) else WELCOME
    finally:
        stream.abort()
