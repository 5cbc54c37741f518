"""The fleet by REST and by its client: the same answers and refusals as the orders give, and roles are asked first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from drengine.console.client import Client
from drengine.console.fleet_client import RemoteFleet
from drengine.failover.duties import duty_lease
from drengine.fleet.errors import UNKNOWN_ROLLOUT, UPGRADE_IMPOSSIBLE
from drengine.fleet.orders import orders_of
from drengine.fleet.rings import Progress, Ring
from drengine.fleet.rollout import DUTY, Rollout, Rollouts
from drengine.model.errors import DrengineError
from drengine.people.errors import NOT_PERMITTED
from drengine.policy.errors import BAD_POLICY
from drengine.policy.kept import PolicyFile
from drengine.store.errors import UNKNOWN_SOURCE
from tests.console.rig import Api, served
from tests.persons import BOB


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with served(tmp_path) as made:
        yield made


def remote(api: Api, who: str = "bob") -> RemoteFleet:
    return RemoteFleet(Client(f"http://127.0.0.1:{api.port}", token=api.tokens[who]))


def test_the_fleet_is_the_same_by_both_ways(api: Api) -> None:
    here, there = orders_of(api.engine, BOB), remote(api)
    (one,), (other,) = here.look().sources, there.look().sources
    assert one.source == "shop"
    assert one.newest_point is not None
    age = {"newest_point_age_seconds": 0.0, "lag_seconds": 0.0}
    assert _plain(one) | age == _plain(other) | age


def _plain(found: object) -> dict[str, object]:
    return dict(msgspec.to_builtins(found))


def test_policy_is_set_shown_and_taken_back_and_a_wrong_value_changes_nothing(api: Api) -> None:
    there = remote(api)
    made = there.set_policy("sh*", {"bandwidth": "20MiB/s", "ring": "canary"})
    assert (made.version, made.rules) == (1, {"sh*": {"bandwidth": "20MiB/s", "ring": "canary"}})
    for sources, values in (
        ("sh*", {"bandwidth": "fast"}),
        ("SHOP", {"cuts": "auto"}),
        ("sh*", {"colour": "red"}),
        ("*", {}),
    ):
        with pytest.raises(DrengineError) as refused:
            there.set_policy(sources, values)
        assert refused.value.kind is BAD_POLICY
    assert there.policy() == made == orders_of(api.engine, BOB).policy()
    (shop,) = there.look().sources
    assert shop.ring == "canary"
    assert there.unset_policy("sh*", ["ring"]).rules == {"sh*": {"bandwidth": "20MiB/s"}}
    for names in (["ring"], ["cuts"]):
        with pytest.raises(DrengineError):
            there.unset_policy("sh*", names)
    assert there.unset_policy("sh*", []).rules == {}
    assert api.ask("POST", "/fleet/policy/set", {"sources": "*", "values": {"cuts": "?"}}).status == 422


def test_a_source_is_retired_and_roles_are_asked_first(api: Api) -> None:
    viewer, there = remote(api, "vic"), remote(api)
    assert viewer.look().expected == 1
    for order in (
        lambda: viewer.set_policy("*", {"cuts": "auto"}),
        lambda: viewer.retire("shop"),
        lambda: viewer.upgrade("1", "", ["rest"], limit_seconds=60, at_once=1),
        viewer.stop_rollout,
    ):
        with pytest.raises(DrengineError) as refused:
            order()
        assert refused.value.kind is NOT_PERMITTED
    with pytest.raises(DrengineError) as refused:
        there.retire("nobody")
    assert refused.value.kind is UNKNOWN_SOURCE
    assert there.retire("shop", dry_run=True).retired is False
    assert there.look().expected == 1
    assert there.retire("shop", serials=["ab"]).retired is True
    assert there.look().retired == 1
    first = PolicyFile(api.engine.config.store).read().retired["shop"]
    assert (first.by, first.serials) == ("bob", ("ab",))
    there.retire("shop", serials=["cd"])
    again = PolicyFile(api.engine.config.store).read().retired["shop"]
    assert (again.at_ns, again.serials) == (first.at_ns, ("ab", "cd")), "since when stays, whoever asks again"


def test_an_upgrade_is_shown_stopped_and_refused_where_it_can_not_be(api: Api) -> None:
    there = remote(api)
    with pytest.raises(DrengineError) as refused:
        there.rollout()
    assert refused.value.kind is UNKNOWN_ROLLOUT
    with pytest.raises(DrengineError) as refused:
        there.upgrade("9.9", "", ["rest"], limit_seconds=60, at_once=1)
    assert refused.value.kind is UPGRADE_IMPOSSIBLE
    registry, ring = api.engine.registry, Ring("rest", ("shop",))
    with Rollouts(registry).changing() as change:
        change.rollout = Rollout("x", "9.9", "0" * 64, 1, (ring,), {"shop": Progress()}, "bob", 0, 60.0, 1)
    assert (there.rollout().state, there.rollout().is_left) == ("running", True)
    lease = registry.acquire_lease(duty_lease(DUTY), "another", 60)
    assert there.rollout().is_left is False
    registry.release_lease(lease)
    assert there.stop_rollout().state == "stopped"
    assert there.resume_rollout().state == "running"
