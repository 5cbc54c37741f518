"""The `command` driver keeps the contract, and some promises of its own."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.drivers.available import available_drivers, load_driver
from drengine.failover.drivers.command import CommandDriver
from drengine.failover.drivers.contract import LaunchDriverContract
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.model.errors import DrengineError
from drengine.nbd.file_export import FileProvider
from drengine.nbd.server import NbdServer
from drengine.process import find_marked

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def request(directory: Path, settings: dict[str, Any], seconds: float = 20.0) -> LaunchRequest:
    return LaunchRequest(
        instance=f"test-{secrets.token_hex(4)}",
        run="run-1",
        source="shop",
        disks=(Disk("data", 1 << 20, "nbd+unix:///shop/data%232?socket=/x"),),
        isolated=True,
        settings=settings,
        directory=directory,
        timeout_seconds=seconds,
    )


class TestContract(LaunchDriverContract):
    def driver(self) -> CommandDriver:
        return CommandDriver()

    def request(self, directory: Path) -> LaunchRequest:
        return request(directory, {"run": SLEEPER, "health": ["true"], "details": {"address": "x"}})

    def failing(self, directory: Path) -> LaunchRequest:
        return request(directory, {"run": SLEEPER, "health": ["false"]}, seconds=0.5)


class TestContractOfManagedServices(LaunchDriverContract):
    """`start` and `stop` return; the state is the service's own."""

    def driver(self) -> CommandDriver:
        return CommandDriver()

    def request(self, directory: Path) -> LaunchRequest:
        flag = directory.with_suffix(".flag")
        return request(directory, {"start": ["touch", str(flag)], "stop": ["rm", "-f", str(flag)]})


def test_the_workload_learns_its_disks(tmp_path: Path) -> None:
    script = (
        "import os, time; open('env', 'w').write(os.environ['DRENGINE_DISKS'] + '|' + os.environ['DRENGINE_DISK_DATA'])"
    )
    wanted = request(
        tmp_path / "i",
        {
            "run": [sys.executable, "-c", script + "; time.sleep(600)"],
            "health": ["test", "-s", str(tmp_path / "i/env")],
        },
    )
    try:
        CommandDriver().launch(wanted, lambda _: None)
        disks, _, data = (tmp_path / "i/env").read_text().partition("|")
        assert json.loads(disks) == {"data": wanted.disks[0].uri}
        assert data == wanted.disks[0].uri
    finally:
        CommandDriver().stop(wanted)


def test_a_hydrated_workload_writes_through_to_the_branch(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "branch").write_bytes(b"x" * 300_000)
        server = NbdServer(FileProvider({"data": tmp_path / "branch"}))
        place = await server.start_unix(tmp_path / "s")
        script = (
            "import os, time; from drengine.nbd.client import NbdClient\n"
            "disk = NbdClient.of(os.environ['DRENGINE_DISK_DATA']); assert disk.read(0, 3) == b'xxx'\n"
            "disk.write(1, b'new'); disk.flush(); open('done', 'w').close(); time.sleep(600)"
        )
        wanted = replace(
            request(
                tmp_path / "i",
                {
                    "run": [sys.executable, "-c", script],
                    "health": ["test", "-e", str(tmp_path / "i/done")],
                    "environment": {"PYTHONPATH": os.pathsep.join(sys.path)},
                },
            ),
            disks=(Disk("data", 300_000, f"nbd+unix:///data?socket={place}"),),
            hydrate=True,
        )
        driver = CommandDriver()
        try:
            found = await asyncio.to_thread(driver.launch, wanted, lambda _: None)
            assert found.healthy
            while (await asyncio.to_thread(driver.inspect, wanted)).details["hydrated"] != {"data": 1.0}:
                pass
        finally:
            await asyncio.to_thread(driver.stop, wanted)
            await server.close()
        assert (tmp_path / "branch").read_bytes()[:5] == b"xnewx"
        assert not find_marked("DRENGINE_HYDRATOR", wanted.instance)

    asyncio.run(story())


@pytest.mark.fault(58)
def test_a_workload_that_ends_at_once_is_a_failure_with_its_last_words(tmp_path: Path) -> None:
    wanted = request(tmp_path / "i", {"run": ["sh", "-c", "echo no database here; sleep 0.1; exit 1"]})
    with pytest.raises(DrengineError, match="no database here") as raised:
        CommandDriver().launch(wanted, lambda _: None)
    assert raised.value.kind is LAUNCH_FAILED
    CommandDriver().stop(wanted)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "exactly one of"),
        ({"run": ["a"], "start": ["b"]}, "exactly one of"),
        ({"start": ["a"]}, "needs `stop`"),
        ({"run": "rm -rf /"}, r"\$\.run"),
        ({"run": ["a"], "grace": "soon"}, "grace"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(DrengineError, match=told) as raised:
        CommandDriver().check_settings(settings)
    assert raised.value.kind is LAUNCH_SETTINGS


def test_an_unknown_driver_is_refused_with_those_there_are() -> None:
    assert "command" in available_drivers()
    with pytest.raises(DrengineError, match="command"):
        load_driver("no-such")
