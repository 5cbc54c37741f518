"""Upgrades of real agents on hosts of their own: fetched from the authority, ordered under a signature, installed by
their own `upgrade`; whoever is killed comes back old or new."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drengine.config import Address
from drengine.control.agents import BrokerAgents
from drengine.control.broker import embedded_broker
from drengine.control.config import OrchestratorBrokerOptions
from drengine.failover.config import OrchestratorConfig
from drengine.failover.registry import Registry
from drengine.failover.witness import Witness
from drengine.fleet.answers import RolloutAnswer, SourceAnswer
from drengine.fleet.look import Parts, look
from drengine.fleet.orders import FleetOrders
from drengine.fleet.rollout import Executor, duty_of, rollout_answer
from drengine.identity.names import Role
from drengine.model.clock import SystemClock
from drengine.store.store import Store
from drengine_agent.program import PROGRAM
from tests.agent.install.host import Host, host
from tests.agent.install.live import facts, journal, mounted, write
from tests.agent.install.onefile import build_here
from tests.agent.install.test_host import missing
from tests.control.site import free_port
from tests.enrolment.site import Site, serving
from tests.persons import BOB

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices, namespaces, BPF"),
    pytest.mark.skipif(bool(missing), reason=f"missing: {', '.join(missing)}"),
    pytest.mark.timeout(600),
]
ROOT = Path(__file__).parents[2]
SECONDS = 120.0


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The agent, a newer one, one that does not want to be installed, and one that is but does not start."""
    folder = tmp_path_factory.mktemp("programs")
    lame = {"common/drengine_agent/cli/run.py": b"raise SystemExit('this build does not start')\n"}
    broken = {"common/drengine_agent/cli/upgrade.py": b"raise SystemExit('this build is broken')\n"}
    return {
        "old": build_here(folder / "old"),
        "new": build_here(folder / "new", extra={"common/drengine_agent/newer.py": b""}),
        "broken": build_here(folder / "broken", extra=broken),
        "lame": build_here(folder / "lame", extra=lame),
    }


@dataclass
class Outpost:
    """The recovery side, in this process but for the target."""

    site: Site
    parts: Parts
    handed_out: Path
    target: str
    broker: str
    folder: Path

    def hand_out(self, program: Path) -> None:
        shutil.copy(program, self.handed_out.with_suffix(".new"))
        self.handed_out.with_suffix(".new").replace(self.handed_out)

    @property
    def orders(self) -> FleetOrders:
        return FleetOrders(self.parts, Witness(), BOB)

    async def seen(self, name: str = "shop") -> SourceAnswer:
        fleet = await asyncio.to_thread(look, self.parts)
        found = [each for each in fleet.sources if each.source == name]
        assert found, "nothing is known of it"
        return found[0]

    async def upgrade(self, version: str, *rings: str, limit_seconds: float = SECONDS) -> RolloutAnswer:
        begun = await asyncio.to_thread(
            lambda: self.orders.upgrade(version, "", rings or ("rest",), limit_seconds=limit_seconds, at_once=2)
        )
        assert begun.state == "running"
        return rollout_answer(await Executor(self.parts, duty_of(self.parts)).run())


