"""What the package brings, as services of a host: Mosquitto with its authority, target and orchestrator beside root."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import aiomqtt

from drengine.config import Address
from drengine.control.broker import embedded_broker
from drengine.control.config import BrokerOptions
from drengine.control.messages import Verb
from drengine.enrolment.place import Place
from drengine.nbd.file_export import FileProvider
from drengine.nbd.server import NbdServer
from drengine.transport.tls import client_context
from tests.agent.install.host import Host, host
from tests.agent.install.live import wait_for
from tests.control.site import free_port, mosquitto, orchestrator
from tests.packages.test_packages import PACKAGES, bring, dpkg, is_active, package, pytestmark
from tests.system.disks import skip_unless_disks_can_be_attached

__all__ = ["pytestmark"]


def drop_in(there: Host, service: str, text: str = "") -> None:
    """A host in a namespace has no devices to take away."""
    place = there.root / f"etc/systemd/system/{service}.service.d"
    place.mkdir()
    (place / "test.conf").write_text(f"[Service]\nPrivateDevices=no\n{text}")
    there.run("systemctl", "daemon-reload")


def start(there: Host, service: str, verb: str = "start") -> None:
    there.run("systemctl", verb, service, seconds=100, check=False)
    said = there.run("journalctl", "--no-pager", "-u", service, "-n", "30", check=False).stdout
    assert is_active(there, service) == "active", said


async def test_the_service_keeps_a_stock_mosquitto_as_the_authority_says(tmp_path: Path) -> None:
    mosquitto()
    authority, port = f"127.0.0.1:{free_port()}", free_port()
    with host(tmp_path / "host", systemd=True) as there:
        dpkg(there, "install", bring(there, package(PACKAGES, "drengine_*_amd64.deb")))
        ca = ("--ca", "/var/lib/drengine-ca")
        there.run("drengine", "ca", "init", *ca)  # by root: systemd gives the folder to the service
        serve = f"/usr/bin/drengine ca serve --ca /var/lib/drengine-ca --host 127.0.0.1 --listen {authority}"
        drop_in(there, "drengine-authority", f"ExecStart=\nExecStart={serve}\n")
        start(there, "drengine-authority")

        def enrol(role: str, name: str, place: str) -> None:
            options = ("--role", role, "--name", name, *(("--host", "127.0.0.1") if role == "broker" else ()))
            token = there.run("drengine", "token", "create", *ca, "--authority", authority, *options).stdout.strip()
            there.run("drengine", "enrol", "--token", token.split()[-1], "--name", name, "--to", place)

        enrol("broker", "broker", "/etc/mosquitto/drengine")
        enrol("orchestrator", "boss", "/root/boss")
        told = there.run("drengine", "broker", "config", "--port", str(port))
        assert "systemctl enable --now drengine-broker" in told.stderr
        start(there, "mosquitto", "restart")
        drop_in(there, "drengine-broker")
        start(there, "drengine-broker")

        enrol("agent", "shop", "/root/shop")  # and nobody touches the broker
        acl = there.root / "etc/mosquitto/drengine/drengine.acl"
        wait_for("its line", lambda: "user shop" in acl.read_text())
        assert acl.stat().st_uid == there.root.joinpath("etc/mosquitto/drengine").stat().st_uid != 0
        wait_for("the broker", lambda: is_open(port))
        boss, shop = (Place(there.root / "root" / name) for name in ("boss", "shop"))
        async with client(boss, port) as watching, client(shop, port) as said:
            await watching.subscribe("drengine/#", 1)
            await said.publish("drengine/main/agent/shop/report", b"true", 1)
            assert (await anext(aiter(watching.messages))).payload == b"true"


def test_target_and_orchestrator_share_their_directories_with_root(tmp_path: Path) -> None:
    with host(tmp_path / "host", systemd=True) as there:
        there.run("mkdir", "-p", "/var/lib/drengine/orchestrator/audit")  # by root, from a checkout for instance
        dpkg(there, "install", bring(there, package(PACKAGES, "drengine_*_amd64.deb")))
        etc, state = there.root / "etc/drengine", there.root / "var/lib/drengine"
        common = 'store = "/var/lib/drengine/store"\n'
        listening = f'listen = "127.0.0.1:{free_port()}"\nnbd_socket = "/run/drengine/nbd.sock"\n'
        (etc / "target.toml").write_text(common + listening)
        rest = f'export = "unix:/run/drengine/nbd.sock"\nrest = "127.0.0.1:{free_port()}"\n'
        (etc / "orchestrator.toml").write_text(common + rest)
        (etc / "target.toml").chmod(0o600)
        told = there.run("drengine", "target", "check-config", "/etc/drengine/target.toml")
        assert "the services run as drengine, but /etc/drengine/target.toml belongs to root" in told.stderr
        (etc / "target.toml").chmod(0o644)
        there.run("drengine", "target", "init", "--config", "/etc/drengine/target.toml")
        drop_in(there, "drengine-target")
        for service in ("drengine-target", "drengine-orchestrator"):
            start(there, service)
        look = ("drengine", "reports", "list", "--config", "/etc/drengine/orchestrator.toml")
        assert "no report is kept yet" in there.run(*look).stderr
        there.run("drengine", "source", "add", "shop", "--store", "/var/lib/drengine/store")
        there.run(
            "drengine",
            "user",
            "add",
            "ann",
            "--role",
            "viewer",
            "--no-password",
            "--state",
            "/var/lib/drengine/orchestrator",
        )
        for verb in ("stop", "start"):
            there.run("systemctl", verb, "drengine-target", "drengine-orchestrator", seconds=100)
        foreign = there.run("find", "/var/lib/drengine", "/run/drengine", "!", "-user", "drengine").stdout
        assert foreign == "", "what root made belongs to the service"
        assert state.exists() and (there.root / "run/drengine/nbd.sock").is_socket()
        stranger = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
        places = ("--state", "/var/lib/drengine/orchestrator", "--store", "/var/lib/drengine/store")
        refused = there.run(*stranger, "drengine", "reports", "list", *places, check=False)
        assert refused.returncode == 240 and "no report" not in refused.stderr, refused.stderr


async def test_a_recovery_host_attaches_mounts_and_starts_within_the_bounds_of_its_unit(tmp_path: Path) -> None:
    skip_unless_disks_can_be_attached()
    (tmp_path / "content").mkdir()
    (tmp_path / "content/hello").write_text("from the source\n")
    image = tmp_path / "disk.img"
    words = ["mke2fs", "-q", "-t", "ext4", "-d", tmp_path / "content", image, "32M"]
    await asyncio.to_thread(subprocess.run, words, check=True)
    address, exports = Address("127.0.0.1", free_port()), NbdServer(FileProvider({"data": image}))
    _, port = await exports.start_tcp("127.0.0.1")
    order = {
        "instance": "run-1-shop",
        "source": "shop",
        "disks": {"data": f"nbd://127.0.0.1:{port}/data"},
        "settings": {
            "mounts": [{"volume": "data", "at": "/srv/shop"}],
            "start": ["sh", "-c", "cp /srv/shop/hello /srv/shop/started; id -un >> /srv/shop/started"],
            "health": ["grep", "-q", "from the source", "/srv/shop/started"],
        },
        "isolated": True,
        "timeout_seconds": 60.0,
    }
    async with embedded_broker(address, site="main"), orchestrator(BrokerOptions(address=address)) as agents:
        with host(tmp_path / "host", systemd=True) as there:
            there.run("mknod", "/dev/fuse", "c", "10", "229")
            dpkg(there, "install", bring(there, package(PACKAGES, "drengine-agent_*_all.deb")))
            words = ["--name", "recovery-1", "--broker", str(address), "--mount-root", "/srv", "--yes"]
            await asyncio.to_thread(there.run, "drengine-agent", "standby", "install", *words)

            async def tell(verb: Verb, arguments: dict[str, object]) -> None:
                answer = await agents.command(
                    "recovery-1", verb, arguments, generation=1, id=str(verb), timeout_seconds=90
                )
                assert answer.ok, answer.message

            await tell(Verb.ATTACH, order)
            assert there.run("cat", "/srv/shop/started").stdout == "from the source\nroot\n", "the whole host sees it"
            there.run("systemctl", "restart", "drengine-standby")
            assert there.run("cat", "/srv/shop/hello").stdout, "a restart ends no workload"
            await tell(Verb.DETACH, {"instance": "run-1-shop"})
            assert there.run("ls", "/srv/shop").stdout == ""
            await asyncio.to_thread(there.run, "drengine-agent", "standby", "uninstall", "--yes")
    await exports.close(1)


def client(place: Place, port: int) -> aiomqtt.Client:
    context = client_context(replace(place.files, crl=None))
    return aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5, tls_context=context, timeout=10.0)


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False
