"""Sessions over real sockets on loopback: data, back-pressure, silence, misbehaviour, ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from random import Random

import pytest

from drengine.model.errors import DrengineError
from drengine.model.extents import BLOCK_BYTES
from drengine.model.points import Cut, PointKind
from drengine.transport.endpoints import STRANGERS_MAX, connect, serve
from drengine.transport.errors import OUTSIDE_DATA_NETWORK, TIMED_OUT, UNREACHABLE, TransportError, reason_of
from drengine.transport.framed import FramedStream, StreamLimits
from drengine.transport.networks import DataNetworks
from drengine.wire import events as ev
from drengine.wire.connection import Connection, Role
from drengine.wire.errors import LocalProtocolError, RemoteProtocolError
from drengine.wire.frames import encode_frame
from drengine.wire.payload import verify_batch
from tests.clock import ManualClock
from tests.transport.peers import LOOPBACK, SECONDS, Counts, agent, obedient, target
from tests.wire.samples import GEOMETRY, HELLO, WELCOME, batch_of, joined, mark

MIB = 1 << 20
NOISE = Random(3).randbytes(MIB)


async def settle(clock: ManualClock, seconds: float, holds: Callable[[], bool] = lambda: False) -> None:
    """Let that much time pass in small steps, with the loop running in between, or until it holds."""
    for _ in range(40):
        for _ in range(20):
            await asyncio.sleep(0)
        if holds():
            return
        clock.advance(seconds / 40)
    for _ in range(20):
        await asyncio.sleep(0)


async def failure(stream: FramedStream) -> DrengineError:
    """Why a stream ends; what comes before is passed over."""
    with pytest.raises(DrengineError) as caught:
        async with asyncio.timeout(SECONDS):
            while True:
                await stream.receive()
    return caught.value


async def test_bulk_data_arrives_whole_and_is_counted() -> None:
    counts = Counts()
    writes = [(at, NOISE[at : at + BLOCK_BYTES]) for at in range(0, MIB, BLOCK_BYTES)]
    batch = batch_of(writes, level=None)
    async with target() as there:
        here = await agent(there.port, observer=counts)
        for sequence in range(11, 31):
            await here.send(ev.BatchEvent(sequence, mark(sequence), batch))
            assert await here.receive() == ev.Ack(sequence, mark(sequence))
            assert isinstance(await here.receive(), ev.Credit)
        await here.send(ev.Goodbye())
        await here.close()
        assert len(there.heard) == 21
        for event in there.heard[:-1]:
            assert isinstance(event, ev.BatchEvent)
            assert verify_batch(event.batch) == NOISE
        assert there.counts.received == counts.sent
        assert there.counts.sent == counts.received
        assert 20 * MIB < counts.sent["loopback"] < 20 * MIB + 50_000
        assert there.failures == []


async def test_many_senders_of_one_stream_do_not_mix_their_frames() -> None:
    async with target(limits=StreamLimits(write_pending_bytes=4096)) as there:
        here = await agent(there.port, limits=StreamLimits(write_pending_bytes=4096))
        await asyncio.gather(*(here.send(ev.Ping(number)) for number in range(500)))
        assert [await here.receive() for _ in range(500)] == [ev.Pong(number) for number in range(500)]
        here.abort()


def shrink(stream: FramedStream) -> None:
    """Let the kernel hold little for this stream, so that back-pressure is felt soon."""
    assert stream._transport is not None
    raw = stream._transport.get_extra_info("socket")
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        raw.setsockopt(socket.SOL_SOCKET, option, 65536)


@pytest.mark.fault(31)
async def test_a_target_that_is_slow_makes_the_agent_wait_instead_of_filling_memory() -> None:
    go_on = asyncio.Event()

    async def slow(stream: FramedStream, heard: list[ev.Event]) -> None:
        shrink(stream)
        await stream.receive()
        await stream.send(WELCOME)
        await go_on.wait()
        while not isinstance(event := await stream.receive(), ev.Goodbye):
            heard.append(event)

    limits = StreamLimits(events_pending_max=8, write_pending_bytes=65536)
    cuts = [ev.CutEvent(number, mark(number), Cut(0, PointKind.QUIET, "x" * 1000)) for number in range(11, 4011)]
    async with target(slow, limits=limits) as there:
        here = await agent(there.port, limits=limits)
        shrink(here)

        async def flood() -> None:
            for cut in cuts:
                await here.send(cut)
            await here.send(ev.Goodbye())

        flooding = asyncio.create_task(flood())
        await there.until(lambda: not here._writable.is_set() and not there.streams[0]._reading)
        assert len(there.streams[0].connection.events) < 8 + 16
        assert here._unsent() <= 65536 + 1100
        assert not flooding.done()
        go_on.set()
        async with asyncio.timeout(SECONDS):
            await flooding
            await here.close()
        await there.until(lambda: len(there.heard) == len(cuts))
        assert there.heard == cuts


@pytest.mark.fault(38)
@pytest.mark.parametrize("said", [b"", b"DREN", joined(Connection(Role.AGENT).send(HELLO))[:-1]])
async def test_a_peer_that_does_not_open_its_session_in_time_is_given_up(said: bytes) -> None:
    clock = ManualClock()
    async with target(clock=clock, limits=StreamLimits(opening_seconds=15)) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", there.port)
        writer.write(said)
        await there.until(lambda: bool(there.streams))
        await settle(clock, 14.0)
        assert there.failures == []
        await settle(clock, 20.0, lambda: bool(there.failures))
        assert there.failures == ["opening-timeout"]
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()


@pytest.mark.fault(38)
async def test_an_agent_gives_up_a_target_that_never_welcomes_it() -> None:
    async def mute(_: FramedStream, __: list[ev.Event]) -> None:
        await asyncio.sleep(SECONDS)

    clock = ManualClock()
    async with target(mute) as there:
        here = await agent(there.port, clock=clock, greet=False)
        await here.send(HELLO)
        waiting = asyncio.create_task(failure(here))
        await settle(clock, 40.0, waiting.done)
        error = await waiting
        assert (error.kind, reason_of(error)) == (TIMED_OUT, "opening-timeout")
        for stream in there.streams:
            stream.abort()
        for session in there.listener._sessions:
            session.cancel()


@pytest.mark.fault(34)
async def test_a_half_open_connection_is_given_up_after_the_idle_time() -> None:
    """The agent's host is gone: no FIN, no RST, nothing more is ever heard."""
    clock = ManualClock()
    async with target(clock=clock, limits=StreamLimits(idle_seconds=20)) as there:
        here = await agent(there.port)
        await settle(clock, 19.0)
        assert there.failures == []
        await settle(clock, 20.0, lambda: bool(there.failures))
        assert there.failures == ["silent"]
        here.abort()


