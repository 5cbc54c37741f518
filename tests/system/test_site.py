"""The whole product over four hosts: a live database server is replicated, drilled, lost, recovered and brought home.

The source tracks its disk in the kernel, the Outpost keeps the replica, a recovery host runs what was lost, the broker
is Mosquitto as deployed, everything speaks TLS under identities that are required, orders are signed, exports granted,
the store is encrypted, the registry is PostgreSQL. Default routes go through the region, which
is cut off before the worst moment, and whose links must never have carried the data.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.devices import until
from drengine.process import end_marked, start_marked
from drengine_agent.capture.ebpf.watch import Watch
from tests.control.site import mosquitto
from tests.system import shop
from tests.system.disks import run, skip_unless_disks_can_be_attached
from tests.system.networks import SERVICES, Networks, networks, skip_unless_networks_can_be_made
from tests.system.postgres import Server, initialise, skip_unless_installed

pytestmark = pytest.mark.timeout(300)

MARK = "DR_TEST_SITE"
DISK_BYTES = 256 << 20
PORT = 8080
REGION_BYTES_MAX = 64 << 10
OUTAGE_SECONDS_MAX = 30.0
PARTIES = (
    ("target/outpost", SERVICES),
    ("broker/broker", SERVICES),
    ("agent/shop",),
    ("agent/shop2",),
    ("host/recovery-1",),
    ("orchestrator/orchestrator",),
)

TARGET = """store = "{folder}/store"
listen = "{services}:7440"
nbd_listen = "{services}:10809"
data_networks = ["10.81.1.0/24", "10.81.2.0/24"]
metrics = "127.0.0.1:9440"
exports = "granted"
[encryption]
key_file = "{folder}/store.key"
[tls]
identities = "required"
certificate = "{tls}/outpost/certificate.pem"
key = "{tls}/outpost/key.pem"
ca = "{tls}/outpost/ca.pem"
"""
AGENT = """source = "shop"
target = "{services}:7440"
tracker = "ebpf"
state_directory = "{folder}/agent"
data_networks = ["{services}/32"]
[tls]
certificate = "{tls}/shop/certificate.pem"
key = "{tls}/shop/key.pem"
ca = "{tls}/shop/ca.pem"
[cuts]
kinds = "quiet, frozen"
frozen_after = "1s"
[allow]
commands = {allowed}
[control]
address = "{services}:8883"
report_interval = "500ms"
certificate = "{tls}/shop/certificate.pem"
key = "{tls}/shop/key.pem"
ca = "{tls}/shop/ca.pem"
[[volume]]
name = "data"
path = "{device}"
"""
STANDBY = """name = "recovery-1"
state_directory = "{folder}/standby"
data_networks = ["{services}/32"]
[tls]
certificate = "{tls}/recovery-1/certificate.pem"
key = "{tls}/recovery-1/key.pem"
ca = "{tls}/recovery-1/ca.pem"
[control]
address = "{services}:8883"
certificate = "{tls}/recovery-1/certificate.pem"
key = "{tls}/recovery-1/key.pem"
ca = "{tls}/recovery-1/ca.pem"
"""
ORCHESTRATOR = """store = "{folder}/store"
state = "{folder}/orchestrator"
registry = "postgresql://postgres@/postgres?host={folder}/registry&port=5441"
export = "{services}:10809"
[encryption]
key_file = "{folder}/store.key"
[broker]
address = "{services}:8883"
certificate = "{tls}/orchestrator/certificate.pem"
key = "{tls}/orchestrator/key.pem"
ca = "{tls}/orchestrator/ca.pem"
"""


class Hosts:
    """All processes of the story, each on its host; found again and ended by their mark."""

    def __init__(self, folder: Path, nets: Networks) -> None:
        self.folder = folder
        self.nets = nets
        self.mark = folder.name
        self.home, self.recovered = folder / "home", folder / "recovered"
        self.device = ""
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))

    def start(self, host: str, name: str, *argv: str) -> None:
        """A process that stays."""
        start_marked(
            [*self.nets.inside(host), *argv],
            MARK,
            f"{self.mark}-{host}",
            output=self.folder / f"{name}.log",
            directory=self.folder,
        )

    def python(self, host: str, name: str, *argv: str) -> None:
        self.start(host, name, sys.executable, "-m", *argv)

    def kill(self, host: str) -> None:
        """Everything on that host, at once."""
        end_marked(MARK, f"{self.mark}-{host}", grace_seconds=0.0)

    def say(self, host: str, *argv: str, may_fail: bool = False) -> Any:
        """A command's JSON."""
        done = subprocess.run(
            [*self.nets.inside(host), sys.executable, "-m", *argv, "--json"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            timeout=120,
        )
        assert may_fail or done.returncode == 0, (
            f"{argv}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return json.loads(done.stdout) if done.returncode == 0 else None

    def drengine(self, *argv: str) -> Any:
        return self.say("outpost", "drengine.cli.main", *argv)

    def agent_status(self) -> Any:
        return self.say("source", "drengine_agent", "status", "--config", "agent.toml", may_fail=True)

    def audit(self, host: str, at: str) -> Any:
        """What the shop at an address says, asked from a host."""
        script = f"import json; from tests.system.shop import audit; print(json.dumps(audit('http://{at}:{PORT}')))"
        done = subprocess.run(
            [*self.nets.inside(host), sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return json.loads(done.stdout)

    def send_customers(self, host: str, where: str) -> None:
        file = self.folder / f"orders-{where}"
        file.touch()
        url = f"http://127.0.0.1:{PORT}"
        self.python(host, f"customers-{where}", "tests.system.shop", "customer", url, str(file))

    def confirmed(self, where: str) -> dict[int, float]:
        """Orders that customers were told are taken, and when."""
        lines = (self.folder / f"orders-{where}").read_text().splitlines()
        return {int(number): float(moment) for number, _, moment in (line.partition(" ") for line in lines)}


def own_service(hosts: Hosts, device: str) -> dict[str, Any]:
    """The shop on the source itself: its agent lets go of the disk that a dead machine left mounted, and boots it."""
    home = str(hosts.home)
    program = [sys.executable, "-m", "tests.system.shop", "boot", home, str(PORT), device]
    return {"name": "shop", "stop": ["sh", "-c", f"! mountpoint -q {home} || umount {home}"], "start": program}


def write_files(hosts: Hosts, device: str) -> None:
    folder, tls = hosts.folder, hosts.folder / "tls"
    hosts.drengine("ca", "init", "--ca", "ca", "--site", "main")
    for party, *reached in PARTIES:
        words = [word for host in reached for word in ("--host", host)]
        hosts.drengine("ca", "issue", party, *words, "--ca", "ca", "--to", str(tls / Path(party).name))
    hosts.drengine("keys", "generate", "store.key")
    (folder / "shop-disk").symlink_to(device)  # as a label would name it, on whatever host
    service = own_service(hosts, str(folder / "shop-disk"))
    allowed = json.dumps([shlex.join(service[order]) for order in ("stop", "start")])
    values = {"folder": folder, "tls": tls, "services": SERVICES, "device": device, "allowed": allowed}
    for name, text in (("target", TARGET), ("agent", AGENT), ("standby", STANDBY), ("orchestrator", ORCHESTRATOR)):
        (folder / f"{name}.toml").write_text(text.format(**values))
    (folder / "mosquitto").mkdir()
    places = ("--ca", folder / "ca", "--to", folder / "mosquitto", "--place", tls / "broker", "--user", "root")
    run(sys.executable, "-m", "drengine.cli.main", "broker", "config", *places)
    text = (folder / "mosquitto/conf.d/drengine.conf").read_text()
    for written, here in (
        ("listener 8883", f"user root\nlistener 8883 {SERVICES}"),
        ("/var/lib/mosquitto/", f"{folder}/"),
    ):
        assert written in text
        text = text.replace(written, here)
    (folder / "mosquitto.conf").write_text(text)
    python = [sys.executable, "-m"]
    there = str(hosts.recovered)
    runbook = {
        "version": 1,
        "name": "shop",
        "objectives": {"rpo": "5s", "rto": "60s"},
        "sources": {
            "shop": {
                "fence": {"command": hosts.nets.fence_command("source")},
                "services": [service],
                "launch": {
                    "driver": "standby",
                    "host": "recovery-1",
                    "timeout": "60s",
                    "settings": {
                        "mounts": [{"volume": "data", "at": there}],
                        "start": [*python, "tests.system.shop", "start", there, str(PORT)],
                        "stop": [*python, "tests.system.shop", "stop", there, str(PORT)],
                        "health": [*python, "demo.ask", f"http://127.0.0.1:{PORT}/orders"],
                        "details": {"address": f"10.81.2.2:{PORT}"},
                    },
                },
            }
        },
        "waves": [
            {
                "name": "shop",
                "sources": ["shop"],
                "then": [
                    {
                        "name": "it works in the drill's own network",
                        "modes": ["drill"],
                        "inside": "shop",
                        "http": {"url": f"http://127.0.0.1:{PORT}/orders", "contains": '"intact": true'},
                    },
                    {
                        "name": "users reach it",
                        "modes": ["failover"],
                        "http": {"url": "http://${shop.address}/orders", "contains": '"intact": true'},
                    },
                ],
            }
        ],
    }
    (folder / "runbook.yaml").write_text(json.dumps(runbook))  # JSON is YAML


@contextlib.contextmanager
def source_disk(folder: Path, name: str = "disk", size: int = DISK_BYTES) -> Iterator[str]:
    image = folder / f"{name}.img"
    with image.open("wb") as file:
        file.truncate(size)
    if name == "disk":
        run("mkfs.ext4", "-q", image)
    device = run("losetup", "--find", "--show", image).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / "drengine-tests-site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def everything(folder: Path) -> Iterator[Hosts]:
    """Hosts with their files, and nothing left of them afterwards.

    What tracks a source's disks is this machine's, by the source's name: one test at a time has these hosts.
    """
    with _alone(), networks() as nets, source_disk(folder) as device:
        hosts = Hosts(folder, nets)
        hosts.device = device
        write_files(hosts, device)
        hosts.home.mkdir()
        hosts.recovered.mkdir()
        try:
            yield hosts
        finally:
            for mount in (hosts.home, hosts.recovered):
                shop.kill(mount, PORT)
                shutil.rmtree(shop.sockets(mount, PORT), ignore_errors=True)
            for host in ("source", "recovery", "outpost"):
                hosts.kill(host)
            for mount in (hosts.home, hosts.recovered):
                subprocess.run(["umount", "-l", str(mount)], capture_output=True, check=False)
            Watch.detach("shop")
            Watch.detach("shop2")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that PostgreSQL's user may enter too, with a short name for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="dr-site-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def open_the_shop(hosts: Hosts, programs: Path, broker: str, stack: contextlib.ExitStack) -> None:
    """A protected server with customers, and all that would bring it back."""
    place = hosts.folder
    run("mount", hosts.device, hosts.home)
    shop.create(hosts.home)
    (place / "registry").mkdir()
    initialise(programs, place / "registry/data", place / "registry/wal")
    stack.enter_context(Server(programs, place / "registry/data", place / "registry", 5441))
    hosts.start("outpost", "mosquitto", broker, "-c", str(place / "mosquitto.conf"))
    hosts.drengine("target", "init", "--config", "target.toml")
    hosts.python("outpost", "target", "drengine.cli.main", "target", "run", "--config", "target.toml")
    hosts.python("recovery", "standby", "drengine_agent", "standby", "run", "--config", "standby.toml")
    hosts.python("source", "agent", "drengine_agent", "run", "--config", "agent.toml")
    hosts.python("source", "boot", "tests.system.shop", "start", str(hosts.home), str(PORT))
    until(lambda: hosts.audit("source", "127.0.0.1"), "the shop opens")
    until(lambda: (hosts.agent_status() or {}).get("points_cut"), "a first point")
    hosts.send_customers("source", "home")
    until(lambda: len(hosts.confirmed("home")) > 50, "customers")


def test_a_server_is_lost_and_comes_back_over_local_links_alone(place: Path) -> None:
    skip_unless_networks_can_be_made()
    skip_unless_disks_can_be_attached()
    programs = skip_unless_installed()
    broker = mosquitto()
    with everything(place) as hosts, contextlib.ExitStack() as stack:
        open_the_shop(hosts, programs, broker, stack)
        drilled = hosts.drengine("drill", "runbook.yaml", "--config", "orchestrator.toml")
        assert drilled["outcome"] == "completed"
        inside = next(step for step in drilled["steps"] if step["id"] == "shop.then.1")
        assert '"intact": true' in inside["output"], "what it said inside its network is in the report"
        assert hosts.agent_status()["state"] in {"CONTINUOUS", "BACKLOG"}
        until(lambda: len(hosts.confirmed("home")) > 100, "business goes on")

        hosts.nets.cut_region()
        lost_at = time.time()
        hosts.kill("source")
        shop.kill(hosts.home, PORT)
        before = hosts.confirmed("home")
        over = hosts.drengine("failover", "runbook.yaml", "--config", "orchestrator.toml")
        assert over["outcome"] == "completed"
        assert over["fencing"] == {"shop": "command"}
        found = hosts.audit("outpost", "10.81.2.2")
        assert found["intact"]
        promised = lost_at - over["rpo_seconds"]
        assert not [number for number, moment in before.items() if number > found["orders"] and moment < promised]
        hosts.drengine("commit", over["run"], "--config", "orchestrator.toml")
        hosts.send_customers("recovery", "there")
        until(lambda: len(hosts.confirmed("there")) > 30, "business at the recovery host")

        hosts.nets.plug_in("source")
        hosts.python("source", "agent-again", "drengine_agent", "run", "--config", "agent.toml")
        until(lambda: (hosts.agent_status() or {}).get("reason") == "fenced", "the stale source knows")

        back = hosts.drengine("failback", "runbook.yaml", "--config", "orchestrator.toml")
        assert back["outcome"] == "completed"
        assert 0 < back["bytes_shipped_back"] < DISK_BYTES // 4
        home = hosts.audit("source", "127.0.0.1")
        assert home["intact"]
        assert home["orders"] >= max(hosts.confirmed("there"))
        assert hosts.audit("outpost", "10.81.2.2") is None
        until(lambda: (hosts.agent_status() or {}).get("state") == "CONTINUOUS", "it is protected again")
        steps = {step["id"]: step["data"] for step in back["steps"]}
        order = list(steps)
        assert order.index("stop-services:shop") < order.index("preserve:shop"), "the page cache is its divergence"
        assert back["not_started"] == []

        hosts.kill("source")
        for lost in ("state.json", "fence.json"):
            (place / "agent" / lost).unlink(missing_ok=True)
        hosts.python("source", "agent-forgetful", "drengine_agent", "run", "--config", "agent.toml")
        until(lambda: (hosts.agent_status() or {}).get("state") == "CONTINUOUS", "it is told its generation")
        assert hosts.agent_status()["generation"] == steps["release:shop"]["generation"]

        page = hosts.drengine("reports", "list", "--config", "orchestrator.toml")[0]["page"]
        assert f"{SERVICES}/32" in Path(page).read_text()  # what went over which network
        carried = hosts.nets.region_bytes()
        shipped = sum(path.stat().st_size for path in (place / "store/segments").rglob("*.seg"))
        assert carried < REGION_BYTES_MAX < shipped
        print(
            f"RTO {over['rto_seconds']:.2f} s, RPO {over['rpo_seconds']:.2f} s, drill {drilled['rto_seconds']:.2f} s, "
            f"failback {back['bytes_shipped_back']} bytes, out of service {back['outage_seconds']:.2f} s; "
            f"{shipped} bytes in the store, {carried} over the region's links"
        )
        hosts.kill("source")
        shop.stop(hosts.home, PORT)
        run("umount", hosts.home)


@pytest.mark.campaign  # tests/failover/engine/test_new_home.py does it with real processes on one host
def test_a_destroyed_server_comes_home_to_a_new_one_and_is_refused_when_it_returns(place: Path) -> None:
    skip_unless_networks_can_be_made()
    skip_unless_disks_can_be_attached()
    programs = skip_unless_installed()
    broker = mosquitto()
    with everything(place) as hosts, contextlib.ExitStack() as stack:
        new_device = stack.enter_context(source_disk(place, "new-disk", DISK_BYTES + (8 << 20)))
        open_the_shop(hosts, programs, broker, stack)
        hosts.nets.cut_region()
        hosts.kill("source")  # the fire
        shop.kill(hosts.home, PORT)
        run("umount", "-l", hosts.home)
        over = hosts.drengine("failover", "runbook.yaml", "--config", "orchestrator.toml")
        assert (over["outcome"], over["fencing"]) == ("completed", {"shop": "command"})
        hosts.drengine("commit", over["run"], "--config", "orchestrator.toml")
        hosts.send_customers("recovery", "there")
        until(lambda: len(hosts.confirmed("there")) > 30, "business at the recovery host")

        new = (place / "agent.toml").read_text().replace('source = "shop"', 'source = "shop2"\nspare = true')
        new = new.replace(f'"{place}/agent"', f'"{place}/agent2"').replace("/tls/shop/", "/tls/shop2/")
        (place / "agent2.toml").write_text(new.replace(hosts.device, new_device))
        (place / "shop-disk").unlink()
        (place / "shop-disk").symlink_to(new_device)
        hosts.nets.plug_in("source")  # the new machine, where the old one stood
        hosts.python("source", "new", "drengine_agent", "run", "--config", "agent2.toml")
        ask = ("drengine_agent", "status", "--config", "agent2.toml")
        until(lambda: (hosts.say("source", *ask, may_fail=True) or {}).get("fence_reason") == "spare", "a spare host")

        opened = place / "opened"
        url = f"http://127.0.0.1:{PORT}"
        hosts.python("source", "door", "tests.system.shop", "wait", url, str(opened))
        home = ("failback", "runbook.yaml", "--onto", "shop2", "--config", "orchestrator.toml")
        back = hosts.drengine(*home)
        assert back["outcome"] == "completed"
        assert 0 < back["outage_seconds"] <= OUTAGE_SECONDS_MAX
        found = hosts.audit("source", "127.0.0.1")
        taken = hosts.confirmed("there")
        assert found["intact"], "orders 1 to the last, without a gap, each as it was written"
        assert found["orders"] >= max(taken), "every order that was confirmed"
        until(opened.exists, "the door was watched")
        closed_seconds = float(opened.read_text()) - max(taken.values())
        assert 0 < closed_seconds <= OUTAGE_SECONDS_MAX, "as customers saw it"
        assert hosts.audit("outpost", "10.81.2.2") is None
        until(lambda: hosts.say("source", *ask)["state"] == "CONTINUOUS", "the new host is protected")

        # The old machine was repaired: its agent, its valid certificate and its disk are as they were.
        hosts.python("source", "old", "drengine_agent", "run", "--config", "agent.toml")
        until(lambda: (hosts.agent_status() or {}).get("fence_reason") == "moved", "it is refused")
        release = ("drengine_agent", "release", "--generation", "3", "--config", "agent.toml")
        assert hosts.say("source", *release, may_fail=True) is None
        assert hosts.agent_status()["fence_reason"] == "moved"
        assert hosts.say("source", *ask)["state"] == "CONTINUOUS"
        assert hosts.nets.region_bytes() < REGION_BYTES_MAX
        print(
            f"{back['bytes_shipped_back']} bytes to the new host, out of service {back['outage_seconds']:.2f} s by the "
            f"report, {closed_seconds:.2f} s as customers saw it; {len(taken)} orders were taken at the recovery host"
        )
        hosts.kill("source")
        shop.stop(hosts.home, PORT)
        run("umount", hosts.home)
