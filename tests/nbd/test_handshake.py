"""The handshake without sockets: every option, right and wrong, and what TLS must not let through."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.nbd.errors import NBD_LIMIT, NBD_PROTOCOL
from drengine.nbd.export import ExportInfo
from drengine.nbd.handshake import ExportWanted, NamesWanted, TlsPolicy, TlsWanted
from drengine.nbd.limits import NbdLimits
from drengine.nbd.numbers import OptionReply
from drengine.nbd.protocol import Ended, Event, ServerConnection
from tests.nbd import wire as nbd

DISK = ExportInfo("src/disk@1-5", 1 << 20, description="a disk")


class Shell:
    """Answers the core's questions at once, as the asyncio shell would."""

    def __init__(self, tls: TlsPolicy = TlsPolicy.OFF, limits: NbdLimits | None = None, info: ExportInfo = DISK):
        self.core = ServerConnection(limits or NbdLimits(), tls)
        self.info = info
        self.sent = b""
        self.events: list[Event] = []
        self._take()

    def _take(self) -> None:
        self.sent += b"".join(self.core.data_to_send())

    def feed(self, data: bytes) -> bytes:
        """What is answered to `data`."""
        self.sent = b""
        try:
            events = self.core.receive(data)
            while events:
                for event in events:
                    self.events.append(event)
                    if isinstance(event, NamesWanted):
                        self.core.send_names([self.info.name, "other"])
                    elif isinstance(event, ExportWanted) and event.name == self.info.name:
                        self.core.export_found(self.info, inline=True)
                    elif isinstance(event, ExportWanted):
                        self.core.export_refused(OptionReply.ERR_UNKNOWN, "no such export")
                    elif isinstance(event, TlsWanted):
                        self.core.tls_started()
                events = self.core.parse()
        finally:
            self._take()
        return self.sent

    def kinds(self, data: bytes) -> list[int]:
        return [reply.kind for reply in nbd.option_replies(self.feed(data))]


def greeted(**kwargs: object) -> Shell:
    shell = Shell(**kwargs)  # type: ignore[arg-type]
    assert shell.sent == b"NBDMAGICIHAVEOPT" + b"\0\3"
    shell.feed(nbd.client_flags())
    return shell


def test_go_tells_size_flags_and_block_sizes_and_begins_transmission() -> None:
    shell = greeted()
    replies = nbd.option_replies(shell.feed(nbd.option(nbd.GO, nbd.named(DISK.name, (1, 2, 3)))))
    assert [reply.kind for reply in replies] == [nbd.REP_INFO] * 4 + [nbd.ACK]
    infos = {struct.unpack(">H", reply.data[:2])[0]: reply.data[2:] for reply in replies[:-1]}
    size, flags = struct.unpack(">QH", infos[0])
    assert size == 1 << 20
    assert flags == 1 | 4 | 8 | 32 | 64 | 256
    assert struct.unpack(">III", infos[3]) == (1, 4096, 32 << 20)
    assert infos[1] == DISK.name.encode()
    assert infos[2] == b"a disk"
    assert shell.core.transmitting


@pytest.mark.fault(76)
def test_clients_are_told_the_sectors_of_the_disk() -> None:
    shell = greeted(info=ExportInfo("4k", 1 << 20, sector_bytes=4096))
    replies = nbd.option_replies(shell.feed(nbd.option(nbd.GO, nbd.named("4k", (3,)))))
    told = next(reply.data for reply in replies if reply.data[:2] == b"\0\3")
    assert struct.unpack(">III", told[2:]) == (4096, 4096, 32 << 20)


def test_info_answers_like_go_but_stays_in_the_handshake() -> None:
    shell = greeted()
    assert shell.kinds(nbd.option(nbd.INFO, nbd.named(DISK.name))) == [nbd.REP_INFO, nbd.REP_INFO, nbd.ACK]
    assert not shell.core.transmitting
    assert shell.kinds(nbd.option(nbd.GO, nbd.named(DISK.name)))[-1] == nbd.ACK


