"""What a recovery host lets itself be told by its own file, whoever has signed the order."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replaced

from drengine.config import Address
from drengine.config import parse as parse_config
from drengine.control.attach import AttachOrder, StandbyMount, StandbySettings
from drengine.control.config import BrokerOptions
from drengine.control.messages import Command, Verb
from drengine.control.refusals import OrderRefusedError
from drengine.linux.mounts import read_mounts
from drengine.model.errors import DrengineError
from drengine_agent.standby.allow import AllowOptions
from drengine_agent.standby.config import StandbyConfig
from drengine_agent.standby.host import StandbyHost
from drengine_agent.standby.workload import Workload
from tests.agent.standby import test_standby
from tests.agent.standby.test_standby import mount_of, needs_root, order

pytestmark = pytest.mark.timeout(60)
served = test_standby.served


def allow(**lists: Any) -> AllowOptions:
    return parse_config(AllowOptions, lists)


def wanted(**settings: Any) -> AttachOrder:
    return AttachOrder(
        instance="i", source="shop", disks={"data": "nbd://127.0.0.1/x"}, settings=StandbySettings(**settings),
        isolated=False,
    )  # fmt: skip


def refusal(options: AllowOptions, order: AttachOrder) -> str:
    with pytest.raises(OrderRefusedError) as refused:
        options.require(order)
    assert refused.value.code == "order-not-allowed"
    return str(refused.value)


def at(place: str) -> AttachOrder:
    return wanted(mounts=[StandbyMount(volume="data", at=place)])


@pytest.mark.parametrize(
    "place", ["/", "/etc", "/etc/x", "/usr/local", "/root", "/boot", "/dev/shm", "/lib/x", "//etc"]
)
def test_nothing_is_mounted_over_the_system_unless_its_owner_says_so(place: str) -> None:
    assert "[allow] roots" in refusal(allow(), at(place))
    if place != "//etc":
        allow(roots=["/"]).require(at(place))


def test_disks_are_mounted_below_the_roots_only() -> None:
    options = allow(roots=["/srv", "/data/db"])
    for place in ("/srv", "/srv/x/y", "/data/db"):
        options.require(at(place))
    for place in ("/srvx", "/data", "/data/dbx", "/mnt", "/etc"):
        refusal(options, at(place))
    refusal(allow(roots=[]), at("/srv"))


def test_mount_options_are_those_of_the_list() -> None:
    mount = StandbyMount(volume="data", at="/srv", options=["ro,suid", "noatime"])
    assert "'suid'" in refusal(allow(options=["ro", "noatime"]), wanted(mounts=[mount]))
    allow(options=["ro", "noatime", "suid"]).require(wanted(mounts=[mount]))
    allow().require(wanted(mounts=[mount]))


@pytest.mark.parametrize(
    ("argv", "fits"),
    [
        (["systemctl", "start", "shop"], True),
        (["systemctl", "start", "shop-eu"], True),
        (["systemctl", "start", "shop", "--force"], False),
        (["systemctl", "start"], False),
        (["systemctl", "start", "sshd"], False),
        (["/opt/shop/check", "--url", "http://x"], True),
        (["/opt/shop/check"], True),
        (["/opt/shop/check2"], False),
        (["sh", "-c", "systemctl start shop"], False),
    ],
)
@pytest.mark.parametrize("which", ["start", "stop", "health"])
def test_commands_are_those_of_the_list(argv: list[str], fits: bool, which: str) -> None:
    options = allow(commands=["systemctl start shop*", "/opt/shop/check ..."])
    if fits:
        options.require(wanted(**{which: argv}))
    else:
        assert argv[0] in refusal(options, wanted(**{which: argv}))
    allow().require(wanted(**{which: argv}))
    refusal(allow(commands=[]), wanted(**{which: argv}))


def test_users_are_those_of_the_list() -> None:
    options = allow(users=["shop"])
    options.require(wanted(start=["x"], user="shop"))
    options.require(wanted())  # nothing is run at all
    refusal(options, wanted(start=["x"]))
    refusal(options, wanted(start=["x"], user="postgres"))
    allow(users=["root"]).require(wanted(start=["x"]))


@pytest.mark.parametrize(
    "lists",
    [{"verbs": ["fence"]}, {"roots": ["srv"]}, {"roots": ["/srv/../etc"]}, {"commands": [""]}, {"links": "no"}],
)
def test_mistakes_in_the_lists_are_told(lists: dict[str, Any]) -> None:
    with pytest.raises(DrengineError) as error:
        allow(**lists)
    assert error.value.kind.id == "bad-config"


async def test_a_host_refuses_what_its_file_does_not_allow(tmp_path: Path) -> None:
    config = StandbyConfig(
        name="recovery-1",
        state_directory=tmp_path / "state",
        control=BrokerOptions(address=Address("127.0.0.1", 1)),
        allow=allow(roots=["/srv"], commands=[]),
    )
    host = StandbyHost(config)
    for settings in ({"mounts": [{"volume": "data", "at": "/etc/x"}]}, {"start": ["touch", str(tmp_path / "done")]}):
        arguments = {
            "instance": "i", "source": "shop", "disks": {"data": "nbd+unix:///x?socket=/x"}, "settings": settings,
            "isolated": False,
        }  # fmt: skip
        command = Command(id="1", verb=Verb.ATTACH, generation=0, expires_ns=0, arguments=arguments)
        with pytest.raises(OrderRefusedError, match="allow"):
            await host.attach(command, lambda _: None)
    assert not (tmp_path / "done").exists()
    assert not list((tmp_path / "state" / "instances").iterdir())


@needs_root
def test_a_link_of_the_host_leads_out_of_no_root(served: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    workload = Workload(
        order(served, mounts=[mount_of(tmp_path / "root" / "link")]),
        tmp_path / "instance",
        allow=allow(roots=[str(tmp_path / "root")]),
    )
    try:
        with pytest.raises(OrderRefusedError, match="elsewhere"):
            workload.start(lambda _: None)
    finally:
        workload.stop()
    assert not [each for each in read_mounts() if each.at.is_relative_to(tmp_path)]


@needs_root
@pytest.mark.parametrize("links", ["follow", "refuse"])
def test_links_on_a_replica_are_followed_only_where_the_owner_lets_them(
    served: str,
    tmp_path: Path,
    links: str,
) -> None:
    place, secret = tmp_path / "mnt", tmp_path / "secret"
    secret.write_text("the host's own")
    workload = Workload(order(served, mounts=[mount_of(place)]), tmp_path / "instance", allow=allow(links=links))
    try:
        workload.start(lambda _: None)
        (place / "link").symlink_to(secret)
        if links == "follow":
            assert (place / "link").read_text() == "the host's own"
        else:
            with pytest.raises(OSError) as error:
                (place / "link").read_text()
            assert error.value.errno == errno.ELOOP
        assert (place / "hello").read_text() == "from the source"
        assert "nodev" in Path("/proc/self/mountinfo").read_text().split(str(place))[1].split("\n")[0]
    finally:
        workload.stop()


@needs_root
@pytest.mark.parametrize("network", ["host", "none"])
def test_commands_run_as_the_user_of_the_order(served: str, tmp_path: Path, network: str) -> None:
    noted = tmp_path / "noted"
    noted.touch(mode=0o666)
    noted.chmod(0o666)
    for folder in noted.parents:
        if folder.stat().st_uid == 0 and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    wanted = order(
        served, start=["sh", "-c", f"id -un >> {noted}; echo $HOME >> {noted}"], user="nobody", network=network
    )
    workload = Workload(wanted, tmp_path / "instance")
    try:
        workload.start(lambda _: None)
        assert noted.read_text().splitlines()[0] == "nobody"
    finally:
        workload.stop()
    strange = Workload(
        replaced(wanted, settings=replaced(wanted.settings, user="nobody-of-that-name")), tmp_path / "strange"
    )
    try:
        with pytest.raises(DrengineError):
            strange.start(lambda _: None)
    finally:
        strange.stop()
