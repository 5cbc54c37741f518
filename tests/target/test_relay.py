"""Agents' metrics at the target: of which source they are is not theirs to say, and they end with the session."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from drengine.config import Address
from drengine.store.store import Store
from drengine.target.config import TargetConfig
from drengine.target.daemon import TargetDaemon
from drengine.target.relay import exposition
from drengine.target.sources import Sources, SourceState
from drengine.wire.events import MetricSample, MetricsReport
from tests.target.agent import join
from tests.wire.samples import metric_samples

LAG = "drengine_agent_replication_lag_seconds"


def sample(name: str, value: float, **labels: str) -> MetricSample:
    return MetricSample(name, tuple(sorted(labels.items())), value)


def read(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Each series once, or this fails; as a Prometheus would read it."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for each in family.samples:
            key = each.name, tuple(sorted(each.labels.items()))
            assert key not in found
            found[key] = each.value
    return found


def told(*states: tuple[str, tuple[MetricSample, ...]]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return read(exposition([SourceState(name, samples=samples) for name, samples in states]))


def test_an_agent_can_neither_name_its_source_nor_speak_for_the_target() -> None:
    samples = (
        sample(LAG, 7, source="other", instance="x", job="y"),
        sample("drengine_target_store_free_bytes", 1e15),
        sample("up", 1),
        sample("drengine_agent_state", 1, state='a"} 1\\'),
    )
    found = told(("shop", samples))
    assert found == {
        (LAG, (("source", "shop"),)): 7,
        ("drengine_agent_state", (("source", "shop"), ("state", 'a"} 1\\'))): 1,
    }


def test_what_is_told_twice_is_shown_once() -> None:
    assert told(("shop", (sample(LAG, 1), sample(LAG, 2, source="x")))) == {(LAG, (("source", "shop"),)): 1}


def test_two_agents_share_a_family_and_its_kind_comes_from_its_name() -> None:
    text = exposition(
        [
            SourceState("a", samples=(sample("drengine_agent_cuts_total", 1), sample("drengine_agent_x_sum", 2))),
            SourceState("b", samples=(sample("drengine_agent_cuts_total", 3), sample("drengine_agent_x", 4))),
        ]
    )
    assert [line for line in text.decode().splitlines() if line.startswith("#")] == [
        "# TYPE drengine_agent_cuts_total counter",
        "# TYPE drengine_agent_x gauge",
    ]
    assert len(read(text)) == 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(metric_samples().map(lambda s: MetricSample(f"drengine_agent_{s.name}", s.labels, s.value)))))
def test_whatever_agents_tell_prometheus_can_read_it_and_the_source_is_ours(found: list[list[MetricSample]]) -> None:
    states = [SourceState(f"s{number}", samples=tuple(samples)) for number, samples in enumerate(found)]
    for state in states:
        shown = read(exposition([state]))
        assert {dict(labels)["source"] for _, labels in shown} <= {state.name}


def test_metrics_end_with_the_session() -> None:
    state = SourceState("shop", samples=(sample(LAG, 1),))
    Sources.note_closed(state, goodbye=False, error=None)
    assert state.samples == ()


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[tuple[tuple[str, int], int]]:
    Store.create(tmp_path / "store").close()
    config = TargetConfig(
        store=tmp_path / "store", listen=Address("127.0.0.1", 0), metrics=Address("127.0.0.1", 0), allow_plain=True
    )
    daemon = TargetDaemon(config)
    where = await daemon.start()
    assert where.metrics_port
    try:
        yield where.replication, where.metrics_port
    finally:
        await daemon.stop()


async def fetch(port: int, path: str) -> tuple[int, bytes]:
    def ask() -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def until_told(port: int, path: str, status: int) -> bytes:
    async with asyncio.timeout(20):
        while (answer := await fetch(port, path))[0] != status:  # noqa: ASYNC110 - only the page tells
            await asyncio.sleep(0.01)
    return answer[1]


async def test_a_source_has_a_page_while_its_agent_tells_something(target: tuple[tuple[str, int], int]) -> None:
    address, port = target
    assert await fetch(port, "/metrics/sources") == (200, b"")
    assert (await fetch(port, "/metrics/sources/shop"))[0] == 404
    shop, till = await join(address), await join(address, source="till")
    await shop.stream.send(MetricsReport((sample(LAG, 3, source="till"),)))
    await till.stream.send(MetricsReport((sample(LAG, 5),)))
    assert read(await until_told(port, "/metrics/sources/shop", 200)) == {(LAG, (("source", "shop"),)): 3}
    await until_told(port, "/metrics/sources/till", 200)
    assert len(read((await fetch(port, "/metrics/sources"))[1])) == 2
    await shop.close()
    await until_told(port, "/metrics/sources/shop", 404)
    assert read((await fetch(port, "/metrics/sources"))[1]) == {(LAG, (("source", "till"),)): 5}
    await till.close()


async def test_a_target_of_an_older_version_is_told_nothing_it_does_not_know(
    target: tuple[tuple[str, int], int],
) -> None:
    """And an older agent offers no `metrics`, so nothing is agreed upon."""
    agent = await join(target[0], abilities=frozenset({"zstd", "hash-query", "resend"}))
    assert "metrics" not in agent.welcome.abilities
    await agent.close()