def test_read_only_exports_say_so_and_offer_nothing_that_writes() -> None:
    shell = greeted(info=ExportInfo("ro", 4096, read_only=True))
    first = nbd.option_replies(shell.feed(nbd.option(nbd.INFO, nbd.named("ro"))))[0]
    flags = struct.unpack(">HQH", first.data)[2]
    assert flags & 2
    assert not flags & (32 | 64 | 2048)


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124)])
def test_export_name_answers_with_zeroes_unless_they_were_declined(flags: int, zeroes: int) -> None:
    shell = Shell()
    shell.feed(nbd.client_flags(flags))
    answer = shell.feed(nbd.option(nbd.EXPORT_NAME, DISK.name.encode()))
    assert struct.unpack(">Q", answer[:8])[0] == 1 << 20
    assert len(answer) == 10 + zeroes
    assert shell.core.transmitting


def test_export_name_of_an_unknown_export_ends_the_connection() -> None:
    shell = greeted()
    assert shell.feed(nbd.option(nbd.EXPORT_NAME, b"nobody")) == b""
    assert shell.core.ended
    assert shell.events[-1] == Ended()


def test_list_gives_every_name() -> None:
    replies = nbd.option_replies(greeted().feed(nbd.option(nbd.LIST)))
    assert [reply.data[4:] for reply in replies[:-1]] == [DISK.name.encode(), b"other"]
    assert replies[-1].kind == nbd.ACK


def test_list_is_capped() -> None:
    shell = greeted(limits=NbdLimits(names_listed_max=1))
    assert shell.kinds(nbd.option(nbd.LIST)) == [nbd.SERVER, nbd.ACK]


def test_abort_is_acknowledged_and_ends() -> None:
    shell = greeted()
    assert shell.kinds(nbd.option(nbd.ABORT)) == [nbd.ACK]
    assert shell.core.ended


def test_unknown_exports_and_options_are_refused_and_the_handshake_goes_on() -> None:
    shell = greeted()
    assert shell.kinds(nbd.option(nbd.GO, nbd.named("nobody"))) == [nbd.ERR_UNKNOWN]
    assert shell.kinds(nbd.option(4242, b"what")) == [nbd.ERR_UNSUP]
    assert shell.kinds(nbd.option(nbd.STARTTLS)) == [nbd.ERR_UNSUP]
    assert shell.kinds(nbd.option(nbd.GO, nbd.named(DISK.name)))[-1] == nbd.ACK


def test_contexts_need_structured_replies() -> None:
    shell = greeted()
    query = nbd.option(nbd.SET_META, nbd.contexts(DISK.name, "base:allocation"))
    assert shell.kinds(query) == [nbd.ERR_INVALID]
    assert shell.kinds(nbd.option(nbd.STRUCTURED)) == [nbd.ACK]
    assert shell.kinds(query) == [nbd.META, nbd.ACK]


@pytest.mark.parametrize(
    ("number", "queries", "found"),
    [
        (nbd.LIST_META, (), True),
        (nbd.LIST_META, ("base:",), True),
        (nbd.LIST_META, ("base:allocation",), True),
        (nbd.LIST_META, ("qemu:",), False),
        (nbd.SET_META, (), False),
        (nbd.SET_META, ("base:",), False),
        (nbd.SET_META, ("qemu:dirty-bitmap:x", "base:allocation"), True),
    ],
)
def test_context_queries_find_what_the_protocol_says(number: int, queries: tuple[str, ...], found: bool) -> None:
    shell = greeted()
    shell.feed(nbd.option(nbd.STRUCTURED))
    kinds = shell.kinds(nbd.option(number, nbd.contexts(DISK.name, *queries)))
    assert kinds == ([nbd.META] if found else []) + [nbd.ACK]


def _status_is_served(shell: Shell) -> bool:
    shell.events.clear()
    reader = nbd.ReplyReader()
    reader.feed(shell.feed(nbd.request(nbd.STATUS, 1, 0, 4096)))
    return not reader.answers


