"""What one source may take: past it that source is refused, with an id, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.target.config import load_target_config
from drengine.target.quotas import Allowance, QuotaOptions, Quotas, SourceQuotaOptions
from drengine.wire.events import Refuse
from tests.clock import ManualClock
from tests.target.agent import Agent, Refused, Site, running

pytestmark = pytest.mark.timeout(60)


def volumes(count: int, size_bytes: int = 1 << 20) -> tuple[VolumeGeometry, ...]:
    return tuple(VolumeGeometry(number, f"v{number}", f"file:{number}", size_bytes) for number in range(1, count + 1))


async def ended_with(agent: Agent) -> Refuse:
    refuse = await agent.refused()
    assert (refuse.code, refuse.retryable) == ("quota-exceeded", True), refuse
    return refuse


@pytest.mark.parametrize(
    ("too_much", "said"),
    [(volumes(4), "declares 4 volumes, and may have 3"), (volumes(2, 3 << 20), "declares 6291456 bytes")],
)
async def test_more_volumes_or_bytes_than_allowed_are_refused_and_what_came_before_stays(
    tmp_path: Path, too_much: tuple[VolumeGeometry, ...], said: str
) -> None:
    quotas = QuotaOptions(volumes=3, volume_bytes=5 << 20)
    async with running(
        tmp_path / "store", quotas=quotas, quota=(SourceQuotaOptions("big", volumes=0, volume_bytes=0),)
    ) as site:
        agent, big = await site.join("shop"), await site.join("big")
        await agent.declare(volumes(3))
        before = await agent.cut()
        await agent.declare(too_much)
        refuse = await ended_with(agent)
        assert said in refuse.message
        assert agent.acks[-1] == before
        await big.declare(too_much)
        await big.acknowledged(await big.cut())
        assert b'peers_refused_total{reason="quota-exceeded"} 1' in site.daemon.metrics.metrics.render()
        again = await site.join("shop")
        assert again.welcome.durable_sequence == before
        assert again.welcome.geometry == volumes(3)


async def test_points_are_made_at_a_rate_and_the_hour_gives_them_back(tmp_path: Path) -> None:
    clock = ManualClock(time.time_ns())
    async with running(tmp_path / "store", clock=clock, quotas=QuotaOptions(points_an_hour=3)) as site:
        agent, other = await site.join("shop"), await site.join("web")
        await agent.declare()
        await other.declare()
        kept = [await agent.cut() for _ in range(3)]
        await agent.acknowledged(kept[-1])
        await agent.cut()
        assert "3 points an hour; the next one in 1200.0 s" in (await ended_with(agent)).message
        await other.acknowledged(await other.cut())
        await site.left("shop")
        clock.advance(1200)
        again = await site.join("shop")
        assert again.welcome.durable_sequence == kept[-1]
        await again.acknowledged(await again.cut())
        assert len(site.store.points("shop")) == 4


async def test_sessions_are_opened_at_a_rate_and_strangers_have_one_share_together(tmp_path: Path) -> None:
    """1,500 HELLOs made 1,500 sources; and who comes again and again keeps the store busy for everybody."""
    clock = ManualClock(time.time_ns())
    async with running(tmp_path / "store", clock=clock, quotas=QuotaOptions(sessions_a_minute=5)) as site:
        agent = await site.join("shop")
        await agent.acknowledged(await agent.declare())
        admitted, refused = 0, set()
        for number in range(30):
            try:
                await site.join(f"guest-{number}")
                admitted += 1
            except Refused as error:
                refused.add(error.code)
        assert (admitted, refused) == (4, {"quota-exceeded"}), "the source that is known now was one of five"
        assert [await churn(site) for _ in range(20)] == [""] * 5 + ["quota-exceeded"] * 15
        clock.advance(12)
        assert [await churn(site), await churn(site)] == ["", "quota-exceeded"]


async def churn(site: Site) -> str:
    """The source's own agent comes again, and again."""
    try:
        await site.join("shop")
    except Refused as error:
        return error.code
    return ""


async def test_a_strangers_flood_leaves_the_victims_acknowledgements_alone(tmp_path: Path) -> None:
    """Judged by what the target does between a write and its acknowledgement, not by a clock: strangers' HELLOs are
    answered from memory, so none of them waits in the pool before the victim's batch.
    """
    async with running(tmp_path / "store", quotas=QuotaOptions(sessions_a_minute=5)) as site:
        victim = await site.join("shop")
        await victim.acknowledged(await victim.declare())
        stop, refused = asyncio.Event(), [0]

        async def flood(name: int) -> None:
            while not stop.is_set():
                try:
                    guest = await site.join(f"guest-{name}-{refused[0]}")
                    await guest.close()
                except Refused:
                    refused[0] += 1

        strangers = [asyncio.ensure_future(flood(number)) for number in range(8)]
        slowest = 0.0
        for number in range(50):
            begin = time.monotonic()
            await victim.write(number * 4096, b"mine" * 1024)
            await victim.acknowledged(await victim.cut())
            slowest = max(slowest, time.monotonic() - begin)
        stop.set()
        await asyncio.gather(*strangers)
        assert refused[0] > 50
        assert len(site.store.sources()) <= 1 + 5
        assert slowest < 1.0


def test_an_allowance_gives_so_many_in_any_period_and_never_more() -> None:
    allowance, given, now = Allowance(10, 60.0), [], 0.0
    for _ in range(2000):
        now += 0.1
        if not allowance.take(now):
            given.append(now)
    for begin in given:
        assert sum(begin <= each < begin + 60 for each in given) <= 20, "a full allowance, and what a period gives"
    assert len(given) == 10 + int(200 / 6)
    assert Allowance(0, 60.0).take(0.0) == 0.0


def test_a_sources_own_quota_stands_before_the_general_one_and_strangers_leave_nothing_behind() -> None:
    quotas = Quotas(QuotaOptions(volumes=1, points_an_hour=9), [SourceQuotaOptions("shop", volumes=2)])
    assert quotas.options("shop") == QuotaOptions(volumes=2, points_an_hour=9)
    shop = quotas.of("shop", known=True)
    assert quotas.of("shop", known=False) is shop and quotas.of("web", known=True) is not shop
    assert quotas.of("a", known=False) is quotas.of("b", known=False)


def test_the_file_names_sources_with_quotas_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "target.toml"
    path.write_text(
        'store = "/s"\n[quotas]\nvolumes = 8\nvolume_bytes = "1TiB"\n[[quota]]\nsource = "shop"\nvolumes = 64\n'
    )
    config = load_target_config(path, {})
    assert Quotas(config.quotas, config.quota).options("shop") == QuotaOptions(volumes=64, volume_bytes=1 << 40)
    path.write_text('store = "/s"\n[[quota]]\nsource = "no good"\n')
    with pytest.raises(DrengineError, match=r"quota\[0\].source: source 'no good' is not a valid name"):
        load_target_config(path, {})
