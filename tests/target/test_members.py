"""A retired source: turned away, gone from metrics, its points until their time is up, and back when it joins."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from drengine.audit.verify import read_entries
from drengine.identity.authority import Authority
from drengine.policy.kept import FILE, PolicyFile, Retired
from drengine.policy.settings import decided
from drengine.target.members import LOOK_SECONDS
from tests.clock import ManualClock
from tests.target.agent import Refused, Site, running
from tests.target.test_revocation import joined, party, tls

pytestmark = [pytest.mark.timeout(90)]
DAY = 86_400.0


def retire(site: Site, source: str, *serials: str) -> None:
    file = PolicyFile(site.config.store)
    with file.changing() as policy:
        made = Retired(time.time_ns(), "bob", serials)
        file.keep(msgspec.structs.replace(policy, retired={**policy.retired, source: made}))


async def point(site: Site, source: str) -> None:
    agent = await site.join(source)
    await agent.declare()
    await agent.write(0, source.encode().ljust(4096))
    await agent.acknowledged(await agent.cut())


async def looked(clock: ManualClock, ready: object) -> None:
    """Let the target look until something is so."""
    assert callable(ready)
    async with asyncio.timeout(30):
        while not ready():
            clock.advance(LOOK_SECONDS)
            await asyncio.sleep(0.01)


def sources_shown(site: Site) -> set[str]:
    text = site.daemon.metrics.metrics.render().decode()
    return {name for name in ("shop", "web") if f'connected{{source="{name}"}}' in text}


async def test_a_retired_source_is_cut_off_shown_no_more_and_refused_and_no_other_is(tmp_path: Path) -> None:
    clock = ManualClock(time.time_ns())
    async with running(tmp_path / "store", clock=clock) as site:
        await point(site, "shop")
        await point(site, "web")
        assert sources_shown(site) == {"shop", "web"}
        retire(site, "shop")
        await looked(clock, lambda: sources_shown(site) == {"web"})
        assert (await site.agents[0].refused()).code == "source-retired"
        with pytest.raises(Refused) as refused:
            await site.join("shop", instance=b"j" * 16)
        assert refused.value.code == "source-retired"
        assert sources_shown(site) == {"web"}, "a refused attempt does not bring it back"
        assert len(site.store.points("shop")) == 1, "its points stay"
        assert b'points{source="shop"}' not in site.daemon.metrics.metrics.render()


async def test_a_target_that_starts_knows_who_is_retired(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        await point(site, "shop")
    file = PolicyFile(tmp_path / "store")
    with file.changing() as policy:
        file.keep(msgspec.structs.replace(policy, retired={"shop": Retired(1, "bob")}))
    async with running(tmp_path / "store") as site:
        assert sources_shown(site) == set()
        with pytest.raises(Refused):
            await site.join("shop")


async def test_a_certificate_that_was_not_revoked_with_it_is_a_return(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    authority.write_crl()
    old = party(authority, "agent/shop")
    serial = authority.entries()[-1].serial
    clock = ManualClock(time.time_ns())
    async with running(tmp_path / "store", tls=tls(authority), clock=clock) as site:
        agent = await joined(site, old, "shop")
        await agent.declare()
        await agent.acknowledged(await agent.cut())
        retire(site, "shop", serial)
        await looked(clock, lambda: sources_shown(site) == set())
        with pytest.raises(AssertionError, match="source-retired"):
            await joined(site, old, "shop")
        again = await joined(site, party(authority, "agent/shop"), "shop")
        assert again.welcome.durable_sequence == agent.acks[-1], "it goes on where it was"
        assert sources_shown(site) == {"shop"}
        assert not PolicyFile(site.config.store).read().retired
        did = [line.entry.did for line in read_entries(tmp_path / "store" / "audit")]
        assert "source.return" in did


async def test_the_points_of_a_retired_source_go_when_their_time_is_up_and_no_leap_hastens_it(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running(tmp_path / "store", clock=clock) as site:
        await point(site, "shop")
        await point(site, "web")
        site.daemon.maintenance.retain()
        clock.jump_wall(400 * DAY)
        retire(site, "shop")
        await looked(clock, lambda: sources_shown(site) == {"web"})
        site.daemon.maintenance.retain()
        assert len(site.store.points("shop")) == 1, "the clock has leapt, and nobody saw the time pass"
        members = site.daemon.members
        members._read()
        clock.advance(6 * DAY)
        members._read()
        site.daemon.maintenance.retain()
        assert len(site.store.points("shop")) == 1
        assert PolicyFile(site.config.store).read().retired["shop"].aged_seconds >= 6 * DAY, "it is written down"
        clock.advance(2 * DAY)
        members._read()
        site.daemon.maintenance.retain()
        assert not site.store.points("shop")
        assert len(site.store.points("web")) == 1, "a source that is only silent keeps what it has"


async def test_a_source_has_the_retention_that_was_decided_for_it(tmp_path: Path) -> None:
    async with running(tmp_path / "store") as site:
        file = PolicyFile(site.config.store)
        with file.changing() as policy:
            rules = {"sh*": {"retention": "all for 1h"}}
            file.keep(msgspec.structs.replace(policy, rules=rules))
        keeping = site.daemon.members.keeping
        assert str(keeping("shop").policy) == decided(rules, "shop")["retention"].value
        assert str(keeping("web").policy) == site.config.maintenance.retention


async def test_a_file_that_can_not_be_read_stops_no_replication_and_lets_no_retired_source_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock(time.time_ns())
    async with running(tmp_path / "store", clock=clock) as site:
        await point(site, "shop")
        await point(site, "web")
        retire(site, "shop")
        await looked(clock, lambda: sources_shown(site) == {"web"})
        (tmp_path / "store" / FILE).write_text("{")
        await looked(clock, lambda: "is damaged" in caplog.text)
        with pytest.raises(Refused):
            await site.join("shop", instance=b"j" * 16)
        await point(site, "new")
        assert sum("is damaged" in record.getMessage() for record in caplog.records) == 1
        assert not await site.daemon.maintenance.run_once("retention", site.daemon.maintenance.retain)
        assert len(site.store.points("shop")) == 1, "nothing is removed by a guess"
    async with running(tmp_path / "store") as site:
        await point(site, "web")
