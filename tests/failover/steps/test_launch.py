"""A launch is through when the server has the addresses that the rules give it; rules that don't fit launch nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.failover.addresses import BAD_ADDRESSES, WRONG_ADDRESSES, missing_addresses
from drengine.failover.drivers.driver import Instance, LaunchDriver, LaunchRequest
from drengine.failover.options import RunOptions
from drengine.failover.runbook.values import Addresses, AddressRule, Mode
from drengine.failover.steps.launch import LAUNCH
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card
from drengine.model.inventory import Interface, Inventory, Partition, SourceDisk
from drengine.store.store import Store
from tests.failover.engine.world import unseen
from tests.failover.steps.context import RUNBOOK, HastyClock, context, planned

MOVED = Addresses(rules=[AddressRule(source_network="10.1.0.0/16", to="10.9.0.0/16")])
SHOP = Inventory(taken_ns=1, interfaces=(Interface(name="eth0", addresses=("10.1.0.5/24",)),))


class Driver(LaunchDriver):
    """Starts nothing, and sees addresses that come one look after the other; at last they stay."""

    name = "seeing"

    def __init__(self, *looks: Sequence[str] | None) -> None:
        self.looks = list(looks)
        self.requests: list[LaunchRequest] = []

    def launch(self, request: LaunchRequest, progress: Any) -> Instance:
        self.requests.append(request)
        return Instance(request.instance, True, True, {})

    def inspect(self, request: LaunchRequest) -> Instance:
        return Instance(request.instance, True, True, {})

    def addresses(self, request: LaunchRequest) -> Sequence[str] | None:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.create(tmp_path / "store") as made:
        made.ensure_source("shop")
        made.keep_inventory("shop", SHOP, generation=1)
        yield made


def launching(store: Store, driver: Driver, **more: Any) -> tuple[Any, Any]:
    step = planned(LAUNCH, {"driver": "seeing", "branch": 1}, source="shop", timeout_seconds=30.0)
    made = context(runbook=replace_rules(MOVED), mode=Mode.FAILOVER, clock=HastyClock(), **more)
    site = replace(made.site, store=store, drivers={"seeing": driver}, directory=Path("/nowhere"), preflight=unseen)
    return step, replace(made, site=site)


def replace_rules(rules: Addresses) -> Any:
    return msgspec.structs.replace(RUNBOOK, addresses=rules)


async def test_a_server_is_told_its_addresses_and_waited_for_until_it_has_them(store: Store) -> None:
    driver = Driver([], ["10.1.0.5/24"], ["10.9.0.5/24", "fe80::1/64"])
    step, made = launching(store, driver)
    result = await LAUNCH.act(step, made)
    assert result.ok, result
    assert [card.addresses for card in driver.requests[0].cards] == [("10.9.0.5/24",)]
    assert driver.requests[0].servers["shop"].cards == driver.requests[0].cards
    assert driver.requests[0].inventory == SHOP
    assert result.data.details["address"] == "10.9.0.5", "later steps may refer to it"
    assert made.site.clock.slept == 2.0


async def test_a_server_that_never_gets_its_address_is_no_success_also_not_after_a_crash(store: Store) -> None:
    step, made = launching(store, Driver(["10.1.0.5/24"]))
    result = await LAUNCH.act(step, made)
    assert (result.ok, result.code) == (False, WRONG_ADDRESSES.id)
    assert "runs without 10.9.0.5/24 of eth0" in result.message
    assert await LAUNCH.check(step, made) is None
    step, made = launching(store, Driver(["10.9.0.5/24"]))
    assert (await LAUNCH.check(step, made)) is not None


async def test_what_a_driver_can_not_see_is_not_waited_for(store: Store) -> None:
    step, made = launching(store, Driver(None))
    assert (await LAUNCH.act(step, made)).ok
    assert made.site.clock.slept == 0.0


@pytest.mark.parametrize("despite", [[], ["addresses"], ["addresses:shop"]])
async def test_addresses_that_do_not_fit_launch_nothing_unless_somebody_said_so(
    store: Store, despite: list[str]
) -> None:
    wrong = Addresses(rules=[AddressRule(source_network="10.1.0.0/16", to="10.9.0.0/16", gateway="10.9.7.1")])
    driver = Driver(None)
    step, made = launching(store, driver, options=RunOptions(despite=despite))
    made = replace(made, runbook=replace_rules(wrong))
    if despite:
        assert (await LAUNCH.act(step, made)).ok
        return
    with pytest.raises(DrengineError, match=r"shop: eth0: the gateway 10.9.7.1") as refused:
        await LAUNCH.act(step, made)
    assert refused.value.kind is BAD_ADDRESSES
    assert driver.requests == []


IMAGE = SourceDisk(
    device="vm",
    size_bytes=1,
    volume="vm",
    partitions=(Partition(number=1, device="vm-part1", offset_bytes=0, size_bytes=1),),
)
ROOT = SourceDisk(device="sda", size_bytes=1, volume="sda", is_root=True)


@pytest.mark.parametrize(
    ("disks", "own"),
    [((), True), ((ROOT,), True), ((IMAGE,), False), ((IMAGE, ROOT), True)],
    ids=["none", "its root", "an image", "both"],
)
async def test_an_agent_that_replicates_images_of_machines_tells_nothing_of_them(
    store: Store, disks: tuple[SourceDisk, ...], own: bool
) -> None:
    store.keep_inventory("shop", msgspec.structs.replace(SHOP, disks=disks), generation=1)
    driver = Driver(None)
    step, made = launching(store, driver, options=RunOptions(despite=["addresses"]))
    assert (await LAUNCH.act(step, made)).ok
    assert bool(driver.requests[0].cards) is own
    assert (driver.requests[0].inventory is not None) is own


CASES: Mapping[str, tuple[Card, list[str], list[str]]] = {
    "whole": (Card(addresses=("10.9.0.5/24", "2001:db8::5/64")), ["2001:db8::5/128", "10.9.0.5/24"], []),
    "one is missing": (Card(name="e", addresses=("10.9.0.5/24", "10.9.1.5/24")), ["10.9.0.5/24"], ["10.9.1.5/24 of e"]),
    "by DHCP another": (Card(dhcp=True, addresses=("10.9.0.5/24",)), ["10.1.0.77/24"], []),
    "by DHCP none": (Card(dhcp=True, addresses=("10.9.0.5/24",)), ["fe80::1/64"], ["10.9.0.5/24 of a card"]),
    "nothing known": (Card(dhcp=True), [], []),
    "no address": (Card(addresses=("10.9.0.5/24",)), ["what?"], ["10.9.0.5/24 of a card"]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_server_lacks(name: str) -> None:
    card, seen, missing = CASES[name]
    assert missing_addresses([card], seen) == missing
