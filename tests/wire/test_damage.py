"""Damage and nonsense from outside: found, and never taken for something that was said."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.wire import events as ev
from drengine.wire.connection import Connection, Role
from drengine.wire.errors import REASONS, RemoteProtocolError
from drengine.wire.payload import verify_batch
from tests.wire.samples import CONVERSATION, HELLO, joined, opened, record


def deceives(got: ev.BatchEvent, want: ev.Event) -> bool:
    """Whether a damaged batch would be stored as something else than was sent.

    A bit of a zstd frame that means nothing may flip: the plain bytes, which were hashed, are the same.
    """
    assert isinstance(want, ev.BatchEvent)
    try:
        return verify_batch(got.batch) != verify_batch(want.batch)
    except DrengineError:
        return False


def hear(role: Role, incoming: list[bytes], said: list[ev.Event]) -> tuple[list[ev.Event], str | None]:
    """What a side hears of a direction, and what for it ends the session."""
    side = Connection(role)
    heard: list[ev.Event] = []
    said = list(said)
    try:
        if role is Role.AGENT:
            side.send(said.pop(0))
        for data in incoming:
            try:
                heard += side.receive(data)
            except RemoteProtocolError:
                heard += side.events
                raise
            if len(heard) == 1 and said:  # the greeting is over
                for event in said if role is Role.AGENT else said[:1]:
                    side.send(event)
                said = []
        side.receive_eof()
    except RemoteProtocolError as error:
        return heard, error.reason
    return heard, None


@pytest.mark.parametrize("role", Role)
def test_every_single_flipped_bit_is_refused_or_found_before_it_is_stored(role: Role) -> None:
    recorded = record()
    incoming = [data for who, _, data in recorded if who is not role]
    expected = [event for who, event, _ in recorded if who is not role]
    said = [event for who, event, _ in recorded if who is role][: None if role is Role.TARGET else -1]
    whole, ended = hear(role, incoming, said)
    assert whole == expected
    assert ended == (None if role is Role.TARGET else "truncated")
    refused = harmless = in_payload = 0
    for which, data in enumerate(incoming):
        for bit in range(len(data) * 8):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            heard, reason = hear(role, [*incoming[:which], bytes(damaged), *incoming[which + 1 :]], said)
            if reason is not None and reason != ended:
                refused += 1
                assert heard == expected[: len(heard)], f"frame {which}, bit {bit}"
                assert len(heard) <= which
            elif heard == expected[: len(heard)]:
                harmless += 1
                assert len(heard) <= which, f"frame {which}, bit {bit} was not noticed"
            else:  # only a payload's bit passes, and then its hashes do not fit
                in_payload += 1
                assert heard[:which] == expected[:which]
                assert heard[which + 1 :] == expected[which + 1 :]
                event = heard[which]
                assert isinstance(event, ev.BatchEvent)
                assert not deceives(event, expected[which]), f"frame {which}, bit {bit}"
    total = sum(len(data) * 8 for data in incoming)
    assert refused + harmless + in_payload == total
    payload_bits = sum(8 * len(event.batch.payload) for event in expected if isinstance(event, ev.BatchEvent))
    assert in_payload <= payload_bits
    assert refused > total // 2


@pytest.mark.fault(34)
@pytest.mark.parametrize("role", Role)
def test_a_conversation_cut_at_any_byte_gives_a_prefix_of_what_was_said(role: Role) -> None:
    recorded = record()
    expected = [event for who, event, _ in recorded if who is not role]
    said = [event for who, event, _ in recorded if who is role][: None if role is Role.TARGET else -1]
    stream = [data for who, _, data in recorded if who is not role]
    for which, data in enumerate(stream):
        for length in range(len(data)):
            heard, reason = hear(role, [*stream[:which], data[:length]], said)
            assert heard == expected[:which]
            assert reason == "truncated"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 64))
def test_random_bytes_never_become_an_event(data: bytes, piece: int) -> None:
    for side in (Connection(Role.TARGET), *opened()):
        try:
            for at in range(0, len(data), piece):
                assert side.receive(data[at : at + piece]) == []
            side.receive_eof()
        except RemoteProtocolError as error:
            assert error.reason in REASONS


@pytest.mark.parametrize("seed", range(40))
def test_a_conversation_with_random_edits_ends_in_a_prefix_or_a_typed_reason(seed: int) -> None:
    random = Random(seed)
    recorded = record()
    for role in Role:
        expected = [event for who, event, _ in recorded if who is not role]
        said = [event for who, event, _ in recorded if who is role][: None if role is Role.TARGET else -1]
        for _ in range(50):
            frames = [bytearray(data) for who, _, data in recorded if who is not role]
            victim = frames[random.randrange(len(frames))]
            at = random.randrange(len(victim))
            match random.randrange(4):
                case 0:
                    del victim[at : at + random.randrange(1, 40)]
                case 1:
                    victim[at:at] = random.randbytes(random.randrange(1, 40))
                case 2:
                    victim[at : at + 8] = random.randbytes(8)
                case 3:
                    frames.insert(random.randrange(len(frames)), victim)
            heard, reason = hear(role, [bytes(frame) for frame in frames], said)
            assert reason is None or reason in REASONS
            for got, want in zip(heard, expected, strict=False):
                if got != want:
                    assert isinstance(got, ev.BatchEvent), f"seed {seed}: {got} was never said"
                    assert not deceives(got, want), f"seed {seed}"


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "tls-unexpected"),  # a TLS ClientHello
        (b"\x15\x03\x03\x00\x02\x02\x46", "tls-unexpected"),  # a TLS alert, before the peer closes
        (b"GET /metrics HTTP/1.1\r\nHost: outpost\r\n\r\n", "bad-magic"),
        (b"NBDMAGICIHAVEOPT" + bytes(20), "bad-magic"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", "bad-magic"),
    ],
)
def test_another_protocol_is_known_by_its_first_bytes(data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        target = Connection(Role.TARGET)
        target.receive(data)
        target.receive_eof()
    assert caught.value.reason == reason
    assert ("certificate" in caught.value.hint) == (reason == "tls-unexpected")


@pytest.mark.fault(39)
def test_bytes_injected_before_the_greeting_are_refused() -> None:
    injected = joined(Connection(Role.AGENT).send(HELLO))
    target = Connection(Role.TARGET)
    target.receive(injected)
    with pytest.raises(RemoteProtocolError):  # the real agent's greeting comes second
        target.receive(joined(Connection(Role.AGENT).send(HELLO)))


def test_the_recorded_conversation_is_small_enough_to_flip_every_bit() -> None:
    assert sum(len(data) for _, _, data in record()) < 4000
    assert len(CONVERSATION) == len(record())
