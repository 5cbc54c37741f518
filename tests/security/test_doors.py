"""Principals x doors: each cell by a real client at real daemons, with the id that it gets; docs/security.md has the
same table, and is held to it.

One site: a target that requires identities (replication, exports over TLS and on a unix socket), REST over TLS, and
Mosquitto with the files of deploy/. A drill's branch is granted to host r1 and to a capability. No run has ordered a
source home, except where the door says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import re
import shutil
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import paho.mqtt.client as paho
import pytest

from drengine.config import Address
from drengine.failover.config import RestTlsOptions
from drengine.model.extents import BLOCK_BYTES
from drengine.model.grants import Access
from drengine.model.points import PointSelector
from drengine.target.config import TlsOptions
from drengine.transport.endpoints import connect
from drengine.transport.errors import TransportError
from drengine.transport.files import TlsFiles
from drengine.transport.networks import DataNetworks
from drengine.transport.tls import client_context
from drengine.wire.events import ABILITIES, Hashes, HashQuery, Hello, Purpose, Refuse
from drengine.wire.payload import digest
from tests.console.rig import Api, served
from tests.control.test_mosquitto import Site as Broker
from tests.control.test_mosquitto import crl
from tests.control.test_mosquitto import site as broker
from tests.store.harness import Source
from tests.target.agent import SIZE, running
from tests.target.agent import Site as Target
from tests.transport.certificates import Authority

__all__ = ["broker"]

TOOLS = ("nbdinfo", "curl", "setpriv")
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user"),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}"),
]

PAGE = Path(__file__).parent.parent.parent / "docs" / "security.md"
CONTENT = b"what the disk holds"
SECRET = "0123456789abcdef" * 2
SECONDS = 20.0
TLS = "TLS"
"""Refused in the handshake: our clients learn why, nbdinfo and paho do not."""


@dataclass(frozen=True)
class Principal:
    """Somebody who tries all doors.

    Attributes:
        files: its certificate; None: it has none.
        user: local user that uses the unix socket instead of TLS.
        secret: the capability that it shows.
        token: of whom at REST.
    """

    files: TlsFiles | None = None
    user: str = ""
    secret: str = ""
    token: str = ""


@dataclass
class World:
    """The site that is attacked."""

    target: Target
    socket: Path
    rest: Api
    broker: Broker
    authority: Authority
    granted: int
    another: int
    divergent: int
    sequence: int

    @property
    def ca(self) -> str:
        return str(self.authority.path)

    async def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run, argv, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    # ---- replication, as drengine-agent speaks it

    async def replication(self, who: Principal, purpose: Purpose, *place: int) -> str:
        """What HELLO for source shop gets; and then a question for hashes, whose answer must be its own head's."""
        context = client_context(who.files) if who.files else anonymous(self.ca)
        try:
            stream = await connect(*self.target.address, networks=DataNetworks(), tls=context)
        except TransportError as error:
            return error.reason
        try:
            await stream.send(Hello(2, 2, ABILITIES, "shop", os.urandom(16), 1, purpose, *place))
            answer = await stream.receive()
            if isinstance(answer, Refuse):
                return answer.code
            await stream.send(HashQuery(1, 1, 0, BLOCK_BYTES, 1))
            while not isinstance(answer, Hashes):
                answer = await stream.receive()
        except TransportError as error:
            return error.reason
        else:
            assert answer.digests == digest(CONTENT.ljust(BLOCK_BYTES, b"\0"))
            return "yes"
        finally:
            stream.abort()
            await self.target.left("shop")

    async def ship(self, who: Principal) -> str:
        return await self.replication(who, Purpose.REPLICATE, 0, 0)

    async def preserve(self, who: Principal) -> str:
        return await self.replication(who, Purpose.PRESERVE, self.divergent, 0)

    async def reverse(self, who: Principal) -> str:
        return await self.replication(who, Purpose.REVERSE, 1, self.sequence)

    async def reverse_ordered(self, who: Principal) -> str:
        grants = self.target.store.grants
        given = grants.give("shop", 1, Access.REVERSE, holder="agent/shop", seconds=60)
        try:
            return await self.reverse(who)
        finally:
            grants.take(lambda grant: grant.id == given.id)

    # ---- exports, as nbdinfo asks for them

    async def export(self, who: Principal, name: str) -> str:
        wanted = quote(f"{name}~{who.secret}" if who.secret else name)
        as_whom: tuple[str, ...] = ()
        if who.user:
            uri = f"nbd+unix:///{wanted}?socket={self.socket}"
            as_whom = ("setpriv", f"--reuid={pwd.getpwnam(who.user).pw_uid}", "--clear-groups")
        else:
            assert self.target.nbd
            uri = "nbds://{}:{}/{}?tls-certificates={}".format(*self.target.nbd, wanted, self.credentials(who))
        done = await self.run(*as_whom, "env", "LIBNBD_DEBUG=1", "nbdinfo", "--json", uri)
        if done.returncode == 0:
            return "read" if json.loads(done.stdout)["exports"][0]["is_read_only"] else "write"
        told = re.findall(r"\[([a-z-]+)\]$", done.stderr, re.MULTILINE)
        return told[-1] if told else TLS

    def credentials(self, who: Principal) -> Path:
        """A folder as libnbd wants it; without a certificate it has the CA's alone."""
        folder = Path(tempfile.mkdtemp(dir=self.authority.folder))
        shutil.copy(self.ca, folder / "ca-cert.pem")
        if who.files:
            shutil.copy(who.files.certificate, folder / "client-cert.pem")
            shutil.copy(who.files.key, folder / "client-key.pem")
        return folder

    async def read_a_point(self, who: Principal) -> str:
        return await self.export(who, f"shop/data@1-{self.sequence}")

    async def use_the_granted_branch(self, who: Principal) -> str:
        return await self.export(who, f"shop/data#{self.granted}")

    async def use_another_branch(self, who: Principal) -> str:
        return await self.export(who, f"shop/data#{self.another}")

    # ---- REST, by curl

    async def look_by_rest(self, who: Principal) -> str:
        return await self.ask(who, "runs")

    async def order_by_rest(self, who: Principal) -> str:
        body = json.dumps({"runbook": "nothing", "mode": "drill"})
        sent = ("-X", "POST", "-H", "Content-Type: application/json", "--data", body)
        return await self.ask(who, "runs", *sent)

    async def ask(self, who: Principal, path: str, *more: str) -> str:
        given = ["--cacert", self.ca]
        if who.files:
            given += ["--cert", str(who.files.certificate), "--key", str(who.files.key)]
        if who.token:
            given += ["-H", f"Authorization: Bearer {self.rest.tokens[who.token]}"]
        url = f"https://127.0.0.1:{self.rest.port}/api/v1/{path}"
        done = await self.run("curl", "-s", "-w", "\n%{http_code}", *given, *more, url)
        body, _, status = done.stdout.rpartition("\n")
        if status.startswith("2"):
            return "yes"
        return str(json.loads(body)["id"]) if body else TLS

    # ---- MQTT, by paho

    async def report_as_shop(self, who: Principal) -> str:
        return await asyncio.to_thread(self.publish, who, "drengine/main/agent/shop/report")

    async def command_shop(self, who: Principal) -> str:
        return await asyncio.to_thread(self.publish, who, "drengine/main/agent/shop/command")

    def publish(self, who: Principal, topic: str) -> str:
        said: list[str] = []
        ended = threading.Event()

        def told(reason: str) -> None:
            said.append(reason)
            ended.set()

        client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.tls_set_context(client_context(who.files) if who.files else anonymous(self.ca))
        client.on_connect = lambda *_: client.publish(topic, b"{}", qos=1)
        client.on_connect_fail = lambda *_: told(TLS)
        client.on_disconnect = lambda *_: told(TLS)
        client.on_publish = lambda _, __, ___, reason, ____: told("not-authorized" if reason.is_failure else "yes")
        try:
            client.connect("127.0.0.1", self.broker.broker.port)
            client.loop_start()
            assert ended.wait(SECONDS)
        except OSError:
            return TLS
        finally:
            client.loop_stop()
            with contextlib.suppress(OSError):
                client.disconnect()
        return said[0]


