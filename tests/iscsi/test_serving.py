"""What initiators may and what they are promised, judged by QEMU's and libiscsi's."""

from __future__ import annotations

import itertools
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.iscsi.errors import ISCSI_PORTAL, ISCSI_SETTINGS
from drengine.iscsi.names import check_iscsi_name, target_name, target_number
from drengine.iscsi.portals import Portal
from drengine.iscsi.serving import FILE_MARK, MARK, Account, IscsiInstance, IscsiTarget, LunDisk, ServedTarget
from drengine.iscsi.tgtd import Act, Mode, Tgtd
from drengine.linux.mounts import read_mounts
from drengine.linux.namespaces import in_network
from drengine.model.errors import DrengineError
from drengine.nbd.export import Command
from drengine.process import find_marked
from drengine.transport.errors import OUTSIDE_DATA_NETWORK
from drengine.transport.networks import DataNetworks
from tests.iscsi.rig import INITIATOR, Initiator, VolatileDisk, serving, skip_unless_iscsi_can_be_served
from tests.system.disks import run
from tests.system.networks import networks, skip_unless_networks_can_be_made

NAME = "iqn.2026-11.net.drengine:shop"
ACCOUNT = Account("shop", secrets.token_hex(12))
OURS = Account("outpost", secrets.token_hex(12))
LOCAL = IscsiTarget(NAME, Portal("127.0.0.1"), DataNetworks())


@contextmanager
def served(tmp_path: Path, target: IscsiTarget, disk: VolatileDisk) -> Iterator[ServedTarget]:
    """A disk behind a target; nothing is left of it afterwards."""
    skip_unless_iscsi_can_be_served()
    name, directory = f"test-{secrets.token_hex(4)}", tmp_path / "instance"
    instance = IscsiInstance(name, directory, ["data"])
    with serving(disk, tmp_path / "s") as uri:
        try:
            yield instance.start(target, [LunDisk("data", uri, disk.sector_bytes)])
        finally:
            instance.stop()
    assert not find_marked(MARK, name)
    assert not find_marked(FILE_MARK, f"{name}/data")
    assert not [mount.at for mount in read_mounts() if mount.at.is_relative_to(directory)]
    assert {path.name for path in directory.iterdir()} <= {"mark.key", "portal", "tgtd.log", "data.nbdfuse"}


def initiator(served: ServedTarget, account: Account | None = None, name: str = INITIATOR) -> Initiator:
    return Initiator(
        served.portal, served.target, name, account.user if account else "", account.secret if account else ""
    )


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_flushed_write_is_durable_and_one_that_was_not_is_the_disks_to_keep(
    tmp_path: Path, sector_bytes: int
) -> None:
    disk = VolatileDisk(sector_bytes)
    with served(tmp_path, LOCAL, disk) as target:
        client = initiator(target)
        assert f"LOGICAL BLOCK LENGTH IN BYTES:{sector_bytes}" in client.ask("iscsi-readcapacity16").stdout
        client.does("write -P 1 0 64k", "flush", "write -P 2 1M 64k", "read -P 2 1M 64k")
        flushed = disk.commands.index(Command.FLUSH)
        assert flushed, "the first write came before it"
        assert disk.durable[: 64 << 10] == b"\1" * (64 << 10)
        # QEMU flushes when it closes; what came in between is not durable before that.
        assert disk.commands[flushed + 1 :].count(Command.FLUSH) >= 1


def test_a_write_with_fua_is_durable_when_it_is_answered(tmp_path: Path) -> None:
    disk = VolatileDisk()
    with served(tmp_path, LOCAL, disk) as target:
        initiator(target).does("write -f -P 3 0 4k")
        order = [each for each in disk.commands if each != Command.READ]
        assert order[:2] == [Command.WRITE, Command.FLUSH]
        assert disk.durable[:4096] == b"\3" * 4096


def test_unmapped_blocks_are_trimmed_and_read_as_zeros(tmp_path: Path) -> None:
    disk = VolatileDisk()
    disk.cached[: 1 << 20] = b"\5" * (1 << 20)
    with served(tmp_path, LOCAL, disk) as target:
        initiator(target).does("discard 64k 128k", "read -P 0 64k 128k", "read -P 5 192k 64k")
        assert Command.TRIM in disk.commands


