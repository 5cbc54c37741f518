"""Points and branches over NBD, judged by real clients."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.nbd.client import NbdClient
from drengine.store.care.retention import RetentionPolicy
from tests.target.agent import SIZE, Site, running

pytestmark = pytest.mark.timeout(60)


def need(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


async def filled(site: Site, seed: int, cuts: int = 2) -> list[tuple[int, bytes]]:
    """Points and what they must show."""
    rng, model = random.Random(seed), bytearray(SIZE)
    agent = await site.join()
    await agent.declare()
    expected = []
    for _ in range(cuts):
        for _ in range(20):
            offset = rng.randrange(SIZE // 65536) * 65536
            data = rng.randbytes(rng.choice((4096, 65536)))
            model[offset : offset + len(data)] = data
            await agent.until(lambda: agent.stream.connection.credit_available > 1 << 20)
            await agent.write(offset, data)
        expected.append((await agent.cut(label=f"cut #{len(expected)}"), bytes(model)))
    await agent.acknowledged(expected[-1][0])
    return expected


async def tool(*argv: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=30, check=False)


async def test_nbdcopy_and_qemu_img_see_each_point_as_it_was(tmp_path: Path) -> None:
    nbdcopy, qemu = need("nbdcopy"), need("qemu-img")
    socket = tmp_path / "nbd.sock"
    async with running(tmp_path / "store", nbd_socket=socket) as site:
        for sequence, content in await filled(site, 1):
            uri = f"nbd+unix:///shop/data%401-{sequence}?socket={socket}"
            image, copied = tmp_path / "expected", tmp_path / "copied"
            image.write_bytes(content)
            done = await tool(nbdcopy, uri, str(copied))
            assert done.returncode == 0, done.stderr
            assert copied.read_bytes() == content
            done = await tool(qemu, "compare", "-f", "raw", "-F", "raw", uri, str(image))
            assert done.returncode == 0, done.stdout + done.stderr


async def test_a_point_has_nothing_to_flush_and_says_so_without_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    socket = tmp_path / "nbd.sock"
    async with running(tmp_path / "store", nbd_socket=socket) as site:
        sequence, content = (await filled(site, 9, cuts=1))[-1]

        def use() -> bytes:
            with NbdClient(str(socket), f"shop/data@1-{sequence}") as disk:
                disk.flush()
                return bytes(disk.read(0, 65536))

        assert await asyncio.to_thread(use) == content[:65536]
    assert [each for each in caplog.records if each.exc_info] == []


async def test_the_list_is_short_and_every_point_can_still_be_opened(tmp_path: Path) -> None:
    nbdinfo = need("nbdinfo")
    socket = tmp_path / "nbd.sock"
    async with running(tmp_path / "store", nbd_socket=socket) as site:
        points = await filled(site, 2, cuts=30)
        branch = site.store.create_branch(site.store.find_point("shop", PointSelector()), role="drill")
        listed = await tool(nbdinfo, "--list", "--json", f"nbd+unix:///?socket={socket}")
        assert listed.stdout.count('"export-name"') == 2
        assert f"shop/data#{branch.number}" in listed.stdout
        for name in (
            f"shop/data@1-{points[3][0]}",
            "shop/data",
            "shop/data@latest",
            "shop/data@before:2100-01-01",
            "shop/data@2100-01-01T00:00:00Z",
            "shop/data@label:cut #1",
            "shop/data@cut #2",
        ):
            client = await asyncio.to_thread(NbdClient, str(socket), name)
            assert client.size_bytes == SIZE
            await asyncio.to_thread(client.close)
        for name in (
            "",
            "shop",
            "shop/nope",
            "nope/data",
            "shop/data@1-999999",
            "shop/data@../x",
            "shop/data#99",
            "shop/data#0",
            "shop/data#01",
        ):
            with pytest.raises(DrengineError):
                await asyncio.to_thread(NbdClient, str(socket), name)
        with pytest.raises(DrengineError, match="nobody may write"):
            await asyncio.to_thread(NbdClient, str(socket), "shop/data#1")


async def test_a_drills_branch_is_written_and_the_replica_does_not_notice(tmp_path: Path) -> None:
    socket = tmp_path / "nbd.sock"
    async with running(tmp_path / "store", nbd_socket=socket) as site:
        (sequence, before), *_ = await filled(site, 3, cuts=1)
        point = site.store.find_point("shop", PointSelector())
        branch = site.store.create_branch(point, role="drill")

        def drill() -> None:
            with NbdClient(str(socket), f"shop/data#{branch.number}") as client:
                client.write(4096, b"drill" * 1000)
                client.zero(65536, 65536)
                client.trim(131072, 65536)
                client.flush()
                client.write(0, b"unflushed")

        await asyncio.to_thread(drill)
        model = bytearray(before)
        model[4096:9096] = b"drill" * 1000
        model[65536 : 3 * 65536] = bytes(131072)
        model[0:9] = b"unflushed"

        def again() -> bytes:
            with NbdClient(str(socket), f"shop/data#{branch.number}") as client:
                return bytes(client.read(0, SIZE))

        assert await asyncio.to_thread(again) == bytes(model)
        with site.store.view(point) as view:
            assert view.read(1, 0, SIZE) == before
        agent = site.agents[0]
        await agent.acknowledged(await agent.cut())
        assert point.sequence == sequence


@pytest.mark.fault(12)
async def test_retention_and_compaction_leave_an_exported_point_alone(tmp_path: Path) -> None:
    socket = tmp_path / "nbd.sock"
    async with running(tmp_path / "store", nbd_socket=socket) as site:
        points = await filled(site, 4, cuts=4)
        sequence, content = points[0]
        client = await asyncio.to_thread(NbdClient, str(socket), f"shop/data@1-{sequence}")
        year = 400 * 86400 * 10**9
        removed = site.store.retain(RetentionPolicy(0, ()), site.store.context.clock.now_ns() + year)
        site.store.compact()
        assert sequence not in [point.sequence for point in removed]
        assert bytes(await asyncio.to_thread(client.read, 0, SIZE)) == content
        await asyncio.to_thread(client.close)


@pytest.mark.fault(10)
@pytest.mark.fault(2)
async def test_damaged_data_is_an_error_to_the_client_and_never_wrong_bytes(tmp_path: Path) -> None:
    socket = tmp_path / "nbd.sock"
    async with running(tmp_path / "store", nbd_socket=socket) as site:
        agent = await site.join()
        await agent.declare()
        await agent.write(0, b"good" * 1024)
        await agent.write(65536, b"gone" * 1024)
        await agent.acknowledged(await agent.cut())
        await agent.close()
        await site.left("shop")
        segment = next((tmp_path / "store").rglob("*.seg"))
        data = bytearray(segment.read_bytes())
        at = data.rindex(b"\x28\xb5\x2f\xfd")
        data[at + 8] ^= 1
        segment.write_bytes(data)

        def read() -> None:
            with NbdClient(str(socket), "shop/data") as client:
                assert client.read(0, 4096) == b"good" * 1024
                with pytest.raises(DrengineError, match="error 5"):
                    client.read(65536, 4096)

        await asyncio.to_thread(read)
        again = await site.join()
        assert (await again.resend()).offset == 65536
