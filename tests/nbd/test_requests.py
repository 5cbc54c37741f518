"""Transmission without sockets: requests whole, torn, false and too many; replies simple and structured."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.nbd.errors import NBD_LIMIT, NBD_PROTOCOL
from drengine.nbd.export import (
    STATUS_HOLE,
    STATUS_ZERO,
    Buffer,
    ExportInfo,
    NbdError,
    Reply,
    Request,
)
from drengine.nbd.limits import NbdLimits
from drengine.nbd.protocol import Ended, Event, Requests, ServerConnection, StatusWanted
from tests.nbd import wire as nbd

SIZE = 8 << 20
DISK = ExportInfo("disk", SIZE, can_cache=True, can_fast_zero=True)
SMALL = NbdLimits(receive_buffer_bytes=16 << 10)


@dataclass
class Seen:
    """A request with its payload copied while it was valid."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    data: bytes | None


@dataclass
class Wire:
    """A connection in transmission, fed by hand."""

    core: ServerConnection
    seen: list[Seen] = field(default_factory=list)
    held: list[Request] = field(default_factory=list)
    status: list[Request] = field(default_factory=list)
    ended: bool = False

    def feed(self, data: bytes) -> None:
        while data:
            room = self.core.get_buffer()
            taken = min(len(room), len(data))
            room[:taken] = data[:taken]
            data = data[taken:]
            self.note(self.core.received(taken))
            while events := self.core.parse():
                self.note(events)

    def note(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Requests(requests):
                    for r in requests:
                        data = None if r.data is None else bytes(r.data)
                        self.seen.append(Seen(r.command, r.flags, r.cookie, r.offset, r.length, data))
                    self.held += requests
                case StatusWanted(request):
                    self.status.append(request)
                case Ended():
                    self.ended = True
                case _:
                    pytest.fail(f"unexpected {event}")

    def refusals(self) -> dict[int, nbd.Answer]:
        reader = nbd.ReplyReader()
        reader.feed(b"".join(self.core.data_to_send()))
        assert reader.buffer == b""
        return reader.answers


def transmitting(
    info: ExportInfo = DISK,
    limits: NbdLimits | None = None,
    *,
    structured: bool = True,
    inline: bool = True,
) -> Wire:
    core = ServerConnection(limits or NbdLimits())
    core.receive(nbd.client_flags())
    if structured:
        core.receive(nbd.option(nbd.STRUCTURED))
        core.receive(nbd.option(nbd.SET_META, nbd.contexts("disk", "base:allocation")))
        core.export_found(info, inline=inline)
    core.receive(nbd.option(nbd.GO, nbd.named("disk")))
    assert core.export_found(info, inline=inline)
    core.data_to_send()
    return Wire(core)


def error_of(data: bytes, info: ExportInfo = DISK, *, structured: bool = True) -> int:
    """What a single request earns; 0 when the export gets it."""
    wire = transmitting(info, structured=structured)
    wire.feed(data)
    # Whatever happened to it, the next request is understood: the payload of a refused write was skipped.
    wire.feed(nbd.request(nbd.READ, 99, 0, 512))
    assert wire.seen[-1].cookie == 99
    answers = wire.refusals()
    assert len(wire.seen) + len(answers) == 2
    return answers[7].error if answers else 0


@pytest.mark.parametrize(
    ("request_bytes", "error"),
    [
        (nbd.request(nbd.READ, 7, 0, SIZE), 0),
        (nbd.request(nbd.READ, 7, SIZE - 1, 1), 0),
        (nbd.request(nbd.READ, 7, SIZE - 1, 2), NbdError.EINVAL),
        (nbd.request(nbd.READ, 7, 2**64 - 1, 1), NbdError.EINVAL),
        (nbd.request(nbd.READ, 7, 0, 0), NbdError.EINVAL),
        (nbd.request(nbd.READ, 7, 0, 1, flags=nbd.DF), 0),
        (nbd.request(nbd.READ, 7, 0, 1, flags=nbd.NO_HOLE), NbdError.EINVAL),
        (nbd.request(nbd.WRITE, 7, SIZE - 2, data=b"ab"), 0),
        (nbd.request(nbd.WRITE, 7, SIZE - 1, data=b"ab"), NbdError.ENOSPC),
        (nbd.request(nbd.WRITE, 7, 2**64 - 1, data=b"ab"), NbdError.ENOSPC),
        (nbd.request(nbd.WRITE, 7, 0, data=b""), NbdError.EINVAL),
        (nbd.request(nbd.WRITE, 7, 0, data=b"ab", flags=nbd.FUA), 0),
        (nbd.request(nbd.WRITE, 7, 0, data=b"ab", flags=nbd.DF), NbdError.EINVAL),
        (nbd.request(nbd.WRITE, 7, 0, data=b"ab", flags=0x8000), NbdError.EINVAL),
        (nbd.request(nbd.FLUSH, 7), 0),
        (nbd.request(nbd.FLUSH, 7, 0, 1), NbdError.EINVAL),
        (nbd.request(nbd.TRIM, 7, 0, SIZE), 0),
        (nbd.request(nbd.TRIM, 7, 1, SIZE), NbdError.ENOSPC),
        (nbd.request(nbd.TRIM, 7, 0, 0xFFFFFFFF), NbdError.ENOSPC),
        (nbd.request(nbd.ZERO, 7, 0, 512, flags=nbd.NO_HOLE | nbd.FUA | nbd.FAST_ZERO), 0),
        (nbd.request(nbd.ZERO, 7, 0, 512, flags=nbd.REQ_ONE), NbdError.EINVAL),
        (nbd.request(nbd.CACHE, 7, 0, 512), 0),
        (nbd.request(nbd.STATUS, 7, 0, 0), NbdError.EINVAL),
        (nbd.request(nbd.STATUS, 7, SIZE, 1), NbdError.EINVAL),
        (nbd.request(8, 7, 0, 512), NbdError.EINVAL),
        (nbd.request(0xFFFF, 7, 0, 512), NbdError.EINVAL),
    ],
)
@pytest.mark.fault(36)
def test_each_request_is_served_or_refused_as_the_protocol_says(request_bytes: bytes, error: int) -> None:
    assert error_of(request_bytes) == error


@pytest.mark.parametrize("command", [nbd.WRITE, nbd.TRIM, nbd.ZERO])
def test_a_read_only_export_never_sees_a_write(command: int) -> None:
    data = b"x" * 512 if command == nbd.WRITE else b""
    bad = nbd.request(command, 7, 0, 512, data)
    assert error_of(bad, ExportInfo("disk", SIZE, read_only=True)) == NbdError.EPERM


@pytest.mark.parametrize(
    ("info", "bad"),
    [
        (ExportInfo("disk", SIZE, can_flush=False), nbd.request(nbd.FLUSH, 7)),
        (ExportInfo("disk", SIZE, can_fua=False), nbd.request(nbd.WRITE, 7, 0, data=b"x", flags=nbd.FUA)),
        (ExportInfo("disk", SIZE, can_trim=False), nbd.request(nbd.TRIM, 7, 0, 512)),
        (ExportInfo("disk", SIZE, can_zero=False), nbd.request(nbd.ZERO, 7, 0, 512)),
        (ExportInfo("disk", SIZE), nbd.request(nbd.ZERO, 7, 0, 512, flags=nbd.FAST_ZERO)),
        (ExportInfo("disk", SIZE), nbd.request(nbd.CACHE, 7, 0, 512)),
        (ExportInfo("disk", SIZE, can_block_status=False), nbd.request(nbd.STATUS, 7, 0, 512)),
        (ExportInfo("disk", SIZE, block_bytes_min=512), nbd.request(nbd.WRITE, 7, 0, data=b"x")),
        (ExportInfo("disk", SIZE, block_bytes_min=512), nbd.request(nbd.READ, 7, 1, 512)),
    ],
)
def test_what_was_not_offered_is_refused(info: ExportInfo, bad: bytes) -> None:
    if info.block_bytes_min == 1:
        assert error_of(bad, info) == NbdError.EINVAL
    else:
        wire = transmitting(info)
        wire.feed(bad)
        assert wire.seen == []
        assert wire.refusals()[7].error == NbdError.EINVAL


def test_df_and_block_status_need_structured_replies() -> None:
    wire = transmitting(structured=False)
    wire.feed(nbd.request(nbd.READ, 1, 0, 1, flags=nbd.DF) + nbd.request(nbd.STATUS, 2, 0, 1))
    assert {cookie: a.error for cookie, a in wire.refusals().items()} == {1: NbdError.EINVAL, 2: NbdError.EINVAL}


@pytest.mark.fault(36)
@pytest.mark.parametrize("length", [(32 << 20) + 1, 0x80000000, 0xFFFFFFFF])
def test_an_oversize_write_ends_the_connection_before_memory_is_taken(length: int) -> None:
    wire = transmitting()
    with pytest.raises(DrengineError) as caught:
        wire.feed(nbd.request(nbd.WRITE, 1, 0, length))
    assert caught.value.kind is NBD_LIMIT


def test_an_oversize_read_is_refused_and_the_connection_goes_on() -> None:
    wire = transmitting(ExportInfo("disk", 1 << 40))
    wire.feed(nbd.request(nbd.READ, 1, 0, (32 << 20) + 1) + nbd.request(nbd.READ, 2, 0, 32 << 20))
    assert wire.refusals()[1].error == NbdError.EOVERFLOW
    assert [seen.cookie for seen in wire.seen] == [2]


def test_a_wrong_magic_ends_the_connection() -> None:
    wire = transmitting()
    with pytest.raises(DrengineError) as caught:
        wire.feed(bytes(28))
    assert caught.value.kind is NBD_PROTOCOL


def test_after_disc_nothing_more_is_parsed() -> None:
    wire = transmitting()
    wire.feed(nbd.request(nbd.READ, 1, 0, 512) + nbd.request(nbd.DISC) + nbd.request(nbd.READ, 2, 0, 512))
    assert [seen.cookie for seen in wire.seen] == [1]
    assert wire.ended
    assert wire.core.ended


def test_while_draining_requests_are_refused_and_their_payload_skipped() -> None:
    wire = transmitting()
    wire.feed(nbd.request(nbd.WRITE, 1, 0, data=b"x" * 100))
    wire.core.drain()
    wire.feed(nbd.request(nbd.WRITE, 2, 0, data=b"x" * 70_000) + nbd.request(nbd.FLUSH, 3))
    assert {cookie: a.error for cookie, a in wire.refusals().items()} == {
        2: NbdError.ESHUTDOWN,
        3: NbdError.ESHUTDOWN,
    }
    assert [seen.cookie for seen in wire.seen] == [1]


# A stream of legal and refused requests, cut anywhere, always means the same.


def _random_stream(rng: random.Random) -> tuple[bytes, list[Seen], dict[int, int]]:
    stream, expected = b"", []
    refused: dict[int, int] = {}
    for cookie in range(rng.randrange(1, 12)):
        kind = rng.randrange(6)
        length = rng.choice((1, 511, 512, 4096, 9000, 40_000, 70_000))
        offset = rng.randrange(SIZE - length)
        if kind <= 2:
            data = rng.randbytes(length)
            flags = rng.choice((0, nbd.FUA))
            stream += nbd.request(nbd.WRITE, cookie, offset, data=data, flags=flags)
            expected.append(Seen(nbd.WRITE, flags, cookie, offset, length, data))
        elif kind == 3:
            stream += nbd.request(nbd.WRITE, cookie, SIZE, data=rng.randbytes(length))
            refused[cookie] = NbdError.ENOSPC
        elif kind == 4:
            command = rng.choice((nbd.READ, nbd.TRIM, nbd.ZERO, nbd.CACHE))
            stream += nbd.request(command, cookie, offset, length)
            expected.append(Seen(command, 0, cookie, offset, length, None))
        else:
            stream += nbd.request(nbd.READ, cookie, 0, 0)
            refused[cookie] = NbdError.EINVAL
    return stream, expected, refused


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 48), st.booleans(), st.booleans())
def test_a_stream_cut_anywhere_means_the_same(seed: int, inline: bool, structured: bool) -> None:
    rng = random.Random(seed)
    stream, expected, refused = _random_stream(rng)
    wire = transmitting(limits=SMALL, inline=inline, structured=structured)
    tail = nbd.request(nbd.WRITE, 77, 0, data=b"unfinished")[:-1]
    stream += tail
    while stream:
        size = rng.choice((1, 27, 28, 29, 5000, 100_000, rng.randrange(1, 60_000)))
        wire.feed(stream[:size])
        stream = stream[size:]
    assert wire.seen == expected
    assert {cookie: answer.error for cookie, answer in wire.refusals().items()} == refused
    assert wire.core.requests_in_flight == len(expected)
    assert wire.core.bytes_in_flight == sum(s.length for s in expected if s.command in (nbd.READ, nbd.WRITE))
    wire.feed(b"d")
    assert wire.seen[-1].data == b"unfinished"


