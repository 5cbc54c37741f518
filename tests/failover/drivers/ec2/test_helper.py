"""The driver and a recovery host's agent together: the helper's disks are real, only EC2 stands in.

A volume is a loop device, which shows its serial number as EBS does for as long as the stand-in has it attached to the
helper.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from drengine.config import Address
from drengine.control.messages import Answer, Command, Verb
from drengine.failover.drivers.driver import Disk
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.model.errors import DrengineError
from drengine_agent.standby.config import StandbyBrokerOptions, StandbyConfig
from drengine_agent.standby.host import StandbyHost
from tests.agent.standby.test_standby import serving
from tests.failover.drivers.ec2.helper import HelperDisks
from tests.failover.drivers.ec2.site import HOST, Network, driver, network, request
from tests.failover.drivers.ec2.standin import running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make loop devices")
VOLUME_BYTES = 8 << 20
SIZES = {"root": 3 << 20, "data": (5 << 20) + 4096}


class RealHelper:
    """Carries orders out by a recovery host's own code."""

    def __init__(self, site: Network, folder: Path, disks: ExitStack) -> None:
        self._disks = HelperDisks(site, folder, disks, VOLUME_BYTES)
        self.device = self._disks.device
        config = StandbyConfig(
            name=HOST,
            state_directory=folder / "state",
            control=StandbyBrokerOptions(address=Address("127.0.0.1", 1)),
        )
        self._host = StandbyHost(config, blocks=self._disks.blocks)

    def __call__(
        self, verb: Verb, arguments: Mapping[str, Any], seconds: float, progress: Callable[[str], None]
    ) -> Answer:
        assert verb is Verb.HYDRATE
        self._disks.show()
        command = Command(id="1", verb=verb, arguments=dict(arguments), generation=0, expires_ns=1 << 62)
        try:
            done = asyncio.run(self._host.hydrate(command, lambda told: progress(str(told["message"]))))
        except DrengineError as error:
            return Answer(id="1", done=True, ok=False, code=error.kind.id, message=error.message)
        return Answer(id="1", done=True, ok=True, result=dict(done))


@pytest.fixture
def site() -> Iterator[Network]:
    with running() as cloud:
        yield network(cloud)


@pytest.fixture
def branches(tmp_path: Path) -> Iterator[dict[str, str]]:
    """URIs of the disks' branches."""
    images = {name: tmp_path / f"{name}.branch" for name in SIZES}
    for number, (name, size) in enumerate(SIZES.items()):
        images[name].write_bytes(random.Random(number).randbytes(size))
    with serving(tmp_path, **images) as uris:
        yield uris


def test_disks_go_there_and_what_the_instance_wrote_comes_back(
    site: Network, branches: dict[str, str], tmp_path: Path
) -> None:
    with ExitStack() as disks:
        helper = RealHelper(site, tmp_path, disks)
        told = tuple(Disk(name, SIZES[name], uri) for name, uri in branches.items())
        wanted = request(tmp_path / "i", site.settings(), disks=told, order=helper)
        said: list[str] = []
        volumes = driver().launch(wanted, said.append).details["volumes"]
        for name, volume in volumes.items():
            there = helper.device(volume).read_bytes()
            assert there[: SIZES[name]] == (tmp_path / f"{name}.branch").read_bytes(), name
        assert any(text.startswith("data: 100% of 5.0 MiB read back") for text in said)
        with helper.device(volumes["data"]).open("r+b") as disk:
            disk.seek(4 << 20)
            disk.write(b"an order of the shop")
            os.fsync(disk.fileno())
        driver().quiesce(wanted)
        assert (tmp_path / "data.branch").read_bytes()[4 << 20 :][:20] == b"an order of the shop"
        driver().launch(wanted, said.append)
        assert helper.device(volumes["data"]).read_bytes()[4 << 20 :][:20] == b"an order of the shop"
        driver().stop(wanted)
        assert site.left() == []


def test_a_volume_that_is_a_byte_smaller_than_its_disk_is_said(
    site: Network, branches: dict[str, str], tmp_path: Path
) -> None:
    """As when EBS, or whoever made it, has given less than was asked for."""
    with ExitStack() as disks:
        helper = RealHelper(site, tmp_path, disks)
        too_large = (Disk("data", VOLUME_BYTES + 1, branches["data"]),)
        wanted = request(tmp_path / "i", site.settings(), disks=too_large, order=helper, inventory=None)
        with pytest.raises(DrengineError) as caught:
            driver().launch(wanted, lambda _: None)
        assert caught.value.kind is LAUNCH_FAILED
        assert "is 1 bytes smaller than the disk" in caught.value.message
        driver().stop(wanted)
        assert site.left() == []