Door = Callable[[World, Principal], Awaitable[str]]
DOORS: dict[str, Door] = {
    "ship as shop, ask for hashes": World.ship,
    "preserve": World.preserve,
    "reverse": World.reverse,
    "reverse, when ordered": World.reverse_ordered,
    "NBD: a point": World.read_a_point,
    "NBD: the granted branch": World.use_the_granted_branch,
    "NBD: another drill's branch": World.use_another_branch,
    "REST: look": World.look_by_rest,
    "REST: begin a run": World.order_by_rest,
    "MQTT: report as shop": World.report_as_shop,
    "MQTT: command shop": World.command_shop,
}


def anonymous(ca: str) -> ssl.SSLContext:
    """Of somebody who trusts the CA and has no certificate."""
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def principals(authority: Authority, folder: Path) -> dict[str, Principal]:
    """All of them; the revoked one is on the list that the fixture writes."""

    def party(identity: str, name: str = "", ca: Authority = authority) -> Principal:
        common = name or identity.rpartition("/")[2]
        uri = identity if ":" in identity else f"drengine://main/{identity}"
        file = f"{common}-{re.sub('[:/]', '-', identity)}"
        return Principal(ca.issue(common, uris=(uri,) if identity else (), file=file))

    uris = ("drengine://main/agent/shop",)
    other = party("agent/shop", ca=Authority.make(folder / "other", "another CA"))
    assert other.files
    return {
        "agent of shop": party("agent/shop"),
        "agent of shop, of another site": party("drengine://other/agent/shop", "shop"),
        "agent of web": party("agent/web"),
        "another target": party("target/second"),
        "orchestrator": party("orchestrator/orchestrator"),
        "host r1, granted": party("host/r1"),
        "host r2": party("host/r2"),
        "host of the name shop": party("host/shop"),
        "workload with a capability": Principal(user="nobody", secret=SECRET),
        "the same user without it": Principal(user="nobody"),
        "another local user": Principal(user="daemon", secret=SECRET),
        "certificate without a name": party("", "plain"),
        "no certificate": Principal(),
        "agent of shop, revoked": Principal(authority.issue("shop", uris=uris, file="revoked")),
        "agent of shop, of another CA": replace(other, files=replace(other.files, ca=authority.path)),
        "viewer, by token": Principal(token="vic"),
        "operator, by token": Principal(token="bob"),
    }


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users can look into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


