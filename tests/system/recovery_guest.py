"""A recovery host that is a machine of its own, with the NBD driver and the iSCSI initiator that this one may lack.

Debian's kernel, busybox, CPython, the one-file agent, nbd-client and open-iscsi in an initial RAM disk, emulated by
QEMU in a network namespace in which this machine is 10.84.0.1 and the guest 10.84.0.2. It gives whoever connects a
shell, which carries out what a test says.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from drengine.linux.namespaces import in_network
from drengine.process import end_marked, start_marked
from tests.system.guest import kernel
from tests.system.live import PYTHON, make_system, missing_for_live, module_folder, pack

MARK = "DR_TEST_RECOVERY_GUEST"
OURS, GUESTS, NETWORK = "10.84.0.1", "10.84.0.2", "10.84.0.0/24"
PORT = 2323
INITIATOR = "iqn.1993-08.org.debian:01:recovery"
USER, SECRET = "recovery", "a-secret-of-some-length"
BOOT_SECONDS = 180.0
_MODULES = ("virtio_pci", "virtio_net", "nbd", "sd_mod", "iscsi_tcp")
_TOOLS = ("nbd-client", "iscsid", "iscsiadm", "mount", "umount")
_INIT = """#!/bin/busybox sh
B=/bin/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp
$B --install -s /bin 2>/dev/null
mkdir -p /run /var/lib /srv
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
exec >/dev/console 2>&1
mkdir /run/lock; ln -s /run /var/run; ln -s /run/lock /var/lock
for each in {modules}; do insmod /modules/$each.ko; done
ifconfig lo 127.0.0.1; ifconfig eth0 {address} netmask 255.255.255.0
iscsid
nc -ll -p {port} -e /bin/sh
"""
_AGENT = "{python} -IS /drengine-agent standby run --config /standby.toml"


def missing_for_recovery_guest() -> str:
    """What it can't be made without; empty when all is there."""
    missing = [missing_for_live(), *(tool for tool in _TOOLS if _tool(tool) is None)]
    return ", ".join(filter(None, missing))


class RecoveryGuest:
    """One that is up."""

    def __init__(self, folder: Path, space: str) -> None:
        self._folder = folder
        self._space = space
        self.inside = ["nsenter", f"--net=/run/netns/{space}"]

    def boot(self, image: Path) -> None:
        """And wait until its shell answers."""
        argv = ["qemu-system-x86_64", "-nodefaults", "-machine", "q35", "-accel", "tcg", "-display", "none"]
        argv += ["-m", "1536", "-no-reboot", "-serial", f"file:{self._folder / 'guest.log'}"]
        argv += ["-kernel", str(kernel()), "-initrd", str(image)]
        argv += ["-append", "console=ttyS0 quiet panic=1 rdinit=/init net.ifnames=0"]
        argv += ["-netdev", "tap,id=net,ifname=tap,script=no,downscript=no", "-device", "virtio-net-pci,netdev=net"]
        start_marked(
            [*self.inside, *argv], MARK, self._folder.name, output=self._folder / "qemu.log", directory=self._folder
        )
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, self.console()[-3000:]
            time.sleep(0.2)

    def console(self) -> str:
        """What it said."""
        log = self._folder / "guest.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def _answers(self) -> bool:
        try:
            return self.run("true", seconds=10.0) == (0, "")
        except OSError:
            return False

    def does(self, command: str, *, seconds: float = 60.0) -> str:
        """What a command of its shell says; it has to end well."""
        status, said = self.run(command, seconds=seconds)
        assert status == 0, f"{command}: {status} {said}"
        return said

    def run(self, command: str, *, seconds: float = 60.0) -> tuple[int, str]:
        """The same, however it ends."""
        said = in_network(self._space, lambda: self._say(f"exec 2>&1\n{command}\necho END:$?\n", seconds))
        text, _, status = said.rpartition("END:")
        return int(status), text

    def _say(self, text: str, seconds: float) -> str:
        with socket.create_connection((GUESTS, PORT), seconds) as shell:
            shell.sendall(text.encode())
            shell.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: shell.recv(65536), b""))
        return said.decode(errors="replace")

    def start_agent(self) -> None:
        """The recovery host's part of the agent; returns when it takes orders."""
        agent = _AGENT.format(python=PYTHON)
        self.does(f"setsid {agent} </dev/null >/agent.log 2>&1 & echo $! >/agent.pid")
        self.does("until grep -q 'connected with the broker' /agent.log; do sleep 1; done", seconds=BOOT_SECONDS)

    def kill_agent(self) -> None:
        """SIGKILL."""
        self.does("kill -9 $(cat /agent.pid); while kill -0 $(cat /agent.pid) 2>/dev/null; do sleep 0.1; done")


@contextlib.contextmanager
def recovery_guest(folder: Path, agent: Path, identity: Path, standby: str) -> Iterator[RecoveryGuest]:
    """Boot one; nothing is left of it.

    Args:
        folder: for its files.
        agent: the one-file agent.
        identity: its certificate, key and CA.
        standby: the agent's configuration.
    """
    tree, image = folder / "guest", folder / "guest.img"
    tree.mkdir()
    modules = _with_needs(_MODULES)
    tools = [tool for name in _TOOLS if (tool := _tool(name))]
    make_system(tree, agent, identity, modules=modules, programs=tools)
    for file, text in (
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("etc/iscsi/initiatorname.iscsi", f"InitiatorName={INITIATOR}\n"),
        ("etc/iscsi/iscsid.conf", _iscsid_conf()),
        ("standby.toml", standby),
        ("init", _INIT.format(modules=" ".join(Path(each).name for each in modules), address=GUESTS, port=PORT)),
    ):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_text(text)
    (tree / "etc/iscsi/iscsid.conf").chmod(0o600)
    pack(image, tree)
    shutil.rmtree(tree)
    space = f"drg-{secrets.token_hex(3)}"
    with _network(space):
        try:
            guest = RecoveryGuest(folder, space)
            guest.boot(image)
            yield guest
        finally:
            end_marked(MARK, folder.name, folder, grace_seconds=0.0)


@contextlib.contextmanager
def _network(space: str) -> Iterator[None]:
    _ip("netns", "add", space)
    try:
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "tuntap", "add", "tap", "mode", "tap")
        _ip("-n", space, "address", "add", f"{OURS}/24", "dev", "tap")
        _ip("-n", space, "link", "set", "tap", "up")
        yield
    finally:
        _ip("netns", "delete", space)


def _iscsid_conf() -> str:
    """As an administrator makes it of Debian's: the defaults, and who this host is."""
    account = {"authmethod": "CHAP", "username": USER, "password": SECRET}
    return "".join(f"node.session.auth.{name} = {value}\n" for name, value in account.items())


def _with_needs(names: tuple[str, ...]) -> list[str]:
    """Modules with those that they need, in the order of loading; what is built in is no module."""
    lines = (module_folder().parent / "modules.dep").read_text().splitlines()
    needs = {place: words.split() for place, _, words in (line.partition(":") for line in lines)}
    found: list[str] = []
    for name in names:
        place = next(each for each in needs if Path(each).name == f"{name}.ko")
        found += [each for each in (*reversed(needs[place]), place) if each not in found]
    return [each.removeprefix("kernel/").removesuffix(".ko") for each in found]


def _tool(name: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    return Path(found).resolve() if found else None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
