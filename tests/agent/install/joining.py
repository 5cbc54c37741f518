"""A site on networks of its own: an Outpost with authority, target and broker, and servers that join it by their lines.

```
 server-1 10.82.1.1 --+
 server-2 10.82.1.2 --+-- bridge 10.82.0.1 Outpost: authority 7444, target 7440, broker 8883
```
Each server boots systemd, has a disk with an ext4 that is mounted, and nothing of drengine on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drengine.store.store import Store
from tests.agent.install.host import Host, host

ROOT = Path(__file__).parents[3]
OUTPOST = "10.82.0.1"
NETWORK = "10.82.0.0/16"
DISK_BYTES = 24 << 20
AT_ONCE = 4
"""Servers on which the line is typed at the same time."""
JOIN_SECONDS = 240.0
WRITTEN = ("etc/drengine", "etc/systemd/system/drengine-agent.service", "usr/local")


@dataclass
class Server:
    """One that joins."""

    name: str
    there: Host
    disk: Path

    def type_line(self, line: Path) -> float:
        """As a person would, as root; returns how many seconds it took."""
        shutil.copy(line, self.there.root / "root/join.sh")
        began = time.monotonic()
        done = self.there.run("sh", "/root/join.sh", seconds=JOIN_SECONDS, check=False)
        log = self.there.run("journalctl", "--no-pager", "-u", "drengine-agent", "-n", "30", check=False).stdout
        assert done.returncode == 0, f"{self.name}: {done.stdout}{done.stderr}{log}"
        return time.monotonic() - began

    def typed(self, line: str) -> tuple[int, str]:
        """Type a line, which may be one that can't work; how it ended, and what it said."""
        (self.there.root / "root/typed.sh").write_text(line)
        done = self.there.run("sh", "/root/typed.sh", seconds=JOIN_SECONDS, check=False)
        return done.returncode, done.stderr

    def left(self) -> list[str]:
        """Everything of drengine on it but the unpacked program, which the next attempt uses."""
        mine = [name for name in self.there.written() if "drengine" in name and not name.startswith(("tmp:", "root:"))]
        return [name for name in mine if not name.startswith("upper:var/cache/")]

    def standing(self) -> dict[str, Any]:
        done = self.there.run("drengine-agent", "status", "--json", check=False)
        return json.loads(done.stdout) if done.stdout else {}

    def process(self) -> str:
        """The agent's, which another one replaces when it is restarted."""
        return self.there.run("systemctl", "show", "--property=MainPID", "--value", "drengine-agent").stdout.strip()

    def files(self) -> dict[str, bytes]:
        """What the installation wrote."""
        found = [path for name in WRITTEN for path in (self.there.root / name, *(self.there.root / name).rglob("*"))]
        return {str(path): path.read_bytes() for path in found if path.is_file() and "drengine" in str(path)}