@contextlib.asynccontextmanager
async def outpost(folder: Path) -> AsyncIterator[Outpost]:
    handed_out, ports = folder / "drengine-agent", (free_port(), free_port())
    async with serving(folder, agent=handed_out) as site:
        places = {
            "target": await site.joined("target", Role.TARGET, hosts=["127.0.0.1"]),
            "broker": await site.joined("broker", Role.BROKER, hosts=["127.0.0.1"]),
            "orchestrator": await site.joined("orchestrator", Role.ORCHESTRATOR),
        }
        Store.create(folder / "store").close()
        tls = {name: str(path) for name, path in vars_of(places["target"]).items()}
        (folder / "target.toml").write_text(
            f'store = "{folder}/store"\nlisten = "127.0.0.1:{ports[0]}"\n[tls]\n'
            + "".join(f'{name} = "{path}"\n' for name, path in tls.items())
        )
        process = _target(folder)
        address, files = Address("127.0.0.1", ports[1]), places["orchestrator"].files
        options = OrchestratorBrokerOptions(
            address=address, certificate=files.certificate, key=files.key, ca=files.ca, crl=files.crl
        )
        config = OrchestratorConfig(store=folder / "store", state=folder / "state", broker=options)
        try:
            async with embedded_broker(address, files=places["broker"].files), BrokerAgents(options) as agents:
                registry = Registry.open(config.registry_url, clock=SystemClock())
                with Store.open(folder / "store", read_only=True) as store, contextlib.closing(registry):
                    parts = Parts(config, SystemClock(), store, registry, agents)
                    yield Outpost(site, parts, handed_out, f"127.0.0.1:{ports[0]}", str(address), folder)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _target(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "target.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "drengine.cli.main", "target", "run", "--config", str(folder / "target.toml")],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )


def vars_of(place: Any) -> dict[str, Path]:
    files = place.files
    return {"certificate": files.certificate, "key": files.key, "ca": files.ca, "crl": files.crl}


async def off(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def until(what: str, ready: Callable[[], Any], show: Callable[[], str] = str) -> Any:
    """A blocking question until it is true; a deadline only ends a test that has failed."""
    end = asyncio.get_running_loop().time() + SECONDS
    while not (found := await off(ready)):
        assert asyncio.get_running_loop().time() < end, f"{what} did not come: {show()}"
        await asyncio.sleep(0.05)
    return found


async def installed(there: Host, here: Outpost, program: Path, disk: Path) -> None:
    """The agent on that host, joined by a token, and CONTINUOUS."""
    shutil.copy(program, there.root / "root/drengine-agent")
    words = ["--source", "shop", "--target", here.target, "--broker", here.broker, "--volume", f"data={disk}"]
    token = str(here.site.invitation(Role.AGENT, "shop"))
    await off(lambda: there.run("./drengine-agent", "install", *words, "--token", token, "--yes", seconds=180))


async def continuous(here: Outpost, there: Host) -> None:
    async def looks() -> bool:
        with contextlib.suppress(AssertionError):
            found = await here.seen()
            return found.state == "CONTINUOUS" and found.connected is True and found.upgrade is not None
        return False

    end = asyncio.get_running_loop().time() + SECONDS
    while not await looks():
        assert asyncio.get_running_loop().time() < end, await off(lambda: journal(there))
        await asyncio.sleep(0.1)


async def restarted(here: Outpost, there: Host) -> None:
    """Its file was changed."""
    reports, before = here.parts.agents.reports, here.parts.agents.reports()["shop"].instance
    await off(lambda: there.run("systemctl", "restart", "drengine-agent"))
    await until("another process", lambda: reports()["shop"].instance != before)
    await continuous(here, there)


async def settled(here: Outpost, there: Host) -> dict[str, Any]:
    """What the agent tells of its upgrade once what runs is what lies there. The installer outlives an agent that is
    killed, and starts it anew when it is through.
    """
    end = asyncio.get_running_loop().time() + SECONDS
    while True:
        told: dict[str, Any] = (await here.seen()).upgrade or {}
        lies = await off(lambda: runs(there))
        if told.get("sha256") == lies:
            return told
        assert asyncio.get_running_loop().time() < end, (told, lies)
        await asyncio.sleep(0.2)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def runs(there: Host) -> str:
    """SHA-256 of the installed program, as it lies on that host."""
    return digest(there.root / str(PROGRAM).lstrip("/"))


async def test_an_agent_under_systemd_is_upgraded_keeps_its_tracking_and_a_broken_build_changes_nothing(
    programs: dict[str, Path],
    disk: Path,
    tmp_path: Path,
) -> None:
    async with outpost(tmp_path) as here:
        with host(tmp_path / "host", systemd=True) as there, mounted(there, disk) as data:
            here.hand_out(programs["old"])
            await installed(there, here, programs["old"], disk)
            await continuous(here, there)
            version = (await here.seen()).version
            epoch = await off(lambda: facts(there)["epoch"])

            here.hand_out(programs["broken"])
            await until("the broken one", lambda: offered(here) == digest(programs["broken"]))
            stopped = await here.upgrade(version)
            (agent,) = stopped.rings[0].agents
            assert (stopped.state, agent.phase) == ("stopped", "sick")
            assert "this build is broken" in agent.message
            assert await off(lambda: runs(there)) == digest(programs["old"])
            await continuous(here, there)

            here.hand_out(programs["lame"])
            await until("the lame one", lambda: offered(here) == digest(programs["lame"]))
            stopped = await here.upgrade(version)
            assert stopped.state == "stopped", stopped
            assert "did not start" in stopped.message
            assert await off(lambda: runs(there)) == digest(programs["old"]), "the old one is back by itself"
            await continuous(here, there)
            assert await off(lambda: facts(there)["epoch"]) == epoch

            here.hand_out(programs["new"])
            await until("the new one", lambda: offered(here) == digest(programs["new"]))
            await off(lambda: write(data, "during"))
            done = await here.upgrade(version)
            assert done.state == "done", (done, await off(lambda: journal(there)))
            assert await off(lambda: runs(there)) == digest(programs["new"])
            assert await off(lambda: facts(there)["epoch"]) == epoch, "the kernel went on tracking"
            new = digest(programs["new"])
            told = {"sha256": new, "state": "installed", "to": new, "version": version, "number": "2"}
            assert (await here.seen()).upgrade == told

            again = await here.upgrade(version)
            assert again.rings[0].agents[0].message == "it has it already"


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.5, 3.0])
async def test_an_agent_that_is_killed_in_an_upgrade_comes_back_old_or_new(
    programs: dict[str, Path],
    disk: Path,
    tmp_path: Path,
    delay: float,
) -> None:
    async with outpost(tmp_path) as here:
        with host(tmp_path / "host", systemd=True) as there, mounted(there, disk):
            here.hand_out(programs["new"])
            await installed(there, here, programs["old"], disk)
            await continuous(here, there)
            state = there.root / "var/lib/drengine-agent/upgrade.json"

            async def kill_it() -> None:
                await until("the installer", lambda: state.exists() and "installing" in state.read_text())
                await asyncio.sleep(delay)  # a moment of the installer's work, whichever: each must do
                await off(lambda: there.run("systemctl", "kill", "--signal=KILL", "drengine-agent"))

            killing = asyncio.create_task(kill_it())
            ended = await here.upgrade((await here.seen()).version)
            await killing
            await continuous(here, there)
            assert await off(lambda: runs(there)) in {digest(programs["old"]), digest(programs["new"])}
            told = await settled(here, there)
            assert told["state"] == {"done": "installed", "stopped": "failed"}[ended.state]
            if ended.state == "done":
                assert await off(lambda: runs(there)) == digest(programs["new"])
            else:  # it was killed before the installer began
                assert (await off(here.orders.resume_rollout)).state == "running"
                assert (await Executor(here.parts, duty_of(here.parts)).run()).state == "done"
                assert await off(lambda: runs(there)) == digest(programs["new"])