@pytest.mark.parametrize(
    ("before_go", "served"),
    [
        (b"", True),
        (nbd.option(nbd.SET_META, nbd.contexts(DISK.name)), False),
        (nbd.option(nbd.SET_META, nbd.contexts("nobody", "base:allocation")), False),
        (nbd.option(nbd.INFO, nbd.named(DISK.name)), True),
        (nbd.option(nbd.LIST_META, nbd.contexts(DISK.name)), True),
    ],
)
def test_only_the_last_context_choice_for_the_opened_export_counts(before_go: bytes, served: bool) -> None:
    shell = greeted()
    shell.feed(nbd.option(nbd.STRUCTURED))
    shell.feed(nbd.option(nbd.SET_META, nbd.contexts(DISK.name, "base:allocation")))
    shell.feed(before_go)
    shell.feed(nbd.option(nbd.GO, nbd.named(DISK.name)))
    assert _status_is_served(shell) == served


def test_a_context_for_another_export_does_not_carry_over() -> None:
    class Any(Shell):
        def feed(self, data: bytes) -> bytes:
            for event in self.core.receive(data):
                if isinstance(event, ExportWanted):
                    self.core.export_found(ExportInfo(event.name, 4096), inline=True)
            return b"".join(self.core.data_to_send())

    shell = Any()
    shell.feed(nbd.client_flags() + nbd.option(nbd.STRUCTURED))
    shell.feed(nbd.option(nbd.SET_META, nbd.contexts("one", "base:allocation")))
    shell.feed(nbd.option(nbd.GO, nbd.named("two")))
    assert not _status_is_served(shell)


GOOD_OPTIONS = [
    nbd.option(nbd.LIST),
    nbd.option(nbd.STRUCTURED),
    nbd.option(nbd.INFO, nbd.named(DISK.name, (1, 3))),
    nbd.option(nbd.LIST_META, nbd.contexts(DISK.name, "base:")),
    nbd.option(nbd.SET_META, nbd.contexts(DISK.name, "base:allocation", "x:y")),
    nbd.option(nbd.GO, nbd.named(DISK.name, (0, 1, 2, 3))),
]


@pytest.mark.fault(36)
@pytest.mark.parametrize("good", [o for o in GOOD_OPTIONS if o != GOOD_OPTIONS[1]], ids=lambda o: f"option-{o[11]}")
def test_an_option_of_any_wrong_length_is_invalid_and_the_handshake_goes_on(good: bytes) -> None:
    number, body = struct.unpack(">I", good[8:12])[0], good[16:]
    for wrong in [body[:cut] for cut in range(len(body))] + [body + b"\0", body + body]:
        if wrong == body:
            continue
        shell = greeted()
        shell.feed(nbd.option(nbd.STRUCTURED))
        assert shell.kinds(nbd.option(number, wrong)) == [nbd.ERR_INVALID], wrong
        assert shell.kinds(nbd.option(nbd.GO, nbd.named(DISK.name)))[-1] == nbd.ACK


@pytest.mark.fault(36)
@pytest.mark.parametrize("number", [nbd.GO, nbd.INFO, nbd.SET_META, nbd.LIST_META])
@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, 1 << 20])
def test_inner_lengths_that_lie_are_invalid(number: int, length: int) -> None:
    shell = greeted()
    shell.feed(nbd.option(nbd.STRUCTURED))
    assert shell.kinds(nbd.option(number, struct.pack(">I", length) + b"name\0\0")) == [nbd.ERR_INVALID]
    if number in (nbd.SET_META, nbd.LIST_META):
        assert shell.kinds(nbd.option(number, nbd.contexts("")[:-4] + struct.pack(">I", length))) == [nbd.ERR_INVALID]


@pytest.mark.fault(36, 38)
@pytest.mark.parametrize("length", [4097, 1 << 20, 0xFFFFFFFF])
def test_an_oversize_option_is_refused_before_its_data_comes(length: int) -> None:
    shell = greeted()
    with pytest.raises(DrengineError) as caught:
        shell.feed(b"IHAVEOPT" + struct.pack(">II", nbd.GO, length))
    assert caught.value.kind is NBD_LIMIT
    assert nbd.option_replies(shell.sent)[-1].kind == nbd.ERR_TOO_BIG


@pytest.mark.fault(38)
def test_a_flood_of_options_is_cut_off() -> None:
    shell = greeted(limits=NbdLimits(options_max=3))
    shell.feed(nbd.option(nbd.LIST) * 3)
    with pytest.raises(DrengineError) as caught:
        shell.feed(nbd.option(nbd.LIST))
    assert caught.value.kind is NBD_LIMIT


