"""Which target is asked next: every one in turn, wherever they send the agent, and never for ever."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from drengine.config import Address
from drengine_agent.ship.route import HOPS_MAX, Route, Tour

A, B, C, D = (Address(f"{name}.example", 7440) for name in "abcd")
anywhere = st.builds(Address, st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.integers(1, 3))
answers = st.lists(st.one_of(st.none(), st.lists(anywhere, min_size=1, max_size=8)))


def asked(tour: Tour, told: dict[Address, list[Address]]) -> list[tuple[Address, bool]]:
    """Whom an attempt asks, and whether it offers to be sent on, where `told` send it on and nobody takes it."""
    found = []
    while (address := tour.next()) is not None:
        found.append((address, tour.may_move))
        if tour.may_move and address in told:
            tour.sent_on(told[address])
    return found


def test_each_target_is_asked_once() -> None:
    assert asked(Tour([A, B, C]), {}) == [(A, True), (B, True), (C, True)]


def test_whom_a_target_names_comes_next_also_if_nobody_configured_it() -> None:
    assert asked(Tour([A, B, C]), {A: [C, D]}) == [
        (A, True), (C, True), (D, True), (B, True), (A, False)
    ]  # fmt: skip


def test_targets_that_name_one_another_are_asked_once_more_to_decide() -> None:
    assert asked(Tour([A, B]), {A: [B], B: [A]}) == [(A, True), (B, True), (A, False), (B, False)]


def test_an_owner_that_does_not_answer_is_not_asked_again_in_the_same_attempt() -> None:
    assert asked(Tour([A, B, C]), {B: [A], C: [A]}) == [(A, True), (B, True), (C, True), (B, False), (C, False)]


@given(st.lists(anywhere, min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_an_attempt_ends_whatever_targets_say(configured: list[Address], random: Random) -> None:
    tour, seen = Tour(configured), Counter[tuple[Address, bool]]()
    while (address := tour.next()) is not None:
        seen[address, tour.may_move] += 1
        if tour.may_move:
            tour.sent_on([Address(random.choice("abcdefghijklmnopqrstuvwxyz"), random.randint(1, 9)) for _ in range(8)])
    assert set(seen.values()) == {1}
    assert {address for address, _ in seen} >= set(configured)
    assert sum(seen.values()) <= 2 * (len(configured) + HOPS_MAX)


@given(st.lists(st.tuples(st.sampled_from("sfo"), st.sampled_from([A, B, C, D])), max_size=30), st.integers())
def test_every_configured_target_stays_on_the_route_and_strangers_leave_when_they_fail(
    steps: list[tuple[str, Address]], seed: int
) -> None:
    route = Route([A, B, C], Random(seed))
    for what, address in steps:
        match what:
            case "s":
                route.served(address)
                assert route.best == address
            case "o":
                route.sent_on([address])
                assert route.best == address
            case _:
                route.failed(address)
        order = [each for each, _ in asked(route.tour(), {})]
        assert sorted(map(str, {A, B, C})) == sorted({str(each) for each in order} - {str(D)})
        assert len(order) == len(set(order))
        if what == "f":
            assert order[-1] == address or address == D


def test_agents_that_lose_one_target_do_not_all_go_to_the_same_other_one() -> None:
    seconds = []
    for seed in range(100):
        route = Route([A, B, C], Random(seed))
        route.served(A)
        route.failed(A)
        seconds.append(route.best)
    assert min(Counter(seconds).values()) > 30, Counter(seconds)