def test_byte_by_byte_is_no_different() -> None:
    rng = random.Random(3)
    stream, expected, _ = _random_stream(rng)
    wire = transmitting(limits=SMALL)
    for index in range(len(stream)):
        wire.feed(stream[index : index + 1])
    assert wire.seen == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 48))
def test_no_bytes_make_transmission_fail_otherwise_than_typed(seed: int) -> None:
    rng = random.Random(seed)
    stream = bytearray(_random_stream(rng)[0])
    for _ in range(rng.randrange(1, 8)):
        stream[rng.randrange(min(len(stream), 60))] = rng.choice((0, 1, 6, 7, 0xFF, rng.randrange(256)))
    wire = transmitting(limits=SMALL)
    try:
        while stream and not wire.core.ended:
            size = rng.randrange(1, 30_000)
            wire.feed(bytes(stream[:size]))
            del stream[:size]
    except DrengineError as error:
        assert error.kind in (NBD_LIMIT, NBD_PROTOCOL)
    for request in wire.held:
        assert request.offset + request.length <= SIZE
        assert request.command == nbd.FLUSH or request.length > 0


def test_payloads_for_an_asynchronous_export_survive_later_reads() -> None:
    wire = transmitting(limits=SMALL, inline=False)
    wire.feed(nbd.request(nbd.WRITE, 1, 0, data=b"first" * 100))
    wire.feed(nbd.request(nbd.WRITE, 2, 0, data=b"other" * 100))
    assert bytes(wire.held[0].data or b"") == b"first" * 100


