"""The table of legal moves, walked wholly; and the terms that both sides hold each other to."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from drengine.model.errors import DrengineError
from drengine.wire import events as ev
from drengine.wire.connection import (
    DEAF,
    MOVES,
    VERSION_MAX,
    VERSION_MIN,
    Connection,
    Role,
    State,
    negotiate_version,
)
from drengine.wire.errors import VERSION_MISMATCH, LocalProtocolError, ProtocolError, RemoteProtocolError
from drengine.wire.frames import (
    CREDIT_BYTES_MAX,
    TYPE_OF,
    FrameType,
    batch_frame_bytes,
    encode_frame,
)
from drengine.wire.terms import FETCHES_OPEN_MAX, QUERIES_OPEN_MAX, READING
from tests.wire.samples import (
    BATCH,
    CUT,
    FETCH,
    FETCHED,
    GEOMETRY,
    HELLO,
    INVENTORY,
    LOOK,
    METRICS,
    MOVED,
    QUERY,
    REVERSE,
    STATUS,
    WELCOME,
    batch_of,
    joined,
    mark,
    opened,
    zeros,
)

SAYINGS: dict[FrameType, ev.Event] = {
    TYPE_OF[type(event)]: event
    for event in (
        HELLO,
        WELCOME,
        GEOMETRY,
        replace(BATCH, sequence=11),
        replace(CUT, sequence=11),
        ev.Ack(10, mark(900)),
        ev.Credit(1),
        QUERY,
        ev.Hashes(9, b"h" * 16),
        ev.Resend(1, 0, 1),
        STATUS,
        METRICS,
        INVENTORY,
        ev.Ping(1),
        ev.Pong(1),
        ev.Refuse("store-full", "no space", True),
        ev.Goodbye(),
        FETCH,
        FETCHED,
        LOOK,
        ev.Changed(6, 0, ()),
        MOVED,
    )
}
TO_REVERSE = {TYPE_OF[kind] for kind in READING}


def in_state(state: State, hello: ev.Hello = HELLO) -> dict[Role, Connection]:
    """Both sides in a state; in OPEN a question (number 9, one chunk) is open, and to reverse two more."""
    sides = {role: Connection(role) for role in Role}
    agent, target = sides[Role.AGENT], sides[Role.TARGET]
    if state in (State.GREETED, State.OPEN):
        target.receive(joined(agent.send(hello)))
    if state is State.OPEN:
        agent.receive(joined(target.send(WELCOME)))
        target.receive(joined(agent.send(ev.HashQuery(9, 1, 0, 4096, 1))))
    if state is State.OPEN and hello is REVERSE:
        target.receive(joined(agent.send(FETCH)))
        target.receive(joined(agent.send(LOOK)))
    if state is State.CLOSED:
        target.receive(joined(agent.send(ev.Refuse("bad-move", "", False))))
    if state is State.BROKEN:
        for side in sides.values():
            with pytest.raises(RemoteProtocolError):
                side.receive(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert agent.state is target.state is state
    return sides


def test_every_event_has_a_place_in_the_table() -> None:
    assert set(SAYINGS) == set(FrameType) == {kind for moves in MOVES.values() for kind in moves}
    assert set(MOVES) == {(state, role) for state in State for role in Role}


@pytest.mark.parametrize("kind", FrameType)
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
def test_a_move_is_legal_exactly_when_the_table_has_it(state: State, role: Role, kind: FrameType) -> None:
    sides = in_state(state, REVERSE if kind in TO_REVERSE else HELLO)
    me, peer = sides[role], sides[role.peer]
    after = MOVES[state, role].get(kind)
    if after is not None:
        saying = SAYINGS[kind]
        if isinstance(saying, ev.Fetch | ev.ChangeQuery):
            saying = replace(saying, query=10)
        peer.receive(joined(me.send(saying)))
        assert me.state is after
        assert peer.state is (after if state not in DEAF else state)
        return
    with pytest.raises(LocalProtocolError) as mine:
        me.send(SAYINGS[kind])
    assert mine.value.reason == "bad-move"
    assert me.state is state
    forged = joined(encode_frame(SAYINGS[kind], me._frames_sent + 1))
    if state in DEAF:
        assert peer.receive(forged) == []
        assert peer.state is state
        return
    with pytest.raises(RemoteProtocolError) as theirs:
        peer.receive(forged)
    assert theirs.value.reason == "bad-move"
    assert peer.state is State.BROKEN


Situation = tuple[State, State, tuple[FrameType, ...], tuple[FrameType, ...]]
"""The agent's state, the target's, and what is under way to the target and to the agent."""


def test_no_interleaving_of_legal_moves_is_ever_refused_by_the_other_side() -> None:
    """Every reachable pair of states with up to three frames under way in each direction."""
    start: Situation = (State.OPENING, State.OPENING, (), ())
    seen, todo = {start}, deque([start])
    while todo:
        agent, target, to_target, to_agent = todo.popleft()
        following: list[Situation] = []
        if len(to_target) < 3:
            for kind, after in MOVES[agent, Role.AGENT].items():
                following.append((after, target, (*to_target, kind), to_agent))
        if len(to_agent) < 3:
            for kind, after in MOVES[target, Role.TARGET].items():
                following.append((agent, after, to_target, (*to_agent, kind)))
        if to_target:
            kind, rest = to_target[0], to_target[1:]
            heard = target if target in DEAF else MOVES[target, Role.AGENT].get(kind)
            assert heard is not None, f"the target refuses {kind.name} when {target}, the agent is {agent}"
            following.append((agent, heard, rest, to_agent))
        if to_agent:
            kind, rest = to_agent[0], to_agent[1:]
            heard = agent if agent in DEAF else MOVES[agent, Role.TARGET].get(kind)
            assert heard is not None, f"the agent refuses {kind.name} when {agent}, the target is {target}"
            following.append((heard, target, to_target, rest))
        for state in following:
            key = (state[0], state[1], _thinned(state[2]), _thinned(state[3]))
            if key not in seen:
                seen.add(key)
                todo.append(key)
    assert len(seen) > 50


def _thinned(frames: tuple[FrameType, ...]) -> tuple[FrameType, ...]:
    """Frames that change nothing when OPEN are alike: one of each role stands for all."""
    alike = {kind: FrameType.STATUS for kind in MOVES[State.OPEN, Role.AGENT] if kind not in _ENDS}
    alike |= {kind: FrameType.ACK for kind in MOVES[State.OPEN, Role.TARGET] if kind not in _ENDS | set(alike)}
    return tuple(alike.get(kind, kind) for kind in frames)


_ENDS = {FrameType.REFUSE, FrameType.GOODBYE, FrameType.MOVED, FrameType.PING, FrameType.PONG}


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (1, 1)])
@pytest.mark.fault(32)
@pytest.mark.fault(33)
def test_a_missing_repeated_or_reordered_frame_ends_the_session(pair: tuple[int, int]) -> None:
    agent, target = opened()
    frames = [joined(agent.send(event)) for event in (GEOMETRY, BATCH, CUT)[:2]] + [joined(agent.send(STATUS))]
    if pair == (0, 1):
        order = [frames[1]]  # the first is missing
    elif pair == (1, 2):
        order = [frames[0], frames[2], frames[1]]
    else:
        order = [frames[0], frames[0]]
    with pytest.raises(RemoteProtocolError) as caught:
        for data in order:
            target.receive(data)
    assert caught.value.reason == "bad-sequence"


def both_refuse(event: ev.Event, reason: str, *sides: Connection) -> None:
    """The one that would say it, and the one that would hear it from a peer without scruples."""
    me, peer = sides
    with pytest.raises(LocalProtocolError) as mine:
        me.send(event)
    with pytest.raises(RemoteProtocolError) as theirs:
        peer.receive(joined(encode_frame(event, me._frames_sent + 1)))
    assert (mine.value.reason, theirs.value.reason) == (reason, reason)


@pytest.mark.fault(33)
@pytest.mark.fault(35)
@pytest.mark.parametrize("event", [GEOMETRY, BATCH, CUT])
@pytest.mark.parametrize("sequence", [0, 12, 2**64 - 1])
def test_a_stream_position_is_never_skipped(event: ev.Geometry, sequence: int) -> None:
    both_refuse(replace(event, sequence=sequence), "bad-position", *opened())


@pytest.mark.parametrize("event", [GEOMETRY, BATCH, CUT])
def test_whoever_reads_a_point_ships_nothing(event: ev.Event) -> None:
    both_refuse(event, "bad-purpose", *opened(hello=REVERSE))


@pytest.mark.parametrize("event", [ev.Ack(10, mark(1)), ev.Credit(5), ev.Resend(1, 0, 1)])
def test_a_session_that_only_reads_has_nothing_to_acknowledge(event: ev.Event) -> None:
    agent, target = opened(hello=REVERSE)
    both_refuse(event, "bad-purpose", target, agent)


@pytest.mark.parametrize("hello", [HELLO, REVERSE])
def test_an_agent_that_offers_it_is_sent_on_before_and_after_its_welcome(hello: ev.Hello) -> None:
    for state in (State.GREETED, State.OPEN):
        sides = in_state(state, hello)
        assert sides[Role.AGENT].receive(joined(sides[Role.TARGET].send(MOVED))) == [MOVED]
        assert {side.state for side in sides.values()} == {State.CLOSED}


def test_an_agent_that_does_not_offer_it_is_never_sent_on() -> None:
    hello = replace(HELLO, abilities=HELLO.abilities - {"moved"})
    greeted = in_state(State.GREETED, hello)
    both_refuse(MOVED, "no-ability", greeted[Role.TARGET], greeted[Role.AGENT])
    agent, target = opened(replace(WELCOME, abilities=hello.abilities - {"from-the-future"}), hello)
    both_refuse(MOVED, "no-ability", target, agent)


@pytest.mark.parametrize("event", [FETCH, LOOK])
def test_whoever_ships_reads_no_points(event: ev.Event) -> None:
    both_refuse(event, "bad-purpose", *opened())


def test_only_so_many_bytes_are_under_way_back_to_the_source() -> None:
    agent, target = opened(hello=REVERSE)
    for number in range(FETCHES_OPEN_MAX):
        target.receive(joined(agent.send(replace(FETCH, query=number))))
    both_refuse(replace(FETCH, query=FETCHES_OPEN_MAX), "bad-query", agent, target)


@pytest.mark.parametrize(
    "answer",
    [
        replace(FETCHED, query=4),
        ev.Fetched(5, batch_of([(0, b"more" * 4096)])),
        ev.Hashes(5, b"h" * 16),
        ev.Changed(5, 0, ()),
    ],
)
def test_an_answer_that_does_not_fit_its_question_is_refused(answer: ev.Event) -> None:
    agent, target = opened(hello=REVERSE)
    target.receive(joined(agent.send(FETCH)))
    both_refuse(answer, "bad-query", target, agent)


@pytest.mark.fault(32)
def test_a_position_that_is_known_already_passes_for_the_target_to_ignore() -> None:
    agent, target = opened()
    for sequence in (11, 11, 3, 12):
        target.receive(joined(agent.send(replace(CUT, sequence=sequence))))
    with pytest.raises(LocalProtocolError):
        agent.send(replace(CUT, sequence=14))


@pytest.mark.parametrize("sequence", [9, 11])
def test_an_ack_neither_goes_back_nor_runs_ahead(sequence: int) -> None:
    agent, target = opened()
    both_refuse(ev.Ack(sequence, mark(1)), "bad-position", target, agent)


def test_an_ack_may_cover_exactly_what_was_sent() -> None:
    agent, target = opened()
    target.receive(joined(agent.send(GEOMETRY)))
    agent.receive(joined(target.send(ev.Ack(11, mark(1)))))
    with pytest.raises(LocalProtocolError):
        target.send(ev.Ack(10, mark(1)))


@pytest.mark.fault(31)
def test_credit_is_held_to_the_byte_on_both_sides() -> None:
    agent, target = opened()
    cost = batch_frame_bytes(BATCH.batch)
    assert agent.credit_available == target.credit_available == WELCOME.credit_bytes
    target.receive(joined(agent.send(replace(BATCH, sequence=11))))
    assert agent.credit_available == target.credit_available == WELCOME.credit_bytes - cost
    for side in (agent, target):
        side._terms.credit_available = cost - 1
    with pytest.raises(LocalProtocolError) as mine:
        agent.send(replace(BATCH, sequence=12))
    assert mine.value.reason == "no-credit"
    agent.receive(joined(target.send(ev.Credit(1))))
    target.receive(joined(agent.send(replace(BATCH, sequence=12))))
    assert agent.credit_available == target.credit_available == 0


def test_a_batch_beyond_its_credit_is_refused_by_its_header_alone() -> None:
    agent, target = opened()
    head = encode_frame(replace(BATCH, sequence=11), agent._frames_sent + 1)[0]
    target._terms.credit_available = batch_frame_bytes(BATCH.batch) - 1
    with pytest.raises(RemoteProtocolError) as caught:
        target.receive(bytes(head)[:32])
    assert caught.value.reason == "no-credit"


def test_more_credit_than_may_be_is_refused() -> None:
    agent, target = opened()
    both_refuse(ev.Credit(CREDIT_BYTES_MAX), "no-credit", target, agent)


def test_nothing_is_shipped_before_a_volume_is_declared() -> None:
    for event in (replace(BATCH, sequence=11), replace(CUT, sequence=11)):
        both_refuse(event, "undeclared", *opened(replace(WELCOME, geometry=())))


def test_a_batch_is_no_larger_than_agreed() -> None:
    welcome = replace(WELCOME, batch_plain_bytes_max=65536)
    large = batch_of([(0, bytes(65536)), (65536, b"x")])
    both_refuse(ev.BatchEvent(11, mark(0), large), "over-limit", *opened(welcome))


@pytest.mark.parametrize("ability", sorted(ev.ABILITIES))
def test_an_ability_that_was_not_agreed_upon_is_not_used(ability: str) -> None:
    hello = REVERSE if ability == "reverse" else HELLO
    agent, target = opened(replace(WELCOME, abilities=ev.ABILITIES - {ability}), hello)
    if ability == "reverse":
        both_refuse(FETCH, "no-ability", agent, target)
    elif ability == "inventory":
        both_refuse(INVENTORY, "no-ability", agent, target)
    elif ability == "metrics":
        both_refuse(METRICS, "no-ability", agent, target)
    elif ability == "moved":
        both_refuse(MOVED, "no-ability", target, agent)
    elif ability == "homes":
        pass  # no event needs it: it says which refusal is understood
    elif ability == "resend":
        both_refuse(ev.Resend(1, 0, 1), "no-ability", target, agent)
    else:
        both_refuse(QUERY if ability == "hash-query" else replace(BATCH, sequence=11), "no-ability", agent, target)
    raw, _ = opened(replace(WELCOME, abilities=frozenset()))
    raw.send(ev.BatchEvent(11, mark(0), batch_of([(0, bytes(4096))], level=None)))
    raw.send(ev.BatchEvent(12, mark(0), zeros(0, 4096)))


@pytest.mark.parametrize(
    "welcome",
    [
        replace(WELCOME, version=4),
        replace(WELCOME, version=0),
        replace(WELCOME, abilities=frozenset({"teleport"})),
    ],
)
def test_a_welcome_stays_within_the_hello(welcome: ev.Welcome) -> None:
    agent, target = Connection(Role.AGENT), Connection(Role.TARGET)
    target.receive(joined(agent.send(HELLO)))
    both_refuse(welcome, "bad-terms", target, agent)


def test_answers_fit_questions() -> None:
    agent, target = opened()
    target.receive(joined(agent.send(QUERY)))
    both_refuse(ev.Hashes(5, b"h" * 48), "bad-query", target, agent)
    agent, target = opened()
    both_refuse(ev.Hashes(5, b"h" * 32), "bad-query", target, agent)
    agent, target = opened()
    target.receive(joined(agent.send(QUERY)))
    both_refuse(QUERY, "bad-query", agent, target)


@pytest.mark.fault(38)
def test_a_flood_of_questions_is_refused() -> None:
    agent, target = opened()
    for number in range(QUERIES_OPEN_MAX):
        target.receive(joined(agent.send(replace(QUERY, query=number))))
    both_refuse(replace(QUERY, query=QUERIES_OPEN_MAX), "bad-query", agent, target)


def test_versions_are_negotiated() -> None:
    assert negotiate_version(replace(HELLO, version_min=1, version_max=99)) == VERSION_MAX
    assert negotiate_version(replace(HELLO, version_min=VERSION_MIN, version_max=VERSION_MIN)) == VERSION_MIN
    with pytest.raises(DrengineError) as caught:
        negotiate_version(replace(HELLO, version_min=VERSION_MAX + 1, version_max=99))
    assert caught.value.kind is VERSION_MISMATCH


def test_what_came_before_an_error_is_not_lost() -> None:
    agent, target = opened()
    data = joined(agent.send(GEOMETRY)) + joined(agent.send(BATCH)) + b"\0" * 32
    with pytest.raises(RemoteProtocolError):
        target.receive(data)
    assert list(target.events) == [GEOMETRY, BATCH]


@pytest.mark.fault(34)
@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 60])
def test_a_stream_that_just_ends_is_told_from_a_goodbye(length: int) -> None:
    agent, target = opened()
    target.receive(joined(agent.send(GEOMETRY))[:length])
    with pytest.raises(RemoteProtocolError) as caught:
        target.receive_eof()
    assert caught.value.reason == "truncated"
    assert not target.events
    target.receive_eof()  # once is enough
    agent, target = opened()
    target.receive(joined(agent.send(ev.Goodbye())))
    target.receive_eof()


def test_after_an_error_all_that_is_left_is_to_say_why() -> None:
    sides = in_state(State.BROKEN)
    agent = Connection(Role.AGENT)
    agent.send(HELLO)
    (heard,) = agent.receive(joined(sides[Role.TARGET].send(ev.Refuse("bad-magic", "not a frame", False))))
    assert heard == ev.Refuse("bad-magic", "not a frame", False)
    with pytest.raises(ProtocolError):
        sides[Role.TARGET].send(ev.Refuse("bad-magic", "again", False))
