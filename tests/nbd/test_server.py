"""The server on real sockets: late answers, shutdown, back-pressure, and clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError, ErrorKind
from drengine.nbd.errors import NBD_LISTEN
from drengine.nbd.export import Complete, Export, ExportInfo, NbdError, Peer, Reply, Request
from drengine.nbd.file_export import FileExport, FileProvider
from drengine.nbd.limits import NbdLimits
from drengine.nbd.server import NbdServer
from tests.nbd import wire as nbd
from tests.nbd.conftest import DISK_BYTES, Client, Serve, until

_REFUSED = ErrorKind("test-nbd-refused", 124, "Only for a test.", "Nothing.")


class HeldExport:
    """Keeps every request until the test lets it go; inline or not."""

    def __init__(self, *, inline: bool = True) -> None:
        self.inline = inline
        self.info = ExportInfo("held", 64 << 20)
        self.held: list[Request] = []
        self.arrived = asyncio.Event()
        self.released = asyncio.Event()
        self.complete: Complete | None = None
        self.opened = self.closed = 0
        self.peers: list[Peer] = []
        self.fail: Exception | None = None

    def submit(self, requests: list[Request], complete: Complete) -> list[Reply]:
        self.held += requests
        self.complete = complete
        self.arrived.set()
        if self.fail:
            raise self.fail
        return []

    async def handle(self, request: Request) -> Reply:
        self.held.append(request)
        self.arrived.set()
        await self.released.wait()
        if self.fail:
            raise self.fail
        return self.result(request)

    async def block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        if self.fail:
            raise self.fail
        return [(length, 0)]

    def close(self) -> None:
        self.closed += 1

    @staticmethod
    def result(request: Request) -> Reply:
        return Reply(request, 0, bytes(request.length) if request.command == nbd.READ else b"")

    def release(self) -> None:
        self.released.set()
        if self.complete is not None:
            self.complete([self.result(request) for request in self.held])
            self.held = []

    # As its own provider.

    async def names(self, peer: Peer) -> list[str]:
        return ["held"]

    async def open(self, name: str, peer: Peer) -> Export:
        if name == "refused":
            raise DrengineError(_REFUSED, "you may not")
        if name == "broken":
            raise ZeroDivisionError
        if name != "held":
            raise KeyError(name)
        self.opened += 1
        self.peers.append(peer)
        return self


async def test_a_file_is_read_written_zeroed_trimmed_and_mapped(serve: Serve, disk: Path) -> None:
    _, path = await serve()
    client = await Client.connect(path)
    await client.go()
    assert (await client.call(nbd.WRITE, 65536, 0, data=b"\x07" * 131072)).error == 0
    assert (await client.call(nbd.ZERO, 65536, 4096)).error == 0
    assert (await client.call(nbd.ZERO, 69632, 4096, flags=nbd.NO_HOLE)).error == 0
    assert (await client.call(nbd.TRIM, 131072, 65536)).error == 0
    assert (await client.call(nbd.FLUSH)).error == 0
    expected = bytes(65536 + 8192) + b"\x07" * (65536 - 8192) + bytes(65536)
    assert (await client.call(nbd.READ, 0, len(expected))).content(0, len(expected)) == expected
    assert disk.read_bytes()[: len(expected)] == expected  # noqa: ASYNC240
    status = await client.call(nbd.STATUS, 0, 4 << 20)
    assert sum(length for length, _ in status.extents) == 4 << 20
    assert status.extents[0] == (65536 + 4096, 3)
    assert status.extents[-1][1] == 3
    client.close()


@pytest.mark.fault(30)
@pytest.mark.parametrize("how", ["flush", "fua"])
async def test_flush_and_fua_are_answered_only_after_the_disk_has_synced(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    may_sync, syncing = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def held_sync(descriptor: int) -> None:
        loop.call_soon_threadsafe(syncing.set)
        assert may_sync.wait(30)

    monkeypatch.setattr(os, "fdatasync", held_sync)
    _, path = await serve()
    client = await Client.connect(path)
    await client.go()
    if how == "flush":
        client.ask(nbd.FLUSH, 50)
    else:
        client.ask(nbd.WRITE, 50, 0, 0, data=b"durable", flags=nbd.FUA)
    await syncing.wait()
    # Another request goes through meanwhile, so the silence about the first one is not mere slowness.
    assert (await client.call(nbd.READ, 0, 512)).error == 0
    assert 50 not in client.replies.answers
    may_sync.set()
    assert (await client.answer(50)).error == 0
    client.close()


@pytest.mark.fault(5)
async def test_after_a_failed_sync_no_flush_succeeds_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [OSError(5, "injected")]

    def sync(descriptor: int) -> None:
        if outcomes:
            raise outcomes.pop()

    monkeypatch.setattr(os, "fdatasync", sync)
    _, path = await serve()
    client = await Client.connect(path)
    await client.go()
    for _ in range(2):
        assert (await client.call(nbd.FLUSH)).error == NbdError.EIO
    client.close()


async def test_two_connections_see_each_others_writes(serve: Serve) -> None:
    _, path = await serve()
    one, two = await Client.connect(path), await Client.connect(path)
    await one.go()
    await two.go()
    for round_ in range(20):
        data = bytes([round_ + 1]) * 8192
        assert (await one.call(nbd.WRITE, round_ * 4096, 0, data=data)).error == 0
        assert (await two.call(nbd.READ, round_ * 4096, 8192)).content(round_ * 4096, 8192) == data
        one, two = two, one
    one.close()
    two.close()


@pytest.mark.parametrize("inline", [True, False])
async def test_shutdown_finishes_what_is_in_flight_and_refuses_the_rest(serve: Serve, inline: bool) -> None:
    export = HeldExport(inline=inline)
    server, path = await serve(export)
    busy, idle, shaking = await Client.connect(path), await Client.connect(path), await Client.connect(path)
    await busy.go("held")
    await idle.go("held")
    busy.ask(nbd.WRITE, 10, 0, 0, data=b"x" * 4096)
    await export.arrived.wait()
    closing = asyncio.create_task(server.close(30))
    assert await idle.ended() == b""
    assert await shaking.ended() == b""
    assert (await busy.call(nbd.READ, 0, 512)).error == NbdError.ESHUTDOWN
    assert not closing.done()
    export.release()
    assert (await busy.answer(10)).error == 0
    assert await busy.ended() == b""
    await closing
    assert server.connections == 0
    assert export.opened == export.closed == 2
    with pytest.raises(FileNotFoundError):
        await asyncio.open_unix_connection(path)


async def test_shutdown_is_bounded_when_a_request_never_ends(serve: Serve) -> None:
    export = HeldExport(inline=False)
    server, path = await serve(export)
    client = await Client.connect(path)
    await client.go("held")
    client.ask(nbd.READ, 1, 0, 512)
    await export.arrived.wait()
    await server.close(0.05)
    assert await client.ended() == b""
    assert server.stats.ended["shutdown"] == 1
    assert server.connections == 0
    assert export.closed == 0  # a request is still inside it


@pytest.mark.parametrize("inline", [True, False])
async def test_an_export_is_closed_only_when_nothing_is_in_flight_though_the_client_has_gone(
    serve: Serve, inline: bool
) -> None:
    export = HeldExport(inline=inline)
    server, path = await serve(export)
    client = await Client.connect(path)
    await client.go("held")
    client.ask(nbd.WRITE, 1, 0, 0, data=b"x" * 4096)
    await export.arrived.wait()
    client.writer.transport.abort()
    await until(lambda: server.stats.ended)
    assert export.closed == 0
    export.release()
    await until(lambda: not server.connections)
    assert export.closed == 1


async def test_a_client_that_vanishes_inside_a_long_write_holds_nothing(serve: Serve) -> None:
    export = HeldExport()
    server, path = await serve(export)
    client = await Client.connect(path)
    await client.go("held")
    client.writer.write(nbd.request(nbd.WRITE, 1, 0, 1 << 20) + bytes(100_000))
    await client.writer.drain()
    client.close()
    await until(lambda: not server.connections)
    assert export.held == []
    assert export.closed == 1


@pytest.mark.fault(31)
@pytest.mark.parametrize("inline", [True, False])
async def test_reading_stops_while_the_export_is_full_and_goes_on_after(serve: Serve, inline: bool) -> None:
    export = HeldExport(inline=inline)
    _, path = await serve(export, limits=NbdLimits(requests_in_flight_max=4))
    client = await Client.connect(path)
    await client.go("held")
    for cookie in range(100, 300):
        client.ask(nbd.WRITE, cookie, 0, 0, data=bytes(8192))
    seen = 0
    while seen < 200:
        while not export.held:
            export.arrived.clear()
            await export.arrived.wait()
        assert len(export.held) <= 4
        seen += len(export.held)
        if inline:
            export.release()
        else:
            export.held.clear()
            export.released.set()
    for cookie in range(100, 300):
        assert (await client.answer(cookie)).error == 0
    client.close()


@pytest.mark.fault(31)
async def test_a_client_that_takes_no_replies_is_not_read_from(serve: Serve, disk: Path) -> None:
    server, path = await serve()
    client = await Client.connect(path)
    await client.go()
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    length, count = 1 << 20, 40
    other = await Client.connect(path)
    await other.go()
    for cookie in range(count):
        client.ask(nbd.READ, cookie, 0, length)
        await client.writer.drain()
        # The other client is served as if nothing were, and the server has had its turn to read the first one.
        assert (await other.call(nbd.READ, 0, 512)).error == 0
    assert server.stats.requests - count < 5
    client.reader._transport.resume_reading()  # type: ignore[attr-defined]
    for cookie in range(count):
        assert (await client.answer(cookie)).content(0, length) == bytes(length)
    client.close()
    other.close()


@pytest.mark.fault(38)
async def test_a_stalled_handshake_is_cut_off_but_idle_transmission_is_not(serve: Serve) -> None:
    server, path = await serve(limits=NbdLimits(handshake_seconds_max=0.2))
    idle = await Client.connect(path)
    await idle.go()
    stalled = await Client.connect(path)
    stalled.writer.write(nbd.client_flags() + b"IHAVE")
    assert await stalled.ended() == b""
    assert server.stats.ended["nbd-limit"] == 1
    assert (await idle.call(nbd.READ, 0, 512)).error == 0
    idle.close()


@pytest.mark.fault(38)
async def test_one_connection_too_many_is_closed_and_the_others_do_not_notice(serve: Serve) -> None:
    server, path = await serve(limits=NbdLimits(connections_max=2))
    one, two = await Client.connect(path), await Client.connect(path)
    await one.go()
    await two.go()
    reader, writer = await asyncio.open_unix_connection(path)
    assert await reader.read() == b""
    writer.close()
    assert (await one.call(nbd.READ, 0, 512)).error == 0
    two.close()
    await until(lambda: server.connections <= 1)
    three = await Client.connect(path)
    await three.go()
    for client in (one, two, three):
        client.close()


@pytest.mark.fault(36)
async def test_who_says_nothing_keeps_nobody_out_and_loses_his_own_place_first(disk: Path) -> None:
    """Silent sockets, each for the 15 s of a handshake, took every place, again and again."""
    server = NbdServer(FileProvider({"disk": disk}), limits=NbdLimits(handshakes_max=4))
    address = await server.start_tcp("127.0.0.1")
    reader, writer = await asyncio.open_connection(*address)
    strangers = [await asyncio.open_connection(*address, local_addr=("127.0.0.2", 0)) for _ in range(12)]
    assert await reader.readexactly(18)
    await until(lambda: server.connections <= 5)
    assert server.stats.ended == {"crowded": 13 - server.connections}
    client = Client(reader, writer)
    await client.go()
    assert (await client.call(nbd.READ, 0, 512)).error == 0
    client.close()
    for _, stranger in strangers:
        stranger.close()
    await server.close(1)


async def test_silent_sockets_that_come_all_at_once_are_as_many_as_may_be(disk: Path) -> None:
    """The server sees them all before the end of any: the same one made way again and again."""
    server = NbdServer(FileProvider({"disk": disk}), limits=NbdLimits(handshakes_max=4))
    address = await server.start_tcp("127.0.0.1")
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(address, 5))  # without letting the loop run
        await until(lambda: server.stats.ended["crowded"] == 36)
        assert server.connections == 4
    await server.close(1)


@pytest.mark.fault(36, 38)
@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "nbd-protocol"),
        (nbd.client_flags() + nbd.option(nbd.LIST) * 300, "nbd-limit"),
        (nbd.client_flags() + b"IHAVEOPT\0\0\0\7\xff\xff\xff\xff", "nbd-limit"),
    ],
)
async def test_garbage_ends_that_session_with_a_typed_reason_and_no_other(
    serve: Serve, garbage: bytes, reason: str
) -> None:
    server, path = await serve()
    good, bad = await Client.connect(path), await Client.connect(path)
    await good.go()
    bad.writer.write(garbage)
    await bad.ended()
    await until(lambda: server.stats.ended)
    assert server.stats.ended == {reason: 1}
    assert (await good.call(nbd.READ, 0, 512)).error == 0
    good.close()


async def test_a_failing_inline_export_answers_and_ends_only_its_client(serve: Serve) -> None:
    export = HeldExport()
    _, path = await serve(export)
    client = await Client.connect(path)
    await client.go("held")
    export.fail = ZeroDivisionError()
    assert (await client.call(nbd.READ, 0, 512)).error == NbdError.EIO
    assert await client.ended() == b""
    await until(lambda: export.closed)


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (OSError(28, "No space left"), NbdError.ENOSPC, "No space left"),
        (OSError(5, "bad sector"), NbdError.EIO, "bad sector"),
        (DrengineError(_REFUSED, "block 7 is damaged"), NbdError.EIO, "block 7 is damaged [test-nbd-refused]"),
        (ZeroDivisionError(), NbdError.EIO, "internal error"),
    ],
)
async def test_an_asynchronous_failure_is_an_error_reply_with_a_message(
    serve: Serve, failure: Exception, error: int, message: str
) -> None:
    export = HeldExport(inline=False)
    _, path = await serve(export)
    export.fail = failure
    export.released.set()
    client = await Client.connect(path)
    await client.go("held")
    for command in (nbd.READ, nbd.STATUS):
        answer = await client.call(command, 0, 512)
        assert (answer.error, answer.message) == (error, message)
    client.close()


async def test_an_export_opened_for_a_question_is_used_again_and_closed_once(serve: Serve) -> None:
    export = HeldExport()
    server, path = await serve(export)
    client = await Client.connect(path)
    client.writer.write(nbd.client_flags())
    client.writer.write(nbd.option(nbd.INFO, nbd.named("held")) * 3)
    acks = 0
    while acks < 3:
        acks += (await client.option()).kind == nbd.ACK
    for name, code in (("nobody", nbd.ERR_UNKNOWN), ("refused", nbd.ERR_POLICY), ("broken", nbd.ERR_UNKNOWN)):
        client.writer.write(nbd.option(nbd.GO, nbd.named(name)))
        reply = await client.option()
        assert reply.kind == code
        assert b"Zero" not in reply.data
    client.close()
    await until(lambda: not server.connections)
    assert export.opened == export.closed == 1


async def test_a_stale_socket_is_replaced_a_living_one_and_a_file_are_not(tmp_path: Path, disk: Path) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    first = NbdServer(FileProvider({"disk": disk}))
    await first.start_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = NbdServer(FileProvider({"disk": disk}))
    for place in (path, disk):
        with pytest.raises(DrengineError) as caught:
            await second.start_unix(place)
        assert caught.value.kind is NBD_LISTEN
    client = await Client.connect(str(path))
    await client.go()
    client.close()
    await second.close()
    assert path.exists()
    await first.close()
    assert not path.exists()


async def test_a_sockets_folder_is_made_and_a_closed_one_is_told(disk: Path, tmp_path: Path) -> None:
    server = NbdServer(FileProvider({"disk": disk}))
    path = await server.start_unix(tmp_path / "run/drengine/nbd.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.close()
    with pytest.raises(DrengineError, match="/dev/null") as caught:
        await server.start_unix(Path("/dev/null/nbd.sock"))
    assert caught.value.kind is NBD_LISTEN


async def test_tcp_peers_outside_the_allowed_networks_get_nothing(disk: Path) -> None:
    allowed: list[bool] = [False, True]
    peers: list[Peer] = []

    def allow(peer: Peer) -> bool:
        peers.append(peer)
        return allowed.pop(0)

    server = NbdServer(FileProvider({"disk": disk}), allow=allow)
    host, port = await server.start_tcp("127.0.0.1")
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    reader, writer = await asyncio.open_connection(host, port)
    assert (await reader.readexactly(8)) == b"NBDMAGIC"
    writer.close()
    assert {peer.address for peer in peers} == {"127.0.0.1"}
    assert server.stats.ended["outside-data-network"] == 1
    with pytest.raises(DrengineError):
        await server.start_tcp(host, port)
    await server.close(1)


@pytest.mark.fault(28)
async def test_an_odd_sized_file_is_byte_exact_to_its_last_byte(serve: Serve, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"q" * 100_001)
    _, path = await serve(FileProvider({"odd": odd}))
    client = await Client.connect(path)
    await client.go("odd")
    assert (await client.call(nbd.WRITE, 99_999, 0, data=b"ab")).error == 0
    assert (await client.call(nbd.READ, 99_998, 3)).content(99_998, 3) == b"qab"
    assert (await client.call(nbd.READ, 99_999, 3)).error == NbdError.EINVAL
    client.close()
    assert odd.stat().st_size == 100_001


@pytest.mark.fault(26)
async def test_a_file_that_shrank_gives_an_error_and_no_invented_bytes(tmp_path: Path) -> None:
    path = tmp_path / "shrinks"
    path.write_bytes(b"q" * 8192)
    export = FileExport(path)
    os.truncate(path, 4096)
    replies = export.submit([Request(nbd.READ, 0, 1, 0, 8192)], lambda replies: None)
    assert replies[0].error == NbdError.EIO
    export.close()


async def test_a_client_that_asks_for_much_at_once_takes_turns_with_others(serve: Serve, disk: Path) -> None:
    limits = NbdLimits(requests_in_turn_max=10, requests_in_flight_max=10)
    server, path = await serve(limits=limits)
    greedy, other = await Client.connect(path), await Client.connect(path)
    await greedy.go()
    await other.go()
    served = server.stats.requests
    count = 2000
    greedy.writer.write(b"".join(nbd.request(nbd.READ, number, number * 512, 512) for number in range(count)))
    await until(lambda: server.stats.requests > served)
    assert server.stats.requests - served < 100, "it left the loop after its turn"
    assert (await other.call(nbd.READ, 0, 512)).error == 0
    assert server.stats.requests - served < count
    for number in range(count):
        assert (await greedy.answer(number)).error == 0
    greedy.close()
    other.close()


async def test_a_slow_reader_gets_every_byte_and_is_asked_for_no_more_meanwhile(serve: Serve, disk: Path) -> None:
    content = os.urandom(DISK_BYTES)
    disk.write_bytes(content)  # noqa: ASYNC240
    server, path = await serve(limits=NbdLimits(bytes_in_flight_max=1 << 20))
    client = await Client.connect(path)
    await client.go()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    before, length, count = server.stats.requests, 512 << 10, 100
    places = [number * 4096 * 7 % (DISK_BYTES - length) for number in range(count)]
    for number, place in enumerate(places):
        client.ask(nbd.READ, number, place, length)
    await until(lambda: server.stats.requests > before)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert server.stats.requests - before < 20
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for number, place in enumerate(places):
        assert (await client.answer(number)).content(place, length) == content[place : place + length]
    client.close()


async def test_replies_that_wait_leave_before_the_connection_is_closed(serve: Serve, disk: Path) -> None:
    content = os.urandom(DISK_BYTES)
    disk.write_bytes(content)  # noqa: ASYNC240
    _, path = await serve()
    client = await Client.connect(path)
    await client.go()
    client.ask(nbd.READ, 1, 0, DISK_BYTES)
    client.ask(nbd.DISC, 2)
    assert (await client.answer(1)).content(0, DISK_BYTES) == content
    assert await client.reader.read() == b""