def test_requests_in_flight_are_bounded_and_parsing_goes_on_after_an_answer() -> None:
    wire = transmitting(limits=NbdLimits(requests_in_flight_max=3))
    wire.feed(b"".join(nbd.request(nbd.READ, cookie, 0, 512) for cookie in range(5)))
    assert len(wire.held) == 3
    assert wire.core.blocked
    wire.core.reply([Reply(wire.held[1], 0, bytes(512))])
    assert not wire.core.blocked
    wire.note(wire.core.parse())
    assert [seen.cookie for seen in wire.seen] == [0, 1, 2, 3]
    assert wire.core.blocked


def test_bytes_in_flight_are_bounded_but_for_one_request() -> None:
    wire = transmitting(limits=NbdLimits(bytes_in_flight_max=1 << 20))
    wire.feed(b"".join(nbd.request(nbd.READ, cookie, 0, 700 << 10) for cookie in range(4)))
    assert [seen.cookie for seen in wire.seen] == [0, 1]
    assert wire.core.blocked
    wire.core.reply([Reply(wire.held[0], 0, bytes(700 << 10))])
    wire.note(wire.core.parse())
    assert [seen.cookie for seen in wire.seen] == [0, 1, 2]


def test_a_client_that_goes_inside_a_long_payload_leaves_nothing_in_flight() -> None:
    wire = transmitting()
    wire.feed(nbd.request(nbd.WRITE, 1, 0, 1 << 20, b"x" * 100_000))
    wire.feed(b"y" * 300_000)
    assert wire.core.requests_in_flight == 1
    wire.core.eof()
    assert wire.core.requests_in_flight == 0
    assert wire.core.bytes_in_flight == 0