def test_only_who_has_the_secret_gets_in_and_the_target_shows_itself_too(tmp_path: Path) -> None:
    target = replace(LOCAL, account=ACCOUNT, mutual=OURS)
    with served(tmp_path, target, VolatileDisk()) as found:
        initiator(found, ACCOUNT).does("read 0 4k")
        for other in (None, Account("shop", "not-the-secret"), Account("root", ACCOUNT.secret), OURS):
            assert initiator(found, other).io("read 0 4k").returncode != 0
            assert "Lun:1" not in initiator(found, other).ask("iscsi-ls", "-s", lun=0).stdout
        client = initiator(found, ACCOUNT)
        both = f"iscsi://shop%{ACCOUNT.secret}@{found.portal}/{NAME}/1?target_user=outpost&target_password="
        assert client.ask_url("iscsi-inq", both + OURS.secret).returncode == 0
        assert client.ask_url("iscsi-inq", both + "some-other-secret").returncode != 0


def test_secrets_are_in_no_command_line_environment_or_file(tmp_path: Path) -> None:
    with served(tmp_path, replace(LOCAL, account=ACCOUNT, mutual=OURS), VolatileDisk()) as found:
        initiator(found, Account("shop", "not-the-secret")).io("read 0 4k")
        files = [each for each in (tmp_path / "instance").iterdir() if each.is_file() and each.suffix != ".disk"]
        readable = [each.read_bytes() for each in files]
        for entry in Path("/proc").glob("[0-9]*"):
            readable += [b for name in ("cmdline", "environ") if (b := _read(entry / name))]
        for account in (ACCOUNT, OURS):
            assert not any(account.secret.encode() in each for each in readable)
            assert account.secret not in repr(account)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_only_initiators_of_these_names_find_the_target(tmp_path: Path) -> None:
    with served(tmp_path, replace(LOCAL, initiators=(INITIATOR,)), VolatileDisk()) as target:
        initiator(target).does("read 0 4k")
        assert initiator(target, name=f"{INITIATOR}2").io("read 0 4k").returncode != 0


def test_each_disk_has_identifiers_of_its_own(tmp_path: Path) -> None:
    """Of two LUNs with one identifier an initiator's multipath makes one disk with two ways."""
    seen = []
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        with served(tmp_path / place, LOCAL, VolatileDisk()) as target:
            told = initiator(target).ask("iscsi-inq", "-e", "1", "-c", "131").stdout
            seen.append(re.findall(r"Designator:\[(.*?)\]\n", told, re.DOTALL))
            serial = initiator(target).ask("iscsi-inq", "-e", "1", "-c", "128").stdout
            seen[-1].append(serial)
    assert len(seen[0]) == 4
    assert not set(seen[0]) & set(seen[1])


def test_a_read_only_disk_is_one(tmp_path: Path) -> None:
    disk = VolatileDisk()
    with served(tmp_path, replace(LOCAL, read_only=True), disk) as target:
        initiator(target).does("read 0 4k", flags=("-r",))
        assert initiator(target).io("write 0 4k").returncode != 0
    assert Command.WRITE not in disk.commands


def test_beyond_loopback_a_portal_lies_in_a_data_network_and_asks_for_a_secret() -> None:
    with pytest.raises(DrengineError) as raised:
        replace(LOCAL, portal=Portal("192.0.2.1"), account=ACCOUNT).check()
    assert raised.value.kind is OUTSIDE_DATA_NETWORK
    networks = DataNetworks.parse(["192.0.2.0/24"])
    with pytest.raises(DrengineError, match="CHAP") as raised:
        replace(LOCAL, portal=Portal("192.0.2.1"), networks=networks).check()
    assert raised.value.kind is ISCSI_SETTINGS
    replace(LOCAL, portal=Portal("192.0.2.1"), networks=networks, account=ACCOUNT).check()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (replace(LOCAL, account=Account("shop", "short")), "12 to 200"),
        (replace(LOCAL, account=Account("shop", "with,comma and space")), "no space"),
        (replace(LOCAL, account=Account("sh,op", ACCOUNT.secret)), "no user"),
        (replace(LOCAL, account=ACCOUNT, mutual=Account("x", ACCOUNT.secret)), "must differ"),
        (replace(LOCAL, mutual=OURS), "CHAP"),
        (replace(LOCAL, initiators=("everybody",)), "no iSCSI name"),
    ],
)
def test_what_would_not_hold_is_refused(target: IscsiTarget, told: str) -> None:
    with pytest.raises(DrengineError, match=told) as raised:
        target.check()
    assert raised.value.kind is ISCSI_SETTINGS
    assert ACCOUNT.secret not in raised.value.message