@pytest.mark.parametrize("name", ["x" * 513, "new\nline", "nul\0", "\x1b[31m"])
def test_names_that_are_long_or_unprintable_are_invalid(name: str) -> None:
    assert greeted().kinds(nbd.option(nbd.GO, nbd.named(name))) == [nbd.ERR_INVALID]


def test_a_name_that_is_not_utf8_is_invalid() -> None:
    assert greeted().kinds(nbd.option(nbd.GO, struct.pack(">I", 2) + b"\xff\xfe\0\0")) == [nbd.ERR_INVALID]


@pytest.mark.parametrize("data", [nbd.client_flags(0), nbd.client_flags(7), nbd.client_flags() + bytes(16)])
def test_a_client_that_does_not_speak_fixed_newstyle_is_cut_off(data: bytes) -> None:
    with pytest.raises(DrengineError) as caught:
        Shell().feed(data)
    assert caught.value.kind is NBD_PROTOCOL


@pytest.mark.fault(39)
def test_where_tls_is_required_nothing_is_served_before_it() -> None:
    shell = greeted(tls=TlsPolicy.REQUIRED)
    for plain in [*GOOD_OPTIONS, nbd.option(4242)]:
        assert shell.kinds(plain) == [nbd.ERR_TLS_REQD]
    assert shell.events == []
    with pytest.raises(DrengineError):
        shell.feed(nbd.option(nbd.EXPORT_NAME, DISK.name.encode()))
    assert not shell.core.transmitting


@pytest.mark.fault(39)
@pytest.mark.parametrize("policy", [TlsPolicy.REQUIRED, TlsPolicy.OPTIONAL])
@pytest.mark.parametrize("injected", [b"\0", nbd.option(nbd.LIST), nbd.option(nbd.GO, nbd.named(DISK.name))])
def test_bytes_injected_behind_starttls_end_the_connection(policy: TlsPolicy, injected: bytes) -> None:
    shell = greeted(tls=policy)
    with pytest.raises(DrengineError) as caught:
        shell.feed(nbd.option(nbd.STARTTLS) + injected)
    assert caught.value.kind is NBD_PROTOCOL
    assert shell.events == []


@pytest.mark.fault(39)
def test_what_was_agreed_before_tls_is_forgotten() -> None:
    shell = greeted(tls=TlsPolicy.OPTIONAL)
    shell.feed(nbd.option(nbd.STRUCTURED))
    shell.feed(nbd.option(nbd.SET_META, nbd.contexts(DISK.name, "base:allocation")))
    assert shell.kinds(nbd.option(nbd.STARTTLS)) == [nbd.ACK]
    assert shell.kinds(nbd.option(nbd.SET_META, nbd.contexts(DISK.name, "base:allocation"))) == [nbd.ERR_INVALID]
    assert shell.kinds(nbd.option(nbd.STARTTLS)) == [nbd.ERR_INVALID]
    shell.feed(nbd.option(nbd.GO, nbd.named(DISK.name)))
    assert not _status_is_served(shell)


def test_whole_or_byte_by_byte_the_same_is_said() -> None:
    stream = nbd.client_flags() + b"".join(GOOD_OPTIONS)
    whole = Shell()
    expected = whole.feed(stream)
    slow = Shell()
    said = b"".join(slow.feed(stream[i : i + 1]) for i in range(len(stream)))
    assert said == expected
    assert slow.core.transmitting
    assert whole.core.transmitting


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_make_the_handshake_fail_otherwise_than_typed(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1 << 32))
    rng = random.Random(seed)
    stream = bytearray(nbd.client_flags() + b"".join(rng.choices(GOOD_OPTIONS, k=4)))
    for _ in range(rng.randrange(1, 6)):
        stream[rng.randrange(len(stream))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
    shell = Shell(tls=rng.choice(list(TlsPolicy)), limits=NbdLimits(option_bytes_max=512))
    try:
        while stream and not shell.core.ended:
            size = rng.randrange(1, len(stream) + 1)
            shell.feed(bytes(stream[:size]))
            del stream[:size]
    except DrengineError as error:
        assert error.kind in (NBD_LIMIT, NBD_PROTOCOL)
