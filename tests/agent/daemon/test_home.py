"""Becoming a source's home: whoever is killed at any durable write ends as if he had not been; what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine_agent.capture.backing import Volume
from drengine_agent.config import AgentConfig, parse_config
from drengine_agent.daemon import home, state
from drengine_agent.daemon.home import SettleOrder, as_housed, housed, settle, stand_ready
from drengine_agent.daemon.state import AgentState, StateDirectory, read_state
from drengine_agent.fencing import fence
from drengine_agent.fencing.fence import Fence, Standing
from tests.clock import ManualClock

SIZE = 1 << 20
WANTED = [VolumeGeometry(3, "data", "file:of-shop", SIZE), VolumeGeometry(7, "logs", "serial:9", 4096)]
ORDER = SettleOrder(source="shop", generation=4, volumes=WANTED, disks={"data": "big"}, by="ann")


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    for name, size in (("big", SIZE + 1), ("logs", 4096), ("third", 100)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "state/tap").mkdir(parents=True)
    volumes = [{"name": name, "path": str(tmp_path / name)} for name in ("third", "logs", "big")]
    given = {"source": "shop2", "spare": True, "target": "127.0.0.1:1", "state_directory": str(tmp_path / "state")}
    return parse_config({**given, "volume": volumes, "control": {"address": "127.0.0.1:2"}})


@pytest.fixture
def volumes(config: AgentConfig) -> Iterator[list[Volume]]:
    opened = [Volume.open(number, each.name, each.path) for number, each in enumerate(config.volume, start=1)]
    yield opened
    for each in opened:
        each.close()


def become(config: AgentConfig, volumes: list[Volume]) -> AgentConfig:
    """The order, and the start behind it."""
    settle(config, volumes, ORDER, run="r1", now_ns=5)
    return housed(config, ManualClock(5))


def seen(config: AgentConfig) -> dict[str, Any]:
    """What a next start would find."""
    folder = config.state_directory
    files = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("home", "state", "fence")}
    return {**files, "tap": (folder / "tap").exists()}


def test_it_is_the_sources_agent_under_its_own_name_and_fenced_until_its_disks_are_filled(
    config: AgentConfig, volumes: list[Volume]
) -> None:
    effective = become(config, volumes)
    assert (effective.source, effective.party, effective.is_spare_now) == ("shop", "shop2", False)
    assert [(each.name, each.path.name) for each in effective.volume] == [("data", "big"), ("logs", "logs")]
    record = Fence(config.state_directory).record
    assert (record.standing, record.reason, record.generation) == (Standing.FENCED, "settled", 4)
    assert record.replaced == ["data", "logs"], "no release before a reversal"
    known = read_state(config.state_directory)
    assert known.generation == 4
    assert {name: (each.number, each.declared) for name, each in known.volumes.items()} == {
        "data": (3, "file:of-shop"),
        "logs": (7, "serial:9"),
    }
    assert not (config.state_directory / "tap").exists(), "a journal of other disks means nothing"
    assert housed(config, ManualClock(9)) == effective == as_housed(config)
    assert settle(config, volumes, ORDER, run="r2", now_ns=9).run == "r1", "ordered again it changes nothing"


def test_killed_at_every_durable_write_it_ends_the_same(
    config: AgentConfig, volumes: list[Volume], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    become(config, volumes)
    peace, kills = seen(config), 0
    for position in range(20):
        for path in config.state_directory.glob("*.json"):
            path.unlink()
        (config.state_directory / "tap").mkdir(exist_ok=True)
        left = [position]
        with monkeypatch.context() as patch:
            for module in (home, state, fence):
                patch.setattr(module, "replace_durably", dying(module.replace_durably, left))
            try:
                become(config, volumes)
            except Killed:
                kills += 1
        become(config, volumes)
        assert seen(config) == peace, f"killed at position {position}"
    assert kills == 8, "four files, each before and after"


def dying(real: Any, left: list[int]) -> Any:
    def write(path: Path, data: bytes) -> None:
        for act in (lambda: None, lambda: real(path, data)):
            act()
            left[0] -= 1
            if left[0] == -1:
                raise Killed

    return write


def test_only_a_spare_host_obeys_and_only_once(config: AgentConfig, volumes: list[Volume], tmp_path: Path) -> None:
    def refused(order: SettleOrder, config: AgentConfig = config) -> str:
        with pytest.raises(DrengineError) as error:
            settle(config, volumes, order, run="r1", now_ns=5)
        assert error.value.kind.id == "new-home-unfit"
        return error.value.message

    other = parse_config(
        {"source": "web", "target": "127.0.0.1:1", "state_directory": str(tmp_path / "x")}
        | {"volume": [{"name": "third", "path": str(tmp_path / "third")}]}
    )
    assert "web is no spare" in refused(ORDER, other)
    large = SettleOrder(source="shop", generation=4, volumes=[VolumeGeometry(1, "big", "x", SIZE + 2)])
    assert f"big has {SIZE + 2} bytes, and disk big ({tmp_path / 'big'}) only {SIZE + 1}" in refused(large)
    assert not (config.state_directory / "home.json").exists()
    effective = become(config, volumes)
    elsewhere = SettleOrder(source="web", generation=4, volumes=WANTED, disks={"data": "big"})
    assert "is the home of shop" in refused(elsewhere, effective)


def test_a_host_that_has_replicated_is_no_spare_one(config: AgentConfig) -> None:
    directory = StateDirectory(config.state_directory)
    directory.save(AgentState(generation=1, acknowledged_sequence=7))
    directory.close()
    with pytest.raises(DrengineError, match="has replicated as shop2"):
        housed(config, ManualClock(5))


def test_a_decision_that_can_not_be_read_is_no_spare_hosts(config: AgentConfig) -> None:
    (config.state_directory / "home.json").write_text("{")
    with pytest.raises(DrengineError) as error:
        housed(config, ManualClock(5))
    assert error.value.kind.id == "agent-state-damaged"


def test_a_spare_host_stands_fenced_from_its_first_start(config: AgentConfig) -> None:
    stand_ready(config, Fence(config.state_directory), ManualClock(5))
    record = Fence(config.state_directory).record
    assert (record.standing, record.reason) == (Standing.FENCED, "spare")


def test_its_file_may_say_for_good_what_was_decided(config: AgentConfig, volumes: list[Volume], tmp_path: Path) -> None:
    effective = become(config, volumes)
    listed = [{"name": "data", "path": str(tmp_path / "big")}, {"name": "logs", "path": str(tmp_path / "logs")}]
    written = parse_config(
        {"source": "shop", "name": "shop2", "target": "127.0.0.1:1", "state_directory": str(config.state_directory)}
        | {"volume": listed, "control": {"address": "127.0.0.1:2"}}
    )
    assert housed(written, ManualClock(5)) is written
    assert (written.source, written.party, written.volume) == (effective.source, effective.party, effective.volume)
    (config.state_directory / "home.json").unlink()
    assert housed(written, ManualClock(5)) is written
