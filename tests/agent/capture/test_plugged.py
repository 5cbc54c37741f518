"""A tracker that only an installed package brings: real processes, and no file of the product knows of it."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from benchmarks.site import check_replica, free_port, site, wait_for
from drengine.model.errors import DrengineError
from drengine_agent.config import parse_config
from drengine_agent.daemon.trackers import capture_class, configured_capture
from tests.agent.capture.noted import NotedCapture, notes_of

KIB, MIB = 1 << 10, 1 << 20


def install(folder: Path, **trackers: str) -> Path:
    """What an installer leaves of a package with these trackers; returns where."""
    known = folder / "packages" / "noted-1.0.dist-info"
    known.mkdir(parents=True)
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: noted\nVersion: 1.0\n")
    lines = "".join(f"{name} = {place}\n" for name, place in trackers.items())
    (known / "entry_points.txt").write_text(f"[drengine.trackers]\n{lines}")
    return known.parent


def change(disk: Path, offset: int, data: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    with notes_of(disk).open("a") as notes:
        notes.write(f"{offset} {len(data)}\n")


def config(tracker: str, **more: Any) -> Any:
    volume = {"name": "data", "path": "/x"}
    return parse_config({"source": "shop", "target": "127.0.0.1:1", "tracker": tracker, "volume": [volume], **more})


def test_what_it_sees_becomes_points_and_its_figures_are_told(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(2 * MIB))
    notes_of(disk).touch()
    packages, port = install(tmp_path, noted="tests.agent.capture.noted:NotedCapture"), free_port()
    with site(tmp_path, packages) as here:
        target = here.start_target()
        agent = here.start_agent(target, "shop", {"data": disk}, tracker="noted", metrics=f"127.0.0.1:{port}")
        first = wait_for("a point", lambda: target.points("shop"), target, agent)[-1]
        assert agent.ask("status")["rescans"] == {}, "the first copy is no rescan"
        before = agent.ask("status")["bytes_captured"]
        change(disk, 64 * KIB, os.urandom(4 * KIB))
        change(disk, MIB, os.urandom(8 * KIB))
        wait_for("a point of it", lambda: target.points("shop", after=first.sequence), target, agent)
        wait_for("all of it", lambda: agent.ask("status")["noted_bytes"] == 0, target, agent)
        agent.ask("cut", label="by hand")
        check_replica(target, "shop", disk)
        status = agent.ask("status")
        assert status["bytes_captured"] - before == 12 * KIB, "more was shipped than was noted"
        assert (status["tracker"], status["notes_read"], status["hurries"]) == ("noted", 2, 1)
        assert status["sizes"] == {"small": 1, "large": 1}
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            shown = answer.read().decode()
    for line in (
        'drengine_agent_notes_read_total{source="shop"} 2.0',
        'drengine_agent_noted_bytes{source="shop"} 0.0',
        'drengine_agent_notes_by_size_total{size="large",source="shop"} 1.0',
    ):
        assert line in shown


def test_a_name_that_nothing_brings_is_refused_with_those_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, noted="tests.agent.capture.noted:NotedCapture")))
    assert capture_class(config("noted").tracker) is NotedCapture
    with pytest.raises(DrengineError, match=r"no tracker 'nodet'; there are ebpf, nbd, noted, scan"):
        config("nodet")


@pytest.mark.parametrize("place", ["tests.agent.nothing:Here", "tests.agent.capture.noted:Nothing", "os.path:join"])
def test_what_is_no_tracker_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, broken=place)))
    with pytest.raises(DrengineError, match="tracker 'broken'") as failed:
        capture_class("broken")
    assert failed.value.kind.id == "bad-config"


def test_ours_can_not_be_replaced_by_what_happens_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, scan="tests.agent.capture.noted:NotedCapture")))
    assert capture_class("scan").__name__ == "ScanCapture"


def test_it_has_options_of_its_own_which_are_checked_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, noted="tests.agent.capture.noted:NotedCapture")))
    assert configured_capture(config("noted", tracker_options={"large": "1MiB"})) is NotedCapture
    with pytest.raises(DrengineError, match="tracker_options: unknown option lagre; did you mean large"):
        configured_capture(config("noted", tracker_options={"lagre": "1MiB"}))
    with pytest.raises(DrengineError, match="tracker scan takes no tracker_options"):
        configured_capture(config("scan", tracker_options={"large": "1MiB"}))
    with pytest.raises(DrengineError, match="option tracker_options: a table is needed"):
        config("noted", tracker_options="large")


@pytest.mark.parametrize(("tracker", "serves"), [("nbd", True), ("ebpf", False), ("scan", False)])
def test_only_a_tracker_that_serves_the_volumes_can_give_up_serving(tracker: str, serves: bool) -> None:
    asked = config(tracker, control={"address": "127.0.0.1:1883", "lease": "30s"})
    if serves:
        assert configured_capture(asked).serves
        return
    with pytest.raises(DrengineError, match=rf"control.lease: tracker {tracker} does not serve") as refused:
        configured_capture(asked)
    assert refused.value.kind.id == "bad-config"