# Replies.


def answered(wire: Wire, buffers: list[Buffer], *, simple: bool = False) -> dict[int, nbd.Answer]:
    reads = {r.cookie: (r.offset, r.length) for r in wire.held if simple and r.command == nbd.READ}
    reader = nbd.ReplyReader(reads)
    reader.feed(b"".join(buffers))
    assert reader.buffer == b""
    assert all(answer.done for answer in reader.answers.values())
    return reader.answers


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("length", [1, 4096, 100_000])
def test_reads_carry_their_bytes_whether_short_or_long(structured: bool, length: int) -> None:
    wire = transmitting(structured=structured)
    wire.feed(nbd.request(nbd.READ, 1, 10, length) + nbd.request(nbd.WRITE, 2, 0, data=b"x"))
    content = random.Random(length).randbytes(length)
    buffers = wire.core.reply([Reply(wire.held[0], 0, content), Reply(wire.held[1])])
    answers = answered(wire, buffers, simple=not structured)
    assert answers[1].content(10, length) == content
    assert answers[2] == nbd.Answer(done=True, chunks=0)
    assert wire.core.requests_in_flight == 0
    assert wire.core.bytes_in_flight == 0


@pytest.mark.fault(24)
@pytest.mark.parametrize(("flags", "holes", "chunks"), [(0, [(1100, 5000)], 3), (nbd.DF, [], 1)])
def test_holes_travel_as_holes_unless_one_piece_is_wanted(flags: int, holes: object, chunks: int) -> None:
    wire = transmitting()
    wire.feed(nbd.request(nbd.READ, 1, 1000, 5150, flags=flags))
    pieces = [(100, b"a" * 100), (5000, None), (50, b"b" * 50)]
    answer = answered(wire, wire.core.reply([Reply(wire.held[0], pieces=pieces)]))[1]
    assert answer.holes == holes
    assert answer.chunks == chunks
    assert answer.content(1000, 5150) == b"a" * 100 + bytes(5000) + b"b" * 50