def test_a_portal_that_is_taken_or_somebody_elses_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Portal("127.0.0.1", other.getsockname()[1])
        with pytest.raises(DrengineError, match="taken") as raised:
            taken.free()
        assert raised.value.kind is ISCSI_PORTAL
    assert taken.free() == taken
    with pytest.raises(DrengineError, match="does not have"):
        Portal("192.0.2.1").free()


@pytest.mark.parametrize(
    ("text", "portal"),
    [
        ("10.0.0.5", Portal("10.0.0.5")),
        ("10.0.0.5:3261", Portal("10.0.0.5", 3261)),
        ("[fd00::5]:3261", Portal("fd00::5", 3261)),
        ("fd00::5", Portal("fd00::5")),
    ],
)
def test_a_portal_is_read_as_it_is_shown(text: str, portal: Portal) -> None:
    assert Portal.parse(text) == portal
    assert Portal.parse(str(portal)) == portal


@pytest.mark.parametrize("text", ["", "::", "0.0.0.0", "outpost:3260", "10.0.0.5:99999", "10.0.0.5:-1", "224.0.0.1"])
def test_what_is_no_portal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Portal.parse(text)


def test_names_are_the_fields(tmp_path: Path) -> None:
    assert check_iscsi_name(target_name("shop_1", drill=True)) == "iqn.2026-11.net.drengine:shop-1:drill"
    assert 0 < target_number("a") < 1 << 28
    assert target_number("a") != target_number("b")


class Died(BaseException):
    """What ends a process between two orders."""


def dying_at(number: int) -> Callable[..., str]:
    """Orders, of which that one is not given any more."""
    order, given = Tgtd._order, itertools.count(1)

    def give(self: Tgtd, mode: Mode, act: Act, *args: Any, **more: Any) -> str:
        if act is not Act.SHOW and next(given) == number:
            raise Died
        return order(self, mode, act, *args, **more)

    return give


def test_whoever_dies_while_it_configures_leaves_nothing_that_lets_anybody_in_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each order: nobody finds a target without its disks or secret, and the next one makes it whole."""
    skip_unless_iscsi_can_be_served()
    name, target = f"test-{secrets.token_hex(4)}", replace(LOCAL, account=ACCOUNT)
    instance = IscsiInstance(name, tmp_path / "instance", ["data"])
    with serving(VolatileDisk(), tmp_path / "s") as uri:
        disks, deaths = [LunDisk("data", uri, 512)], 0
        try:
            for died_at in itertools.count(1):
                with monkeypatch.context() as patch:
                    patch.setattr(Tgtd, "_order", dying_at(died_at))
                    try:
                        found = instance.start(target, disks)
                    except Died:
                        deaths += 1
                        assert IscsiInstance(name, tmp_path / "instance", ["data"]).served() is None
                        portal = (tmp_path / "instance/portal").read_text()
                        assert Initiator(portal, NAME).io("read 0 4k").returncode != 0
                        continue
                break
            assert deaths == len(("target", "account", "bind", "bind", "lun", "update", "allow"))
            assert len(instance.processes()) == 1
            initiator(found, ACCOUNT).does("read 0 4k")
        finally:
            instance.stop()


def test_only_who_comes_from_a_data_network_is_heard(tmp_path: Path) -> None:
    """tgt itself takes a known name from anywhere; the kernel drops what comes from elsewhere."""
    skip_unless_networks_can_be_made()
    near, far = "10.81.2.0/24", "10.81.1.0/24"
    target = replace(LOCAL, portal=Portal("10.81.2.1"), account=ACCOUNT, initiators=(INITIATOR,))
    with networks() as nets:
        space = nets.inside("outpost")[1].rpartition("/")[2]
        run(*nets.inside("source"), "ip", "route", "add", near, "via", "10.81.1.1")

        def reached(host: str, *allowed: str) -> bool:
            found = replace(target, networks=DataNetworks.parse(allowed))

            def ask() -> bool:
                with served(tmp_path, found, VolatileDisk()) as there:
                    client = replace(initiator(there, ACCOUNT), inside=(*nets.inside(host), "timeout", "3"))
                    return client.io("read 0 4k").returncode == 0

            return in_network(space, ask)

        assert reached("recovery", near)
        assert reached("outpost", near)
        assert reached("source", near, far)
        assert not reached("source", near)