@pytest.mark.fault(34)
async def test_a_frame_that_stops_in_the_middle_is_given_up_and_leaves_nothing() -> None:
    clock = ManualClock()
    async with target(clock=clock) as there:
        here = await agent(there.port)
        assert here._transport is not None
        batch = batch_of([(0, NOISE[:BLOCK_BYTES])], level=None)
        here._transport.write(joined(here.connection.send(ev.BatchEvent(11, mark(1), batch)))[:-1])
        await settle(clock, 50.0, lambda: bool(there.failures))
        assert there.failures == ["silent"]
        assert there.heard == []
        here.abort()


async def test_a_session_with_pings_lives_as_long_as_it_likes() -> None:
    clock = ManualClock()
    async with target(clock=clock, limits=StreamLimits(idle_seconds=20)) as there:
        here = await agent(there.port)
        for number in range(20):
            await settle(clock, 10.0)
            await here.send(ev.Ping(number))
            assert await here.receive() == ev.Pong(number)
        assert there.failures == []
        here.abort()


@pytest.mark.fault(34)
async def test_a_peer_that_talks_but_takes_nothing_is_given_up() -> None:
    async def chatty(stream: FramedStream, _: list[ev.Event]) -> None:
        shrink(stream)
        await stream.receive()
        await stream.send(WELCOME)
        while True:
            await stream.send(ev.Resend(1, 0, 1))

    clock = ManualClock()
    async with target(chatty, clock=clock, limits=StreamLimits(write_pending_bytes=65536)) as there:
        here = await agent(there.port)
        shrink(here)
        here._set_reading(False)
        await there.until(lambda: bool(there.streams) and not there.streams[0]._writable.is_set())
        for number in range(12):
            with contextlib.suppress(TransportError):
                await here.send(ev.Ping(number))
            await settle(clock, 5.0, lambda: bool(there.failures))
        assert there.failures == ["stalled"]
        here.abort()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n" + bytes(64), b"\0" * 32, b"\xff" * 5000])
