"""The list of checks: what the manual says of it, who may be asked, what can be passed by, what may hang."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.control.agents import NoAgents
from drengine.failover.config import OrchestratorConfig
from drengine.failover.errors import UNKNOWN_CHECK
from drengine.failover.labels import Purpose, RunLabel
from drengine.failover.options import NewHome, RunOptions
from drengine.failover.preflight import examine
from drengine.failover.preflight.check import Check, Look, Scene, apart
from drengine.failover.preflight.examine import CHECKS, Preflight, require_despite
from drengine.failover.readiness import Checked
from drengine.failover.registry import Registry
from drengine.failover.runbook.values import Addresses, AddressRule, Fence, HostFence, Mode, Runbook, Step
from drengine.failover.steps.approval import Approval
from drengine.failover.steps.step import Case
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.model.inventory import Interface, Inventory
from drengine.people.door import Door
from drengine.people.roles import Role
from tests.failover.engine.world import World, runbook

MANUAL = (Path(__file__).parents[3] / "docs/operations.md").read_text()


class Place:
    """A site without a broker, whose checks can be asked."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder / "world")
        config = OrchestratorConfig(store=self.world.path, state=folder / "state")
        self.door = Door.of(config.state, SystemClock())
        self.registry = Registry.open(f"sqlite:///{folder}/registry.sqlite", clock=SystemClock())
        self.preflight = Preflight(config, self.registry, self.door, NoAgents())
        self.site = replace(self.world.site(), preflight=self.preflight)

    async def look(self, book: Runbook, **case: Any) -> dict[str, Checked]:
        wanted = Case(**{"mode": Mode.FAILOVER, "runbook": book, "options": RunOptions(), "rehearsal": True, **case})
        return {each.id: each for each in await self.preflight(self.site, wanted)}


@pytest.fixture
def place(tmp_path: Path) -> Any:
    made = Place(tmp_path)
    yield made
    made.registry.close()
    made.world.store.close()


def test_every_check_is_in_the_manual_as_it_is() -> None:
    for check in CHECKS.values():
        effect = "blocks, always" if check.vital else check.severity.value
        assert f"| `{check.id}` | {effect} | {check.looks_at} |" in MANUAL, check.id


def test_what_no_run_can_do_without_is_never_passed_by() -> None:
    require_despite(["fence-dry", "host-connected:recovery-1"])
    for despite in ("point:shop", "source-known", "no-such-check"):
        with pytest.raises(DrengineError) as raised:
            require_despite([despite])
        assert raised.value.kind is UNKNOWN_CHECK


@pytest.mark.parametrize(
    ("accounts", "started_by", "ok"),
    [
        ({}, "", False),  # root would begin it, and nobody approves what he began
        ({"ann": Role.APPROVER}, "", True),
        ({"ann": Role.APPROVER}, "ann", False),
        ({"ann": Role.OPERATOR}, "", False),
        ({"bob": Role.APPROVER}, "", False),  # the step asks ann
    ],
)
async def test_somebody_else_has_to_be_there_who_may_approve(
    place: Place, accounts: dict[str, Role], started_by: str, ok: bool
) -> None:
    for name, role in accounts.items():
        place.door.accounts.add(name, (role,))
    asking = Step(actions={"approval": Approval(prompt="really?", by=["ann"])})
    found = await place.look(runbook(before=[asking], fence=["true"]), started_by=started_by)
    assert found["approver:all.before.1"].ok is ok


async def test_a_lost_source_blocks_no_failover_and_an_answering_agent_fences(place: Place) -> None:
    place.world.sources["shop"].die()
    found = await place.look(runbook(fence=["true"]), rehearsal=False)
    assert not [each.id for each in found.values() if each.blocks]
    place.world.sources["shop"].come_back()
    assert (await place.look(runbook(), rehearsal=False))["fence-command:shop"].ok
    assert not (await place.look(runbook()))["fence-command:shop"].ok, "asked before the day, it counts as lost"
    forced = RunOptions(force=True)
    assert (await place.look(runbook(), options=forced))["fence-command:shop"].ok