async def test_every_principal_at_every_door_gets_what_the_page_says(
    tmp_path: Path, broker: Broker, public: Path
) -> None:
    authority = broker.authority
    everybody = principals(authority, tmp_path)
    revoked = everybody["agent of shop, revoked"].files
    assert revoked
    broker.crl.write_bytes(crl(authority, revoked))
    broker.broker.stop()
    broker.broker.start()
    own = authority.issue("outpost", uris=("drengine://main/target/outpost",))
    tls = TlsOptions(own.certificate, own.key, own.ca, broker.crl, identities="required")
    rest = authority.issue("rest", uris=("drengine://main/orchestrator/rest",))
    given = {"nbd_listen": Address("127.0.0.1", 0), "nbd_socket": public / "nbd.sock", "local_users": ("nobody",)}
    with served(tmp_path / "site", tls=RestTlsOptions(rest.certificate, rest.key)) as api:
        async with running(tmp_path / "store", tls=tls, **given) as target:
            world = attacked(target, public / "nbd.sock", api, broker)
            found = {
                name: {door: await knock(world, who) for door, knock in DOORS.items()}
                for name, who in everybody.items()
            }
            assert target.store.points("shop", branch=1)[-1].sequence == world.sequence, "nobody has changed anything"
    assert shown(found) == written(), "\n".join(shown(found))


def attacked(target: Target, socket: Path, rest: Api, broker: Broker) -> World:
    source = Source(target.store, "shop", data=SIZE)
    source.write(1, 0, CONTENT)
    source.cut()
    source.commit()
    source.writer.close()
    point = target.store.find_point("shop", PointSelector())
    granted, another = (target.store.create_branch(point).number for _ in range(2))
    divergent = target.store.create_branch(point, role="divergent").number
    target.store.grants.give("shop", granted, Access.WRITE, holder="host/r1")
    target.store.grants.give("shop", granted, Access.WRITE, secret=SECRET)
    return World(target, socket, rest, broker, broker.authority, granted, another, divergent, point.sequence)


def shown(found: dict[str, dict[str, str]]) -> list[str]:
    """As the page writes it."""
    lines = [f"| | {' | '.join(DOORS)} |", f"|{'---|' * (len(DOORS) + 1)}"]
    for name, cells in found.items():
        lines.append(f"| {name} | {' | '.join(f'`{each}`' if '-' in each else each for each in cells.values())} |")
    return lines


def written() -> list[str]:
    """The page's table."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    begin = next((at for at, line in enumerate(lines) if line.startswith("| | ship as shop")), len(lines))
    end = next((at for at in range(begin, len(lines)) if not lines[at].startswith("|")), len(lines))
    return lines[begin:end]


def test_a_table_that_says_something_else_is_found_out() -> None:
    assert shown({"agent of shop": dict.fromkeys(DOORS, "grant-missing")}) != written()
    assert len(written()) > 10