async def test_nonsense_ends_its_own_session_with_a_reason_and_no_other(said: bytes) -> None:
    async with target() as there:
        here = await agent(there.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", there.port)
        writer.write(said)
        async with asyncio.timeout(SECONDS):
            answer = await reader.read()
        writer.close()
        (told,) = Connection(Role.AGENT).receive(answer)
        assert isinstance(told, ev.Refuse)
        assert told.code == "bad-magic"
        assert there.failures == ["bad-magic"]
        await here.send(ev.Ping(1))
        assert await here.receive() == ev.Pong(1)
        here.abort()


@pytest.mark.fault(32)
@pytest.mark.fault(33)
async def test_a_repeated_frame_is_refused_and_what_came_before_is_heard() -> None:
    async with target() as there:
        here = await agent(there.port)
        assert here._transport is not None
        data = joined(here.connection.send(GEOMETRY))
        here._transport.write(data + data)
        told = await here.receive()
        assert isinstance(told, ev.Refuse)
        assert told.code == "bad-sequence"
        assert told.retryable
        await here.close()
        assert there.heard == [GEOMETRY]
        assert there.failures == ["bad-sequence"]


async def test_a_target_that_breaks_the_protocol_is_refused_by_the_agent() -> None:
    async def liar(stream: FramedStream, heard: list[ev.Event]) -> None:
        await stream.receive()
        await stream.send(WELCOME)
        assert stream._transport is not None
        stream._transport.write(joined(encode_frame(ev.Ack(99, mark(1)), 2)))
        heard.append(await stream.receive())

    async with target(liar) as there:
        here = await agent(there.port)
        with pytest.raises(RemoteProtocolError) as caught:
            await here.receive()
        assert caught.value.reason == "bad-position"
        with pytest.raises(RemoteProtocolError):
            await here.send(ev.Ping(1))
        await here.refuse(caught.value)
        await there.until(lambda: bool(there.heard))
        assert isinstance(there.heard[0], ev.Refuse)
        assert there.heard[0].code == "bad-position"


async def test_a_peer_is_told_why_even_when_it_was_still_talking() -> None:
    """Closing a socket with unread bytes resets it, which could destroy the last word."""

    async def full(stream: FramedStream, _: list[ev.Event]) -> None:
        await stream.receive()
        await stream.send(WELCOME)
        await stream.receive()
        stream._set_reading(False)
        await there.until(lambda: sent)
        raise DrengineError(OUTSIDE_DATA_NETWORK, "for example")

    sent = False
    async with target(full) as there:
        here = await agent(there.port)
        here._set_reading(False)  # it is busy reading its disk
        await here.send(GEOMETRY)
        await there.until(lambda: not there.streams[0]._reading)
        await here.send(ev.CutEvent(12, mark(12), Cut(0, PointKind.QUIET)))
        sent = True
        await there.until(lambda: bool(there.failures))
        for _ in range(20):
            await asyncio.sleep(0)
        await here.send(ev.CutEvent(13, mark(13), Cut(0, PointKind.QUIET)))
        await here.send(ev.CutEvent(14, mark(14), Cut(0, PointKind.QUIET)))
        here._set_reading(True)
        assert await here.receive() == ev.Refuse("outside-data-network", "for example", True)
        await here.close()
        assert there.failures == ["outside-data-network"]


async def test_a_defect_in_one_session_is_logged_and_disturbs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def fragile(stream: FramedStream, heard: list[ev.Event]) -> None:
        if len(there.streams) == 2:
            raise ZeroDivisionError
        await obedient(stream, heard)

    async with target(fragile) as there:
        here = await agent(there.port)
        with pytest.raises(DrengineError):
            await agent(there.port)
        await here.send(ev.Ping(1))
        assert await here.receive() == ev.Pong(1)
        here.abort()
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.fault(34)
async def test_a_peer_that_dies_is_a_break_to_retry_and_not_a_fault_of_the_protocol() -> None:
    async def dies(stream: FramedStream, _: list[ev.Event]) -> None:
        await stream.receive()
        await stream.send(WELCOME)

    async with target(dies) as there:
        here = await agent(there.port)
        error = await failure(here)
        assert (error.kind, reason_of(error)) == (UNREACHABLE, "truncated")
        assert error.kind.retryable
        with pytest.raises(TransportError):
            await here.send(ev.Ping(1))
        await here.close()
        await here.close()


@pytest.mark.fault(34)
async def test_a_reset_is_a_break_to_retry() -> None:
    async with target() as there:
        here = await agent(there.port)
        assert here._transport is not None
        raw = here._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        here.abort()
        await there.until(lambda: bool(there.failures))
        assert there.failures == ["broken"]


async def test_a_goodbye_overtakes_no_answer_and_makes_none_an_error() -> None:
    """The agent says goodbye at once; the target still works on what came before, and acknowledges into the void."""

    async def careful(stream: FramedStream, heard: list[ev.Event]) -> None:
        await stream.receive()
        await stream.send(WELCOME)
        await there.until(lambda: len(stream.connection.events) == 2)
        heard.append(await stream.receive())
        await stream.send(ev.Ack(11, GEOMETRY.mark))
        heard.append(await stream.receive())

    async with target(careful) as there:
        here = await agent(there.port)
        await here.send(GEOMETRY)
        await here.send(ev.Goodbye())
        await here.close()
        with pytest.raises(DrengineError):
            await here.send(ev.Ping(1))
        await there.until(lambda: len(there.heard) == 2)
        assert there.heard == [GEOMETRY, ev.Goodbye()]
        assert there.failures == []


async def test_what_is_not_legal_now_is_not_sent() -> None:
    async with target() as there:
        here = await agent(there.port)
        with pytest.raises(LocalProtocolError):
            await here.send(ev.Ack(1, mark(1)))
        await here.send(ev.Ping(1))
        assert await here.receive() == ev.Pong(1)
        here.abort()


@pytest.mark.fault(38)
async def test_connections_are_capped_and_one_that_ends_makes_room() -> None:
    async with target(connections_max=2) as there:
        first, second = await agent(there.port), await agent(there.port)
        with pytest.raises(DrengineError):
            await agent(there.port)
        assert there.failures == ["too-many-connections"]
        await first.send(ev.Goodbye())
        await first.close()
        await there.until(lambda: len(there.listener._sessions) == 1)
        third = await agent(there.port)
        for stream in (second, third):
            await stream.send(ev.Ping(1))
            assert await stream.receive() == ev.Pong(1)
            stream.abort()


@pytest.mark.fault(38)
async def test_a_peer_that_resets_while_it_is_refused_leaves_no_failed_task() -> None:
    sessions: list[asyncio.Task[None]] = []
    with socket.socket() as rude:

        async def refuse(stream: FramedStream, _: list[ev.Event]) -> None:
            sessions.extend(task for task in (asyncio.current_task(),) if task)
            await stream.receive()
            rude.close()  # so what we say is answered by a reset, before the loop looks at the socket again
            raise TransportError(UNREACHABLE, "unreachable", "for a test")

        async with target(refuse) as there:
            rude.connect(("127.0.0.1", there.port))
            rude.sendall(b"".join(map(bytes, Connection(Role.AGENT).send(HELLO))))
            await there.until(lambda: there.failures)
            assert await asyncio.gather(*sessions, return_exceptions=True) == [None]
            assert there.failures == ["unreachable"]


@pytest.mark.fault(71)
async def test_silent_connections_keep_nobody_out() -> None:
    async with target(connections_max=2) as there:
        session = await agent(there.port)
        silent = [await agent(there.port, greet=False) for _ in range(2 * STRANGERS_MAX)]
        late = await agent(there.port)
        for stream in (session, late):
            await stream.send(ev.Ping(1))
            assert await stream.receive() == ev.Pong(1)
        await there.until(lambda: len(there.failures) > STRANGERS_MAX)
        assert set(there.failures) == {"too-many-connections"}
        assert len(there.listener._guests) <= STRANGERS_MAX + 2
        for stream in (session, late, *silent):
            stream.abort()


async def test_a_peer_outside_the_data_networks_is_turned_away_before_any_byte() -> None:
    class Nowhere(DataNetworks):
        def label(self, peer: str) -> str:
            raise TransportError(OUTSIDE_DATA_NETWORK, "outside-data-network", peer)

    reasons: list[str] = []
    handled: list[FramedStream] = []

    async def handler(stream: FramedStream) -> None:
        handled.append(stream)

    def failed(error: DrengineError) -> None:
        reasons.append(reason_of(error))

    listener = await serve("127.0.0.1", 0, handler, networks=Nowhere(), tls=None, failed=failed)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    async with asyncio.timeout(SECONDS):
        assert await reader.read() == b""
    writer.close()
    assert reasons == ["outside-data-network"]
    assert handled == []
    listener.close()
    await listener.wait_closed()


async def test_a_closed_listener_lets_sessions_go_on_and_its_port_go() -> None:
    async with target() as there:
        here = await agent(there.port)
        port = there.port
        there.listener.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(DrengineError):
            await connect("127.0.0.1", port, networks=LOOPBACK, tls=None)
        await here.send(ev.Ping(1))
        assert await here.receive() == ev.Pong(1)
        with socket.create_server(("127.0.0.1", port)):
            pass
        await here.send(ev.Goodbye())
        await here.close()
        async with asyncio.timeout(SECONDS):
            await there.listener.wait_closed()


async def test_a_listener_survives_when_no_more_files_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    accept = loop.sock_accept
    refusals = [OSError(24, "Too many open files")]

    async def failing(sock: socket.socket) -> tuple[socket.socket, object]:
        if refusals:
            raise refusals.pop()
        return await accept(sock)

    monkeypatch.setattr(loop, "sock_accept", failing)
    clock = ManualClock()
    async with target(clock=clock) as there:
        await settle(clock, 3.0, lambda: not refusals)
        await settle(clock, 3.0)
        here = await agent(there.port)
        await here.send(ev.Ping(1))
        assert await here.receive() == ev.Pong(1)
        here.abort()


async def test_ipv6_loopback_is_served() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        probe = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error}")
    probe.close()
    async with target(host="::1") as there:
        stream = await connect("::1", there.port, networks=LOOPBACK, tls=None)
        await stream.send(HELLO)
        assert await stream.receive() == WELCOME
        assert (stream.network, there.streams[0].network) == ("loopback", "loopback")
        stream.abort()