@dataclass
class Site:
    """The Outpost, and the servers once they are there."""

    folder: Path
    prefix: str
    servers: list[Server] = field(default_factory=list)

    def drengine(self, *words: str | Path, ok: bool = True) -> str:
        """Type a command at the Outpost."""
        done = subprocess.run(self._command(*words), capture_output=True, text=True, env=self._environment, check=False)
        assert not ok or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        with (self.folder / "outpost.log").open("ab") as log:
            return subprocess.Popen(self._command(*words), stdout=log, stderr=log, env=self._environment)

    def write_inventory(self) -> Path:
        """All servers; each with its own disk."""
        lines = [
            f"defaults: {{target: {OUTPOST}:7440, data_networks: [{NETWORK}], broker: {OUTPOST}:8883}}",
            "servers:",
        ]
        lines += [f"  {each.name}: {{volumes: {{data: {each.disk}}}}}" for each in self.servers]
        path = self.folder / "inventory.yaml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def write_lines(self) -> list[dict[str, Any]]:
        """`drengine join-command` for all of them."""
        words = ("join-command", "--from", self.write_inventory(), "--to", self.folder / "lines", "--json")
        told: list[dict[str, Any]] = json.loads(self.drengine(*words))
        return told

    def join(self) -> list[float]:
        """Type each server's line, a few at once; returns how long each took."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda each: each.type_line(self.folder / f"lines/{each.name}.sh"), self.servers))

    def points(self) -> dict[str, int]:
        """How many each source has in the store."""
        with Store.open(self.folder / "store", read_only=True) as store:
            return {each.name: len(store.points(each.name)) for each in store.sources()}

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/agents", "DRENGINE_CA": str(self.folder / "ca")}

    def _command(self, *words: str | Path) -> list[str]:
        inside = ["nsenter", f"--net=/run/netns/{self.prefix}"]
        return [*inside, sys.executable, "-m", "drengine.cli.main", *map(str, words)]


@contextlib.contextmanager
def site(folder: Path, agent: Path, count: int) -> Iterator[Site]:
    """A site whose authority hands out this agent, and so many servers that have not joined yet."""
    made = Site(folder, f"dj{secrets.token_hex(2)}")
    with contextlib.ExitStack() as stack:
        _ip("netns", "add", made.prefix)
        stack.callback(_ip, "netns", "delete", made.prefix)
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "add", "lan", "type", "bridge"),
            ("link", "set", "lan", "up"),
        ):
            _ip("-n", made.prefix, *words)
        _ip("-n", made.prefix, "address", "add", f"{OUTPOST}/16", "dev", "lan")
        _outpost(made, agent, stack)
        for number in range(1, count + 1):
            made.servers.append(stack.enter_context(_server(made, number)))
        yield made


def _outpost(made: Site, agent: Path, stack: contextlib.ExitStack) -> None:
    folder = made.folder
    made.drengine("ca", "init")
    _serve(made, stack, 7444, "ca", "serve", "--host", OUTPOST, "--listen", f"{OUTPOST}:7444", "--agent", agent)
    for role in ("target", "broker"):
        token = made.drengine("token", "create", "--role", role, "--name", f"out-{role}", "--host", OUTPOST).strip()
        made.drengine("enrol", "--token", token, "--name", f"out-{role}", "--to", folder / role)
    files = {name: f'"{folder}/target/{name}.pem"' for name in ("certificate", "key", "ca")}
    text = [f'store = "{folder}/store"', f'listen = "{OUTPOST}:7440"', f'data_networks = ["{NETWORK}"]']
    text += ["[tls]", 'identities = "required"', *(f"{key} = {path}" for key, path in files.items())]
    (folder / "target.toml").write_text("\n".join(text) + "\n", encoding="utf-8")
    made.drengine("target", "init", "--config", folder / "target.toml")
    _serve(made, stack, 7440, "target", "run", "--config", folder / "target.toml")
    named = [word for name in ("certificate", "key", "ca") for word in (f"--{name}", folder / f"broker/{name}.pem")]
    _serve(made, stack, 8883, "broker", "run", "--listen", f"{OUTPOST}:8883", *named)


def _serve(made: Site, stack: contextlib.ExitStack, port: int, *words: str | Path) -> None:
    """Leave it running until the site ends."""
    process = made.start(*words)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)
    until = time.monotonic() + 60
    while not _listens(made.prefix, port):
        assert process.poll() is None and time.monotonic() < until, (made.folder / "outpost.log").read_text()
        time.sleep(0.05)


def _listens(network: str, port: int) -> bool:
    words = ["nsenter", f"--net=/run/netns/{network}", "ss", "-ltnH", f"sport = :{port}"]
    return bool(subprocess.run(words, capture_output=True, check=True).stdout.strip())


@contextlib.contextmanager
def _server(made: Site, number: int) -> Iterator[Server]:
    name, network = f"server-{number}", f"{made.prefix}-{number}"
    image = made.folder / f"{name}.img"
    with contextlib.ExitStack() as stack:
        _ip("netns", "add", network)
        stack.callback(_ip, "netns", "delete", network)
        _ip(
            "link", "add", "eth0", "netns", network, "type", "veth", "peer", "name", f"to{number}", "netns", made.prefix
        )
        _ip("-n", made.prefix, "link", "set", f"to{number}", "master", "lan", "up")
        _ip("-n", network, "address", "add", f"10.82.{1 + number // 200}.{1 + number % 200}/16", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", network, "link", "set", device, "up")
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        disk = Path(_run("losetup", "--find", "--show", image).strip())
        stack.callback(_run, "losetup", "--detach", disk)
        there = stack.enter_context(host(made.folder / name, systemd=True, network=network))
        there.run("mkdir", "/srv/data")
        there.run("mount", disk, "/srv/data")
        stack.callback(there.run, "umount", "/srv/data", check=False)
        yield Server(name, there, disk)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str | Path) -> str:
    done = subprocess.run([str(each) for each in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def states(servers: Sequence[Server]) -> dict[str, str]:
    """Of each server's agent, by name."""
    return {each.name: str(each.standing().get("state", "")) for each in servers}