async def test_without_systemd_the_process_goes_on_as_the_new_program(
    programs: dict[str, Path],
    disk: Path,
    tmp_path: Path,
) -> None:
    async with outpost(tmp_path) as here:
        with host(tmp_path / "host") as there, mounted(there, disk):
            here.hand_out(programs["new"])
            shutil.copy(programs["old"], there.root / "root/drengine-agent")
            words = ["--source", "shop", "--target", here.target, "--broker", here.broker, "--volume", f"data={disk}"]
            token = str(here.site.invitation(Role.AGENT, "shop"))
            await off(
                lambda: there.run(
                    "./drengine-agent", "install", *words, "--token", token, "--yes", "--wait", "0s", seconds=180
                )
            )
            process = await off(lambda: there.start("drengine-agent", "run"))
            await continuous(here, there)
            epoch = await off(lambda: facts(there)["epoch"])
            done = await here.upgrade((await here.seen()).version)
            assert done.state == "done", (done, (there.root / "tmp/started.log").read_text())
            assert process.poll() is None, "whoever started it sees the same process"
            assert await off(lambda: facts(there)["epoch"]) == epoch
            assert await off(lambda: runs(there)) == digest(programs["new"])


async def test_an_agents_own_file_may_forbid_it_and_an_unsigned_order_is_none(
    programs: dict[str, Path],
    disk: Path,
    tmp_path: Path,
) -> None:
    async with outpost(tmp_path) as here:
        with host(tmp_path / "host", systemd=True) as there, mounted(there, disk):
            here.hand_out(programs["new"])
            await installed(there, here, programs["old"], disk)
            await continuous(here, there)
            path = there.root / "etc/drengine/agent.toml"
            path.write_text(
                path.read_text().replace("[control]", '[control]\nverbs = ["cut", "fence", "release", "status"]')
            )
            await restarted(here, there)
            stopped = await here.upgrade((await here.seen()).version, limit_seconds=20)
            assert "[order-not-allowed]" in stopped.message
            assert await off(lambda: runs(there)) == digest(programs["old"])

            path.write_text(path.read_text().replace('verbs = ["cut", "fence", "release", "status"]', 'orders = "any"'))
            await restarted(here, there)
            agents = here.parts.agents
            assert isinstance(agents, BrokerAgents)
            seals, agents._seals = agents._seals, None
            stopped = await here.upgrade((await here.seen()).version, limit_seconds=20)
            agents._seals = seals
            assert "[order-unsigned]" in stopped.message
            assert await off(lambda: runs(there)) == digest(programs["old"])


def offered(here: Outpost) -> str:
    """SHA-256 of what the authority hands out now."""
    return str(json.loads((here.site.authority.folder / "agent.json").read_text())["sha256"])
