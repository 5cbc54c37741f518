"""Looking at the fleet: what parties say is a stranger's word, and what can't be asked is told as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.config import Address
from drengine.control.agents import NoAgents
from drengine.control.messages import AgentReport, PartyKind, Presence
from drengine.failover.config import FleetOptions, OrchestratorConfig
from drengine.fleet.look import Parts, look
from drengine.joining.inventory import read_inventory
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=8,
)
KEYS = ("version", "platform", "tracker", "certificate_ends_ns", "policy", "upgrade")
INNER = ("digest", "in_use", "sha256", "state", "cuts", "bandwidth")
DETAILS = st.dictionaries(
    st.sampled_from(KEYS), JSON | st.dictionaries(st.sampled_from(INNER), JSON, max_size=4), max_size=6
)


class Heard(NoAgents):
    """A broker that has carried one report."""

    def __init__(self, details: dict[str, Any], state: str = "CONTINUOUS") -> None:
        self._report = AgentReport(
            name="shop", kind=PartyKind.AGENT, state=state, reason="none", generation=1, fenced=False, serving=True,
            lag_seconds=1.0, backlog_bytes=0, at_ns=2**63 - 1, sequence=1, details=details,
        )  # fmt: skip

    def reports(self) -> dict[str, AgentReport]:
        return {"shop": self._report}

    def presences(self) -> dict[str, tuple[PartyKind, Presence]]:
        return {"shop": (PartyKind.AGENT, Presence(online=True, since_ns=1, instance="x", version="1"))}

    def is_online(self, name: str) -> bool:
        return name == "shop"


def parts(folder: Path, agents: NoAgents, **more: Any) -> Parts:
    config = OrchestratorConfig(store=folder / "store", state=folder / "state", **more)
    return Parts(config, SystemClock(), None, None, agents)


@given(DETAILS, st.text(max_size=5))
@settings(max_examples=200, deadline=None)
def test_whatever_an_agent_says_of_itself_the_fleet_is_shown(details: dict[str, Any], state: str) -> None:
    found = look(parts(Path("/nonexistent"), Heard(details, state)))
    (shop,) = found.sources
    assert shop.connected is True
    assert shop.silent_since_ns == 0
    emit_json(found)


def test_what_can_not_be_asked_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "policy.json").write_text("{")
    defaults = "{target: 127.0.0.1:7440}"
    (tmp_path / "inventory.yaml").write_text(f"defaults: {defaults}\nservers: {{shop: , web: }}")
    options = FleetOptions(ca=tmp_path / "no-ca", inventory=tmp_path / "inventory.yaml")
    found = look(parts(tmp_path, NoAgents(), fleet=options, export=(Address(path=str(tmp_path / "nobody.sock")),)))
    assert set(found.unknown) == {"policy", "identities", "target"}
    assert [(each.source, each.known_by, each.joined) for each in found.sources] == [
        ("shop", ["inventory"], False),
        ("web", ["inventory"], False),
    ]
    assert (found.expected, found.joined, found.silent) == (2, 0, 0)


@pytest.mark.parametrize("text", ["", "- shop", "servers: [shop]", "servers: {Shop: }", "{", "servers: {../x: }"])
def test_an_inventory_with_a_mistake_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(text)
    with pytest.raises(DrengineError):
        read_inventory(path)
