"""The door of exports: who may open what, and that it ends when the grant does. Real clients, real TLS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from drengine.audit import Entry
from drengine.audit.verify import read_entries
from drengine.config import Address
from drengine.identity.names import Identity
from drengine.model.errors import DrengineError
from drengine.model.grants import Access
from drengine.model.points import PointSelector
from drengine.nbd.client import NbdClient
from drengine.target.config import TlsOptions, load_target_config, open_to_everybody
from drengine.target.daemon import GRANT_SECONDS
from drengine.wire.connection import Connection
from drengine.wire.connection import Role as WireRole
from drengine.wire.events import ABILITIES, Hello
from tests.clock import ManualClock
from tests.store.harness import Source
from tests.target.agent import SIZE, Site, running
from tests.target.test_exports import tool
from tests.transport.certificates import Authority

needs_nbdinfo = pytest.mark.skipif(shutil.which("nbdinfo") is None, reason="nbdinfo is not installed")
pytestmark = [pytest.mark.timeout(90), needs_nbdinfo]

SECRET = "5ec2e7f0" * 4
CONTENT = b"what a disk holds" * 200
NBDINFO = ("env", "LIBNBD_DEBUG=1", "nbdinfo", "--json")
"""Only with its debug output it shows what a server says when it refuses."""

ANY = Address("127.0.0.1", 0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca")


def credentials(authority: Authority, identity: str) -> Path:
    """A folder as libnbd wants it, of a party or (no `/`) of a certificate without a name."""
    uris = (str(Identity.parse(f"drengine://main/{identity}")),) if "/" in identity else ()
    files = authority.issue("named", uris=uris, file=identity.replace("/", "-"))
    folder = authority.folder / f"of-{identity.replace('/', '-')}"
    folder.mkdir(exist_ok=True)
    for name, file in (("ca-cert", files.ca), ("client-cert", files.certificate), ("client-key", files.key)):
        (folder / f"{name}.pem").write_bytes(file.read_bytes())
    return folder


def target_tls(authority: Authority, **more: str) -> TlsOptions:
    files = authority.issue("named", uris=("drengine://main/target/outpost",), file="target")
    return TlsOptions(files.certificate, files.key, files.ca, **more)


def address(site: Site) -> str:
    assert site.nbd is not None
    return "{}:{}".format(*site.nbd)


async def asked(site: Site, folder: Path | None, name: str) -> str:
    """What nbdinfo learns of an export: `rw`, `ro`, or the id of the refusal."""
    scheme, query = ("nbds", f"?tls-certificates={folder}") if folder else ("nbd", "")
    return judged(await tool(*NBDINFO, f"{scheme}://{address(site)}/{quote(name)}{query}"))


def judged(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        told = re.findall(r"\[([a-z-]+)\]$", done.stderr, re.MULTILINE)
        return told[-1] if told else ("unknown" if "no export of that name" in done.stderr else done.stderr)
    return "ro" if json.loads(done.stdout)["exports"][0]["is_read_only"] else "rw"


def two_branches(site: Site) -> tuple[int, int, int]:
    """A drill's branch, another one, and the newest point's position."""
    source = Source(site.store, "shop", data=SIZE)
    source.write(1, 0, CONTENT)
    source.cut()
    source.commit()
    source.writer.close()
    point = site.store.find_point("shop", PointSelector())
    return site.store.create_branch(point).number, site.store.create_branch(point).number, point.sequence


async def test_a_certificate_opens_what_its_role_and_a_grant_allow_and_nothing_else(
    tmp_path: Path, authority: Authority
) -> None:
    parties = ("host/r1", "host/r2", "agent/shop", "target/other", "broker/b", "orchestrator/orchestrator", "nobody")
    folders = {name: credentials(authority, name) for name in parties}
    async with running(tmp_path / "store", tls=target_tls(authority), nbd_listen=ANY) as site:
        first, second, sequence = two_branches(site)
        over = site.store.promote(site.store.find_point("shop", PointSelector()), expected_generation=1)
        site.store.grants.give("shop", first, Access.WRITE, holder="host/r1", instance="shop-1")
        site.store.grants.give("shop", 1, Access.READ, holder="host/r1", sequence=sequence)
        site.store.grants.give("shop", second, Access.READ, holder="host/r2")
        names = {
            "granted": f"shop/data#{first}",
            "another": f"shop/data#{second}",
            "promoted": f"shop/data#{over.number}",
            "point": f"shop/data@1-{sequence}",
            "latest": "shop/data",
            "none": "shop/data#99",
            "nowhere": "nowhere/data",
        }
        no = "grant-missing"
        expected = {
            "host/r1": ("rw", no, no, "ro", "ro", no, no),
            "host/r2": (no, "ro", no, no, no, no, no),
            "agent/shop": ("identity-role",) * 7,
            "target/other": ("identity-role",) * 7,
            "broker/b": ("identity-role",) * 7,
            "orchestrator/orchestrator": ("rw", "rw", no, no, no, no, no),
            "nobody": ("rw", "rw", "rw", "ro", "ro", "unknown", "unknown"),
        }
        found = {
            party: tuple([await asked(site, folders[party], name) for name in names.values()]) for party in expected
        }
        assert found == expected
    refused = {(each.who, each.on, each.error) for each in audited(tmp_path) if each.did == "target.export"}
    assert ("drengine://main/host/r1", f"shop/data#{second}", "grant-missing") in refused
    assert {error for who, _, error in refused if who == "drengine://main/agent/shop"} == {"identity-role"}
    assert not any(on == f"shop/data#{first}" for who, on, _ in refused if who == "drengine://main/host/r1")


def audited(tmp_path: Path) -> list[Entry]:
    return [line.entry for line in read_entries(tmp_path / "store/audit")]


async def test_a_capability_opens_its_branch_alone_and_an_agent_gets_nothing_by_one(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    folders = {name: credentials(authority, name) for name in ("agent/shop", "host/r1", "nobody")}
    required = target_tls(authority, identities="required")
    async with running(tmp_path / "store", tls=required, nbd_listen=ANY) as site:
        first, second, sequence = two_branches(site)
        site.store.grants.give("shop", first, Access.WRITE, secret=SECRET)
        site.store.grants.give("shop", 1, Access.READ, secret=SECRET[::-1], sequence=sequence)
        for party, name, expected in (
            ("nobody", f"shop/data#{first}~{SECRET}", "rw"),
            ("host/r1", f"shop/data#{first}~{SECRET}", "rw"),
            ("agent/shop", f"shop/data#{first}~{SECRET}", "identity-role"),
            ("nobody", f"shop/data#{second}~{SECRET}", "grant-missing"),
            ("nobody", f"shop/data~{SECRET}", "grant-missing"),
            ("nobody", f"shop/data@1-{sequence}~{SECRET[::-1]}", "ro"),
            ("nobody", f"shop/data#{first}~{SECRET[:-1]}1", "grant-missing"),
            ("nobody", f"shop/data#{first}~", "unknown"),
            ("nobody", f"shop/data#{first}", "grant-missing"),
            ("nobody", "shop/data", "grant-missing"),
            ("nobody", "nowhere/data", "grant-missing"),
        ):
            assert await asked(site, folders[party], name) == expected, (party, name)
        page = site.daemon.metrics.metrics.render().decode()
        for reason in ("grant-missing", "identity-role"):
            assert f'drengine_target_exports_refused_total{{reason="{reason}"}}' in page
    assert "drengine://main/agent/shop may not use exports" in caplog.text
    told = [f"{record.message} {vars(record)}" for record in caplog.records]
    assert not [line for line in told if SECRET in line or SECRET[::-1] in line]


async def test_who_may_open_little_is_shown_little(tmp_path: Path, authority: Authority) -> None:
    folders = {name: credentials(authority, name) for name in ("host/r1", "agent/shop", "orchestrator/o", "nobody")}
    async with running(tmp_path / "store", tls=target_tls(authority), nbd_listen=ANY) as site:
        first, second, _ = two_branches(site)
        site.store.grants.give("shop", first, Access.WRITE, holder="host/r1")
        shown = {}
        for party, folder in folders.items():
            uri = f"nbds://{address(site)}/?tls-certificates={folder}"
            listed = await tool("nbdinfo", "--list", "--json", uri)
            exports = json.loads(listed.stdout or '{"exports": []}')["exports"]
            shown[party] = [each["export-name"] for each in exports]
        drills = [f"shop/data#{first}", f"shop/data#{second}"]
        assert shown == {
            "host/r1": drills[:1],
            "agent/shop": [],
            "orchestrator/o": drills,
            "nobody": ["shop/data@latest", *drills],
        }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("local-user-refused", "local-user-refused", "local-user-refused")),
        ({"local_users": ("nobody",)}, ("grant-missing", "grant-missing", "rw")),
        ({"allow_plain": True}, ("ro", "rw", "rw")),
        ({"allow_plain": True, "exports": "granted"}, ("grant-missing", "grant-missing", "rw")),
    ],
)
async def test_another_user_over_loopback_gets_what_the_kernel_says_of_him(
    tmp_path: Path, options: dict[str, object], expected: tuple[str, ...]
) -> None:
    """On loopback any local user read every point and wrote every branch."""
    async with running(tmp_path / "store", nbd_listen=ANY, **options) as site:
        first, _, sequence = two_branches(site)
        site.store.grants.give("shop", first, Access.WRITE, secret=SECRET)
        names = (f"shop/data@1-{sequence}", f"shop/data#{first}", f"shop/data#{first}~{SECRET}")
        nobody = pwd.getpwnam("nobody").pw_uid
        uris = [f"nbd://{address(site)}/{quote(name)}" for name in names]
        found = [judged(await tool(*as_user(nobody, *NBDINFO, uri))) for uri in uris]
        assert tuple(found) == expected
        assert await asked(site, None, names[0]) == ("ro" if options.get("exports") != "granted" else "grant-missing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(
    ("options", "refused"), [({}, True), ({"agent_users": ("nobody",)}, False), ({"allow_plain": True}, False)]
)
async def test_another_user_does_not_ship_over_loopback(
    tmp_path: Path, options: dict[str, object], refused: bool
) -> None:
    async with running(tmp_path / "store", **options) as site:
        hello = Connection(WireRole.AGENT).send(Hello(2, 2, ABILITIES, "shop", b"i" * 16, 1))
        told = base64.b64encode(b"".join(bytes(part) for part in hello)).decode()
        host, port = site.address
        script = f"exec 3<>/dev/tcp/{host}/{port}; echo {told} | base64 -d >&3; timeout 10 head -c 120 <&3 | base64 -w0"
        done = await tool(*as_user(pwd.getpwnam("nobody").pw_uid, "bash", "-c", script))
        assert (b"local-stranger" in base64.b64decode(done.stdout)) == refused, done
        assert bool(done.stdout)


def as_user(uid: int, *argv: str) -> list[str]:
    return ["setpriv", f"--reuid={uid}", "--clear-groups", *argv]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users can look into; pytest closes its own to them."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(
    ("users", "user", "name", "expected"),
    [
        ((), "nobody", "shop/data#{first}~{secret}", "Permission denied"),
        (("daemon",), "nobody", "shop/data#{first}~{secret}", "local-user-refused"),
        (("nobody",), "nobody", "shop/data#{first}~{secret}", "rw"),
        (("nobody",), "nobody", "shop/data#{first}", "grant-missing"),
        (("nobody",), "nobody", "shop/data", "grant-missing"),
        (("nobody",), "root", "shop/data#{first}", "rw"),
    ],
)
async def test_a_local_user_gets_through_the_unix_socket_only_by_name_and_capability(
    tmp_path: Path, public: Path, users: tuple[str, ...], user: str, name: str, expected: str
) -> None:
    socket = public / "nbd.sock"
    async with running(tmp_path / "store", nbd_socket=socket, local_users=users) as site:
        first, _, _ = two_branches(site)
        site.store.grants.give("shop", first, Access.WRITE, secret=SECRET)
        uri = f"nbd+unix:///{quote(name.format(first=first, secret=SECRET))}?socket={socket}"
        said = judged(await tool(*as_user(pwd.getpwnam(user).pw_uid, *NBDINFO, uri)))
        assert expected in said
        assert (mode_of(socket) & 0o777) == (0o666 if users else 0o600)


def mode_of(path: Path) -> int:
    return path.stat().st_mode


async def test_a_socket_is_not_put_where_everybody_may_put_one(tmp_path: Path, public: Path) -> None:
    os.chmod(public, 0o1777)  # noqa: PTH101
    with pytest.raises(DrengineError, match=r"everybody may write its folder.*\[nbd-listen\]"):
        async with running(tmp_path / "store", nbd_socket=public / "nbd.sock"):
            pass


async def test_what_is_taken_back_ends_and_nothing_beside_it(tmp_path: Path, authority: Authority) -> None:
    clock = ManualClock(time.time_ns())
    async with running(tmp_path / "store", clock=clock, nbd_listen=ANY, exports="granted") as site:
        first, second, _ = two_branches(site)
        for branch, secret, seconds in ((first, SECRET, 0), (second, SECRET[::-1], 3600)):
            site.store.grants.give("shop", branch, Access.WRITE, secret=secret, seconds=seconds)

        def opened(branch: int, secret: str) -> NbdClient:
            assert site.nbd
            return NbdClient(site.nbd, f"shop/data#{branch}~{secret}")

        taken = await asyncio.to_thread(opened, first, SECRET)
        kept = await asyncio.to_thread(opened, second, SECRET[::-1])
        await asyncio.to_thread(taken.write, 0, b"mine" * 1024)
        site.store.grants.take(lambda grant: grant.branch == first)
        await asyncio.to_thread(taken.read, 0, 16)
        assert GRANT_SECONDS < 5
        await ended(clock, taken)
        assert bytes(await asyncio.to_thread(kept.read, 0, len(CONTENT))) == CONTENT
        with pytest.raises(DrengineError, match="grant-missing"):
            await asyncio.to_thread(opened, first, SECRET)
        clock.advance(3600)
        await ended(clock, kept)


async def ended(clock: ManualClock, client: NbdClient) -> None:
    """The target looks at its grants, and cuts the client off."""
    with pytest.raises((DrengineError, OSError)):
        async with asyncio.timeout(20):
            while True:
                clock.advance(GRANT_SECONDS)
                await asyncio.to_thread(client.read, 0, 16)
    with contextlib.suppress(DrengineError, OSError):
        await asyncio.to_thread(client.close)


def test_the_configuration_says_which_users_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(DrengineError, match=r"local_users: this machine knows no such user: .*nobody-here"):
        load_target_config(None, {"store": str(tmp_path), "local_users": ["nobody-here"]})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, []),
        ({"allow_plain": True}, ["127.0.0.1:7440 may ship as any source"]),
        ({"allow_plain": True, "nbd_listen": "127.0.0.1:1"}, ["may ship as any source", "may open every point"]),
        ({"allow_plain": True, "nbd_listen": "127.0.0.1:1", "exports": "granted"}, ["may ship as any source"]),
    ],
)
def test_what_is_open_to_everybody_is_said_loudly(tmp_path: Path, values: dict[str, object], said: list[str]) -> None:
    warned = open_to_everybody(load_target_config(None, {"store": str(tmp_path), **values}))
    assert len(warned) == len(said)
    assert all(each in line for each, line in zip(said, warned, strict=True))