async def test_a_fence_for_another_host_than_the_sources_home_blocks(place: Place) -> None:
    book, other = runbook(fence=["true"]), {"spare": HostFence(command=["true"], dry=["true"])}
    fence = Fence(command=["true"], homes=other)
    prepared = msgspec.structs.replace(
        book, sources={"shop": msgspec.structs.replace(book.sources["shop"], fence=fence)}
    )
    assert (await place.look(book))["fence-home:shop"].ok
    moving = {"mode": Mode.FAILBACK, "options": RunOptions(onto={"shop": NewHome(host="spare")})}
    warned = (await place.look(book, **moving))["fence-home:shop/spare"]
    assert (warned.ok, warned.blocks) == (False, False), "before the move it only warns"
    assert (await place.look(prepared, **moving))["fence-home:shop/spare"].ok

    store = place.world.store
    info = store.source("shop")
    label = str(RunLabel("run", Purpose.RETURN, "spare"))
    store.promote(store.points("shop")[-1], expected_generation=info.generation, label=label)
    assert store.home("shop").agent == "spare"
    lives = RunOptions(homes={"shop": "spare"})
    for options in (RunOptions(), lives):  # it moved while the run began, or before
        found = await place.look(book, options=options)
        wrong = found["fence-home:shop"]
        assert wrong.blocks and "shop lives on spare, and the runbook's fence is for shop" in wrong.message
        assert "homes: {HOST: {command" in wrong.hint
        assert not {each for each in found if each.startswith(("fence-command", "fence-dry"))}, "one fault, told once"
    forced = RunOptions(homes={"shop": "spare"}, force=True)
    assert not (await place.look(book, options=forced))["fence-home:shop"].blocks
    found = await place.look(prepared, options=lives)
    assert found["fence-home:shop"].ok and found["fence-dry:shop"].ok


async def test_addresses_that_do_not_fit_block_and_those_that_no_rule_covers_warn(place: Place) -> None:
    def moved(to: str, gateway: str) -> Runbook:
        rule = AddressRule(source_network="10.1.0.0/16", to=to, gateway=gateway)
        return msgspec.structs.replace(runbook(fence=["true"]), addresses=Addresses(rules=[rule]))

    found = await place.look(runbook(fence=["true"]))
    assert found["addresses:shop"].ok, "no rule, nothing to know"
    found = await place.look(moved("10.9.0.0/16", "10.9.0.1"))
    assert found["addresses:shop"].blocks
    assert "nobody told which addresses it has" in found["addresses:shop"].message
    cards = Interface(name="eth0", addresses=("10.1.0.5/24",)), Interface(name="eth1", addresses=("10.2.0.5/24",))
    place.world.store.keep_inventory("shop", Inventory(taken_ns=1, interfaces=cards), generation=1)
    found = await place.look(moved("10.9.0.0/16", "10.9.0.1"))
    assert found["addresses:shop"].ok
    assert (found["addresses-covered:shop"].ok, found["addresses-covered:shop"].blocks) == (False, False)
    assert "no rule covers 10.2.0.5" in found["addresses-covered:shop"].message
    assert (await place.look(moved("10.9.0.0/16", "10.9.7.1")))["addresses:shop"].blocks
    twice = (await place.look(moved("10.2.0.0/16", "10.2.0.1")))["addresses:shop"]
    assert "10.2.0.5 would be given twice" in twice.message


async def test_what_an_optional_step_needs_only_warns(place: Place) -> None:
    steps = [Step(actions={"command": ["/no/such"]}, critical=critical) for critical in (True, False)]
    for step in steps:
        found = (await place.look(runbook(then=[step], fence=["true"])))["program:/no/such"]
        assert (found.ok, found.blocks) == (False, step.critical)
    both = await place.look(runbook(then=steps, fence=["true"]))
    assert both["program:/no/such"].blocks


async def test_what_hangs_or_breaks_ends_in_time_and_does_not_pass(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Check("hangs", "whether it hangs", "Wait.")

    async def hang(scene: Scene) -> list[Checked]:
        return await apart(lambda: time.sleep(3600) or [])

    async def fail(scene: Scene) -> list[Checked]:
        raise RuntimeError("unexpected")

    broken = Check("breaks", "whether it breaks", "Mend it.")
    monkeypatch.setattr(examine, "LOOKS", (Look((check,), hang), Look((broken,), fail)))
    monkeypatch.setattr(examine, "PREFLIGHT_SECONDS_MAX", 0.2)
    found = await place.look(runbook())
    assert {id: each.blocks for id, each in found.items()} == {"hangs": True, "breaks": True}
    assert "unexpected" in found["breaks"].message
