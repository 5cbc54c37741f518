"""Who may say that a source was failed over: its target, and nobody who only answers at the target's address."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.identity.names import Identity, Role
from drengine.target.config import TlsOptions
from drengine.transport.files import TlsFiles
from drengine.wire.events import Refuse
from drengine_agent.daemon.service import Agent
from drengine_agent.fencing.fence import FILE_NAME, Fence, Standing
from tests.agent.daemon.test_service import configured, running, until, write
from tests.agent.failback.home import at_home
from tests.agent.replica import Replica
from tests.control.identities import Site
from tests.transport.certificates import Authority as Foreign

pytestmark = [pytest.mark.timeout(120), pytest.mark.fault(45)]
NOBODY = 65534

IMPOSTER = """
import asyncio, concurrent.futures.thread, encodings.idna, os, sys
from drengine.transport.endpoints import serve
from drengine.transport.networks import DataNetworks
from drengine.store.errors import FENCED
from drengine.model.errors import DrengineError

said = open(sys.argv[1], "ab", buffering=0)

class Observer:
    def bytes_received(self, network, count):
        said.write(b"%d bytes came\\n" % count)
    def bytes_sent(self, network, count):
        pass

async def refuse(stream):
    await stream.receive()
    raise DrengineError(FENCED, "generation 1 is over")

async def main():
    os.setgid(65534)
    os.setuid(65534)
    listener = await serve("127.0.0.1", 0, refuse, networks=DataNetworks(), tls=None, observer=Observer())
    print(listener.port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def imposter(heard: Path) -> Iterator[int]:
    """Another local user's process, which listens where the target should, and says that the source is fenced."""
    heard.write_bytes(b"")
    heard.chmod(0o666)
    process = subprocess.Popen([sys.executable, "-c", IMPOSTER, str(heard)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


async def test_another_local_user_at_the_targets_port_neither_stops_production_nor_is_told_a_byte(
    tmp_path: Path,
) -> None:
    """While the target is down, somebody listens on its port: it received the disk, or fenced the source."""
    with imposter(tmp_path / "heard") as port:
        nbd = {"listen": f"unix:{tmp_path}/n.sock", "journal": "4MiB", "await_target": "100ms"}
        config = configured(tmp_path, target=f"127.0.0.1:{port}", nbd=nbd)
        import asyncio

        from drengine_agent.daemon.service import Agent

        agent = Agent(config)
        running_agent = asyncio.create_task(agent.run())
        try:
            await until(lambda: agent.status()["detail"])
            assert f"user {NOBODY}" in str(agent.status()["detail"])
            assert "target_user" in str(agent.status()["hint"])
            await write(config, 0, b"production goes on")
            assert agent.is_serving and not agent.is_fenced
        finally:
            agent.stop()
            await asyncio.wait_for(running_agent, 30)
    assert not (config.state_directory / FILE_NAME).exists()
    assert (tmp_path / "heard").read_bytes() == b""


async def test_whose_process_may_be_the_target_is_configured(tmp_path: Path) -> None:
    with imposter(tmp_path / "heard") as port:
        config = configured(tmp_path, target=f"127.0.0.1:{port}", target_user="nobody")
        agent = Agent(config)
        running_agent = asyncio.create_task(agent.run())
        try:
            await until(lambda: agent.is_fenced)
        finally:
            agent.stop()
            await asyncio.wait_for(running_agent, 30)


async def test_a_fence_of_nobody_known_stops_shipping_and_not_production(tmp_path: Path) -> None:
    nbd = {"listen": f"unix:{tmp_path}/n.sock", "journal": "4MiB", "await_target": "100ms"}
    config, replica = configured(tmp_path, nbd=nbd), Replica()
    replica.is_proved, replica.refuse = False, Refuse("fenced", "generation 1 is over", retryable=False)
    async with running(config, replica) as agent:
        await until(lambda: replica.sessions > 1)  # it tries again
        assert (agent.status()["state"], agent.status()["reason"]) == ("DISCONNECTED", "fence-unproved")
        await write(config, 0, b"production goes on")
        assert agent.is_serving and not agent.is_fenced
        replica.is_proved = True
        agent.resume()
        await until(lambda: agent.is_fenced)
    assert Fence(config.state_directory).record.standing is Standing.FENCED


def tls(files: TlsFiles) -> dict[str, Any]:
    return {"certificate": files.certificate, "key": files.key, "ca": files.ca}


@pytest.mark.parametrize("named", [True, False])
async def test_over_tls_only_a_certificate_that_names_a_target_fences(tmp_path: Path, named: bool) -> None:
    site, foreign = Site.make(tmp_path), Foreign.make(tmp_path / "foreign")
    if named:
        target = site.files(Identity("main", Role.TARGET, "outpost"))
        agent = site.files(Identity("main", Role.AGENT, "shop"))
    else:
        target, agent = foreign.issue("target"), foreign.issue("shop")
    ours = {name: str(path) for name, path in tls(agent).items()}
    nbd = {"listen": f"unix:{tmp_path}/n.sock", "journal": "4MiB", "await_target": "100ms"}
    given = {"tls": TlsOptions(**tls(target)), "nbd_socket": tmp_path / "t.sock"}
    async with at_home(tmp_path, target=given, tls=ours, nbd=nbd) as home:
        await home.caught_up()
        await home.stop()
        home.promote()
        stale = home.start()
        if named:
            await until(lambda: stale.is_fenced)
        else:
            await until(lambda: stale.status()["reason"] == "fence-unproved")
            await home.write(0, b"production goes on")
            assert not stale.is_fenced
        assert home.active.durable_sequence == home.active.base_sequence, "nothing of it is in the history"
