"""A store that is away for a moment, or replaced; a target without descriptors: told as such, over by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.errors import STORE_AWAY, STORE_READ_ONLY
from drengine.store.store import Store
from tests.store.harness import batch, geometry, mark
from tests.target.agent import Agent, Refused, join, running
from tests.target.test_process import Process, target

pytestmark = [pytest.mark.timeout(90), pytest.mark.fault(65)]
METRICS = ("--metrics", "127.0.0.1:0")


def _ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def ask(process: Process, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(_ask, process.metrics_port, path)


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 (another process is waited for)
            await asyncio.sleep(0.02)


async def until_ready(process: Process, status: int) -> str:
    """Wait for this answer of /readyz; returns its body."""
    async with asyncio.timeout(20):
        while True:
            found, body = await ask(process, "/readyz")
            if found == status:
                return body
            await asyncio.sleep(0.05)


async def comes_back(address: tuple[str, int], source: str = "shop") -> Agent:
    """As an agent does: refused for a reason that is not final, it tries again."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await join(address, source)
            except Refused as refused:
                assert refused.retryable, refused
            except (DrengineError, OSError):
                pass
            await asyncio.sleep(0.05)


async def ship(agent: Agent, text: bytes) -> int:
    """Write, cut, and wait until it is durable."""
    if agent.welcome.durable_sequence == 0 and agent.sequence == 0:
        await agent.declare()
    await agent.write(0, text * 4096)
    last = await agent.cut()
    await agent.acknowledged(last)
    return last


@contextlib.asynccontextmanager
async def closing(agent: Agent) -> AsyncIterator[Agent]:
    try:
        yield agent
    finally:
        await agent.close()


async def test_a_store_that_was_moved_away_and_back_is_used_again_without_anyones_doing(tmp_path: Path) -> None:
    store, aside = tmp_path / "store", tmp_path / "aside"
    async with target(store, *METRICS) as process:
        async with closing(await join(process.address)) as agent:
            await ship(agent, b"a")
            assert await ask(process, "/readyz") == (200, "ready\n")
            store.rename(aside)
            # A session that has nothing to store is told as well.
            refuse = await agent.refused()
            assert (refuse.code, refuse.retryable) == ("store-away", True)
        assert str(store) in await until_ready(process, 503)
        assert 'drengine_target_store_state{reason="target-away"} 1.0' in (await ask(process, "/metrics"))[1]
        with pytest.raises(Refused, match="store-away") as refused:
            await join(process.address)
        assert refused.value.retryable
        assert 'reason="target-away",source="shop",state="STALLED"} 1.0' in (await ask(process, "/metrics"))[1]
        assert not store.exists(), "nothing is made in its place"
        aside.rename(store)
        assert await until_ready(process, 200) == "ready\n"
        async with closing(await comes_back(process.address)) as agent:
            last = await ship(agent, b"b")
    with Store.open(store) as opened:
        assert opened.scrub().records_damaged == []
        assert not any(point.damaged for point in opened.context.catalogue.points("shop"))
        with opened.view(opened.find_point("shop", PointSelector())) as view:
            assert (view.position.sequence, view.read(1, 0, 4096)) == (last, b"b" * 4096)


async def test_data_that_is_under_way_when_the_store_goes_is_not_acknowledged_and_not_lost(tmp_path: Path) -> None:
    store, aside = tmp_path / "store", tmp_path / "aside"
    async with target(store) as process:
        async with closing(await join(process.address)) as agent:
            last = await ship(agent, b"a")
            store.rename(aside)
            with contextlib.suppress(DrengineError):
                for _ in range(50):
                    await agent.write(0, b"x" * 4096)
            await agent.ended()
            assert agent.acks[-1] == last
        aside.rename(store)
        async with closing(await comes_back(process.address)) as agent:
            assert agent.welcome.durable_sequence == last
            await ship(agent, b"b")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_another_store_at_the_path_is_noticed_and_never_written(tmp_path: Path) -> None:
    store, aside, other = tmp_path / "store", tmp_path / "aside", tmp_path / "other"
    with Store.create(other) as made:
        made.ensure_source("shop")
    async with target(store, *METRICS) as process:
        async with closing(await join(process.address)) as agent:
            await ship(agent, b"a")
        store.rename(aside)
        other.rename(store)
        before = files(store)
        assert "another directory" in await until_ready(process, 503)
        with pytest.raises(Refused, match="store-away"):
            await join(process.address)
        assert files(store) == before
        store.rename(other)
        aside.rename(store)
        await until_ready(process, 200)
        async with closing(await comes_back(process.address)) as agent:
            await ship(agent, b"b")