@pytest.mark.fault(24)
def test_holes_are_zeros_for_a_client_without_structured_replies() -> None:
    wire = transmitting(structured=False)
    wire.feed(nbd.request(nbd.READ, 1, 0, 300))
    buffers = wire.core.reply([Reply(wire.held[0], pieces=[(200, None), (100, b"z" * 100)])])
    assert answered(wire, buffers, simple=True)[1].content(0, 300) == bytes(200) + b"z" * 100


def test_errors_carry_a_message_where_the_client_can_read_it() -> None:
    for structured, message in ((True, "disk on fire"), (False, "")):
        wire = transmitting(structured=structured)
        wire.feed(nbd.request(nbd.READ, 1, 0, 512))
        buffers = wire.core.reply([Reply(wire.held[0], NbdError.EIO, message="disk on fire")])
        answer = answered(wire, buffers, simple=True)[1]
        assert (answer.error, answer.message) == (NbdError.EIO, message)


def test_answering_twice_or_with_another_length_is_a_defect() -> None:
    wire = transmitting()
    wire.feed(nbd.request(nbd.READ, 1, 0, 512) + nbd.request(nbd.READ, 2, 0, 512) + nbd.request(nbd.READ, 3, 0, 5))
    wire.core.reply([Reply(wire.held[0], 0, bytes(512))])
    with pytest.raises(ValueError, match="twice"):
        wire.core.reply([Reply(wire.held[0], 0, bytes(512))])
    with pytest.raises(ValueError, match="length"):
        wire.core.reply([Reply(wire.held[1], 0, bytes(511))])
    with pytest.raises(ValueError, match="length"):
        wire.core.reply([Reply(wire.held[2], pieces=[(5, b"four")])])


@pytest.mark.parametrize(
    ("extents", "flags", "expected"),
    [
        ([(1000, 0)], 0, [(1000, 0)]),
        ([(5000, 0)], 0, [(1000, 0)]),
        ([(100, 0), (100, 0), (2000, 3)], 0, [(200, 0), (800, 3)]),
        ([(100, 0), (100, 0), (2000, 3)], nbd.REQ_ONE, [(200, 0)]),
        ([(10, 0), (20, 3)], 0, [(10, 0), (20, 3)]),
        ([(10, n % 2) for n in range(50)], 0, [(10, n % 2) for n in range(8)]),
    ],
)
def test_block_status_merges_clips_and_caps(
    extents: list[tuple[int, int]], flags: int, expected: list[tuple[int, int]]
) -> None:
    assert STATUS_HOLE | STATUS_ZERO == 3
    wire = transmitting(limits=NbdLimits(extents_max=8))
    wire.feed(nbd.request(nbd.STATUS, 1, 0, 1000, flags=flags))
    assert wire.core.requests_in_flight == 1
    answer = answered(wire, wire.core.reply_status(wire.status[0], extents))[1]
    assert answer.extents == expected
    assert wire.core.requests_in_flight == 0