def test_another_store_in_the_same_directory_is_noticed(tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other")
    other.close()
    with Store.create(tmp_path / "store") as store:
        os.utime(tmp_path / "store" / "STORE")
        store.require_usable()
        shutil.copyfile(tmp_path / "other" / "STORE", tmp_path / "store" / "STORE")
        with pytest.raises(DrengineError, match="another store") as refused:
            store.ensure_source("shop")
        assert refused.value.kind is STORE_AWAY


def test_a_catalogue_that_was_put_in_under_a_running_target_is_noticed(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        catalogue = tmp_path / "store" / "catalogue.sqlite"
        shutil.copyfile(catalogue, tmp_path / "copy")
        (tmp_path / "copy").rename(catalogue)
        with pytest.raises(DrengineError, match="catalogue") as refused:
            store.ensure_source("shop")
        assert refused.value.kind is STORE_AWAY


def test_what_is_away_with_the_whole_store_is_not_recorded_as_damaged(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        store.ensure_source("shop")
        writer = store.writer("shop", generation=1)
        writer.append_geometry(1, mark(1), geometry(data=8192), generation=1)
        writer.append_batch(2, mark(2), batch((1, 0, b"x" * 4096)), generation=1)
        writer.commit(generation=1)
        writer.close()
        (tmp_path / "store").rename(tmp_path / "aside")
        for act in (store.scrub, store.compact, lambda: store.reread_newest("shop"), lambda: store.head_view("shop")):
            with pytest.raises(DrengineError) as caught:
                act()
            assert caught.value.kind is STORE_AWAY
        (tmp_path / "aside").rename(tmp_path / "store")
        assert store.context.catalogue.damage("shop") == []
        assert store.scrub().records_damaged == []
        with store.head_view("shop") as view:
            assert view.read(1, 0, 4096) == b"x" * 4096


async def test_a_store_remounted_read_only_ends_idle_sessions_and_is_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "store") as site:
        agent = await site.join()
        await ship(agent, b"a")
        with monkeypatch.context() as patch:
            real = os.statvfs

            def read_only(path: str | Path) -> os.statvfs_result:
                found = list(real(path))
                found[8] |= os.ST_RDONLY
                return os.statvfs_result(found)

            patch.setattr(os, "statvfs", read_only)
            refuse = await agent.refused()
            assert (refuse.code, refuse.retryable) == (STORE_READ_ONLY.id, True)
            await agent.ended()
            state = site.daemon.sources.get("shop")
            await until(lambda: (state.state, state.reason) == ("STALLED", "target-read-only"))
            assert site.daemon.watch.reason == "target-read-only"
        await until(lambda: site.daemon.watch.reason == "none")
        await ship(await site.join(), b"b")


async def test_a_target_without_descriptors_refuses_newcomers_and_lets_the_others_go_on(tmp_path: Path) -> None:
    async with target(tmp_path / "store", *METRICS, descriptors=64) as process:
        admitted: list[Agent] = []
        refused: list[str] = []
        for number in range(12):
            try:
                admitted.append(await join(process.address, f"host-{number}"))
            except Refused as refusal:
                assert (refusal.code, refusal.retryable) == ("resources-exhausted", True)
                refused.append(f"host-{number}")
        assert len(admitted) >= 2 and refused
        for agent in admitted:
            await ship(agent, b"a")
        assert (await ask(process, "/readyz"))[0] == 200
        for agent in admitted:
            await agent.close()
        for name in refused[:2]:
            async with closing(await comes_back(process.address, name)) as agent:
                await ship(agent, b"b")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_accepts_that_fail_are_one_line_no_busy_loop_and_over_when_there_are_descriptors(tmp_path: Path) -> None:
    nbd = tmp_path / "nbd.sock"
    async with target(
        tmp_path / "store", *METRICS, "--nbd-listen", "127.0.0.1:0", "--nbd-socket", str(nbd), descriptors=64
    ) as process:
        pid = process.process.pid
        floods = [await asyncio.open_connection(*process.address) for _ in range(70)]
        floods += [await asyncio.open_unix_connection(nbd) for _ in range(3)]
        floods += [await asyncio.open_connection("127.0.0.1", process.metrics_port) for _ in range(3)]
        await until(lambda: any("accept" in line["message"] for line in process.lines))
        before = cpu_seconds(pid)
        await asyncio.sleep(2.5)  # the time over which its processor time is measured
        assert cpu_seconds(pid) - before < 1.0
        failed = [line for line in process.lines if "accept" in line["message"]]
        assert 1 <= len(failed) <= 3, "one for each listener that somebody knocks at"
        assert not any("exception" in line or "Traceback" in line["message"] for line in process.lines)
        for _, writer in floods:
            writer.close()
        async with closing(await comes_back(process.address)) as agent:
            await ship(agent, b"a")
        assert (await ask(process, "/readyz"))[0] == 200
        _, nbd_writer = await asyncio.open_unix_connection(nbd)
        nbd_writer.close()
