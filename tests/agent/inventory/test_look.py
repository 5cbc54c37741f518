"""What an agent finds of the server on which it runs: real loop devices, mounts, networks and listeners."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from drengine.model.inventory import DOCUMENT_BYTES_MAX, Interface, Inventory, faults, pack_inventory, parse_inventory
from drengine_agent.install.unit import CAPABILITIES
from drengine_agent.inventory.blocks import Block, uncovered
from drengine_agent.inventory.look import Look, fitting
from drengine_agent.inventory.network import has_lease
from drengine_agent.inventory.storage import fstab_lines
from tests.inventories import SERVER
from tests.linux.loops import loop_device

MIB = 1 << 20
ROOT = Path(__file__).parents[3]


def look(volumes: Mapping[str, Path], now_ns: int, *, root: Path = Path("/")) -> Inventory:
    return Look(volumes, root=root)(now_ns)


def needs(*tools: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can do this")
    missing = [each for each in tools if shutil.which(each, path="/usr/sbin:/sbin:/usr/bin:/bin") is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def here() -> Inventory:
    return look({}, 7)


def test_this_very_machine_is_told_within_bounds(here: Inventory) -> None:
    assert here.taken_ns == 7 and here.kernel == os.uname().release and here.architecture == os.uname().machine
    assert here.cpus == os.cpu_count() and here.hostname == socket.gethostname()
    told = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert int(told.split()[1]) << 10 <= here.memory_bytes
    assert parse_inventory(pack_inventory(here)) == here
    assert here.os_id and here.os_name


def test_a_disk_with_partitions_and_what_is_mounted_of_it(tmp_path: Path) -> None:
    needs("sfdisk", "mkfs.ext4", "mount", "partx")
    table = "label: gpt\nsize=8MiB, type=uefi\nsize=24MiB\nsize=16MiB\n"
    place = tmp_path / "mnt"
    place.mkdir()
    with loop_device(tmp_path / "disk", 64 * MIB) as device, loop_device(tmp_path / "other", 16 * MIB) as other:
        subprocess.run(["sfdisk", "--quiet", device], input=table, text=True, check=True, capture_output=True)
        subprocess.run(["partx", "--update", device], check=True)
        second = Path(f"{device}p2")
        if not second.exists():
            number = Path(f"/sys/class/block/{second.name}/dev").read_text().strip()
            os.mknod(second, 0o60660, os.makedev(*map(int, number.split(":"))))
        subprocess.run(["mkfs.ext4", "-q", "-L", "data", second], check=True)
        subprocess.run(["mkfs.ext4", "-q", other], check=True)
        subprocess.run(["mount", second, place], check=True)
        try:
            found = look({"system": device}, 0)
        finally:
            subprocess.run(["umount", place], check=True)
            subprocess.run(["partx", "--delete", device], check=True)
            second.unlink(missing_ok=True)
    disk = next(each for each in found.disks if each.volume == "system")
    assert (disk.device, disk.size_bytes, disk.table) == (device.name, 64 * MIB, "gpt")
    assert [(each.number, each.device, each.size_bytes) for each in disk.partitions] == [
        (1, f"{device.name}p1", 8 * MIB),
        (2, f"{device.name}p2", 24 * MIB),
        (3, f"{device.name}p3", 16 * MIB),
    ]
    assert disk.partitions[0].type == "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
    system = next(each for each in found.file_systems if each.device == second.name)
    assert (system.kind, system.label, system.mounted_at) == ("ext4", "data", str(place))
    assert 0 < system.free_bytes < system.size_bytes <= 24 * MIB and system.uuid
    assert (system.disks, system.unreplicated) == ((device.name,), ())
    alone = next(each for each in found.file_systems if each.device == other.name)
    assert (alone.mounted_at, alone.unreplicated) == ("", (other.name,))


def test_a_volume_that_is_a_file_is_told_with_the_loop_over_it(tmp_path: Path) -> None:
    needs("sfdisk")
    with loop_device(tmp_path / "disk", 32 * MIB) as device:
        subprocess.run(
            ["sfdisk", "--quiet", tmp_path / "disk"],
            input="label: dos\n8MiB\n",
            text=True,
            check=True,
            capture_output=True,
        )
        found = look({"data": tmp_path / "disk"}, 0)
    volumes = {each.device: each for each in found.disks if each.volume == "data"}
    assert set(volumes) == {"data", device.name}
    assert volumes["data"].table == "dos" and volumes["data"].partitions[0].device == "data-part1"


@pytest.fixture
def network() -> Iterator[str]:
    needs("ip")
    name = f"inventory-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def seen_in(network: str) -> Inventory:
    """A look by a process in that network, which sees it in its own /sys."""
    program = (
        "import sys\nfrom drengine.model.inventory import pack_inventory\n"
        "from drengine_agent.inventory.look import Look\nsys.stdout.buffer.write(pack_inventory(Look({})(0)))"
    )
    done = subprocess.run(
        ["ip", "netns", "exec", network, sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    return parse_inventory(done.stdout)


def test_interfaces_addresses_and_routes_are_those_that_ip_tells(network: str) -> None:
    def ip(*words: str) -> str:
        return subprocess.run(["ip", "-n", network, *words], capture_output=True, text=True, check=True).stdout

    for line in (
        "link add lan type veth peer name far",
        "link set lan mtu 1400 address 52:54:00:00:00:07 up",
        "link set far up",
        "address add 10.99.1.5/24 dev lan",
        "address add 10.99.1.6/24 dev lan",
        "address add 10.99.9.1/30 dev lan label lan:1",
        "address add 2001:db8::5/64 dev lan nodad",
        "link add br0 type bridge",
        "address add 172.31.0.1/16 dev br0",
        "link set br0 up",
        "link add idle type veth peer name idle2",
        "route add default via 10.99.1.1 metric 50",
        "route add 192.0.2.0/24 via 10.99.1.9 dev lan",
        "route add unreachable 198.51.100.0/24",
        "-6 route add default via 2001:db8::1 dev lan",
    ):
        ip(*line.split())
    with contextlib.suppress(subprocess.CalledProcessError):  # not every kernel has VLANs
        ip(*["link", "add", "link", "lan", "name", "lan.7", "type", "vlan", "id", "7"])
        ip(*["link", "set", "lan.7", "up"])
        ip(*["address", "add", "10.7.0.2/24", "dev", "lan.7"])
    found = seen_in(network)
    cards = {each.name: each for each in found.interfaces}
    assert set(cards) - {"lan.7"} == {"lan", "br0"}, "what has no address and no hardware is left out"
    lan = cards["lan"]
    assert (lan.mac, lan.mtu, lan.is_up, lan.kind, lan.dhcp) == ("52:54:00:00:00:07", 1400, True, "virtual", False)
    assert cards["br0"].kind == "bridge" and ("lan.7" not in cards or cards["lan.7"].kind == "vlan")
    told = {each["ifname"]: each["addr_info"] for each in json.loads(ip("-j", "address")) if each["ifname"] != "lo"}
    for name, card in cards.items():
        wanted = {f"{each['local']}/{each['prefixlen']}" for each in told[name] if each["scope"] == "global"}
        assert set(card.addresses) == wanted
    routes = {(each.to, each.via, each.interface, each.metric) for each in found.routes}
    assert ("default", "10.99.1.1", "lan", 50) in routes and ("192.0.2.0/24", "10.99.1.9", "lan", 0) in routes
    assert ("default", "2001:db8::1", "lan", 1024) in routes
    assert not [each for each in found.routes if each.to.startswith(("198.51.100", "fe80", "ff"))]
    for version in ("-4", "-6"):
        for each in json.loads(ip("-j", version, "route")):
            to = each["dst"]
            if each.get("type", "unicast") == "unicast" and not to.startswith("fe80"):
                assert any(to == route[0] and each.get("gateway", "") == route[1] for route in routes), each


def test_whoever_listens_is_told_with_its_program(network: str) -> None:
    program = (
        "import socket,sys\n"
        "a=socket.create_server(('127.0.0.1', 5432)); b=socket.create_server(('::', 8443), family=socket.AF_INET6)\n"
        "c=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.bind(('0.0.0.0', 53))\n"
        "d=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.bind(('0.0.0.0', 0))\n"
        "e=socket.create_server(('127.0.0.1', 0))\n"
        "open('/proc/self/comm','w').write('shopd'); print('ready', flush=True); sys.stdin.read()"
    )
    subprocess.run(["ip", "-n", network, "link", "set", "lo", "up"], check=True)
    with subprocess.Popen(
        ["ip", "netns", "exec", network, sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout and server.stdout.readline() == "ready\n"
        found = seen_in(network).listeners
        server.communicate("")
    assert {(each.protocol, each.address, each.port, each.program) for each in found} == {
        ("tcp", "127.0.0.1", 5432, "shopd"),
        ("tcp", "::", 8443, "shopd"),
        ("udp", "0.0.0.0", 53, "shopd"),
    }, "what passes is left out: clients' ports, and those of a program's own parts"


def test_the_capabilities_of_the_unit_tell_whose_a_port_is_and_those_of_older_units_do_not() -> None:
    needs("setpriv")
    program = (
        "import os,socket,sys\nos.setgid(65534); os.setuid(65534)\na=socket.create_server(('127.0.0.1', 0))\n"
        "a=socket.create_server(('127.0.0.7', 8437)); print('ready', flush=True); sys.stdin.read()"
    )
    names = {each.removeprefix("CAP_").lower() for each in CAPABILITIES}
    known = set(subprocess.run(["setpriv", "--list-caps"], capture_output=True, text=True, check=True).stdout.split())
    show = (
        "from drengine_agent.inventory.look import Look\n"
        "print([(each.port, each.program) for each in Look({})(0).listeners if each.address == '127.0.0.7'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout and server.stdout.readline() == "ready\n"
        said = []
        for left_out in ((), ("sys_ptrace",)):
            kept = ",".join(f"+{each}" for each in names & known if each not in left_out)
            done = subprocess.run(
                ["setpriv", f"--bounding-set=-all,{kept}", sys.executable, "-c", show],
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}"},
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
            said.append(done.stdout.strip())
        server.communicate("")
    assert said[0].startswith("[(8437, 'python") and said[1] == "[(8437, '')]", said


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


TCP = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   112        0 501 1\n"
    "   1: 0100007F:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 502 1\n"
    "   2: 0500000A:0016 0600000A:9C41 01 00000000:00000000 00:00000000 00000000     0        0 503 1\n"
)


def test_a_server_that_is_described_by_files(tmp_path: Path) -> None:
    """A physical UEFI server, seen by an agent that may trace nobody."""
    write(
        tmp_path,
        {
            "etc/os-release": 'ID=rocky\nID_LIKE="rhel centos"\nVERSION_ID="9.3"\nPRETTY_NAME="Rocky Linux 9.3"\n',
            "etc/fstab": "# static\n/dev/mapper/rl-root / xfs defaults 0 0\nLABEL=two\\040words /srv/a\\040b ext4\nx\n",
            "etc/resolv.conf": "search example.org corp.example\nnameserver 10.0.0.53\nnameserver fe80::1%eno1\n",
            "sys/firmware/efi/fw_platform_size": "64",
            "sys/class/dmi/id/sys_vendor": "Dell Inc.",
            "sys/class/dmi/id/product_name": "PowerEdge R640",
            "proc/meminfo": "MemTotal:       16384000 kB\n",
            "proc/net/tcp": TCP,
            "proc/cpuinfo": "flags : fpu vme\n",
        },
    )
    efivars = tmp_path / "sys/firmware/efi/efivars"
    efivars.mkdir()
    (efivars / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\6\0\0\0\1")
    found = look({}, 0, root=tmp_path)
    assert (found.os_id, found.os_like, found.os_version) == ("rocky", ("rhel", "centos"), "9.3")
    assert (found.boot_mode, found.secure_boot, found.virtualization) == ("uefi", True, "none")
    assert (found.machine, found.memory_bytes) == ("Dell Inc. PowerEdge R640", 16384000 << 10)
    assert found.search == ("example.org", "corp.example") and found.name_servers == ("10.0.0.53", "fe80::1")
    assert [(line.device, line.at, line.kind, line.options) for line in found.fstab] == [
        ("/dev/mapper/rl-root", "/", "xfs", "defaults"),
        ("LABEL=two words", "/srv/a b", "ext4", "defaults"),
    ]
    assert [(each.address, each.port, each.program) for each in found.listeners] == [
        ("127.0.0.1", 25, ""),
        ("0.0.0.0", 5432, ""),
    ]


def block(root: Path, name: str, *below: str, parent: str = "", **files: str) -> None:
    """A device of a server that is described by files; a partition has a parent."""
    names = ["sda", "sda1", "sda2", "sdb", "sdb1", "sdc", "sdc1", "dm-0", "dm-1", "md0", "loop7", "zram0", "sr0"]
    numbers = {each: number for number, each in enumerate(names)}
    at = root / "sys/devices" / (f"ata1/block/{parent}/{name}" if parent else f"ata1/block/{name}")
    write(at, {"dev": f"8:{numbers[name]}", "size": "2097152", **files})
    for each in below:
        (at / "slaves" / each).mkdir(parents=True)
    (root / "sys/class/block").mkdir(parents=True, exist_ok=True)
    (root / "sys/class/block" / name).symlink_to(at)


def mountinfo(*lines: tuple[int, str, str]) -> str:
    return "".join(f"{n} 1 8:{number} / {at} rw - {kind} /dev/x rw\n" for n, (number, at, kind) in enumerate(lines, 30))


def test_lvm_on_an_encrypted_disk_and_a_mirror_of_two(tmp_path: Path) -> None:
    for name in ("sda", "sdb", "sdc"):
        block(tmp_path, name)
    for name, number in (("sda1", "1"), ("sda2", "2"), ("sdb1", "1"), ("sdc1", "1")):
        block(tmp_path, name, parent=name[:3], partition=number, start="2048")
    block(tmp_path, "dm-0", "sda2", **{"dm/uuid": "CRYPT-LUKS2-0a1b-sda2_crypt"})
    block(tmp_path, "dm-1", "dm-0", **{"dm/uuid": "LVM-x"})
    block(tmp_path, "md0", "sdb1", "sdc1")
    block(tmp_path, "loop7", ro="1")
    block(tmp_path, "zram0")
    block(tmp_path, "sr0", removable="1")
    own = mountinfo((8, "/", "ext4"), (1, "/boot", "ext4"), (9, "/srv", "xfs"))
    write(tmp_path, {"proc/self/mountinfo": own})
    found = look({}, 0, root=tmp_path)
    assert (found.root, found.root_chain, found.encrypted_root) == ("dm-1", ("dm-1", "dm-0", "sda2", "sda"), True)
    assert [(each.device, each.is_root, each.transport) for each in found.disks] == [
        ("sda", True, "sata"),
        ("sdb", False, "sata"),
        ("sdc", False, "sata"),
    ]
    assert [(each.number, each.device, each.offset_bytes) for each in found.disks[0].partitions] == [
        (1, "sda1", MIB),
        (2, "sda2", MIB),
    ]
    told = {each.mounted_at: each for each in found.file_systems}
    assert told["/"].disks == ("sda",) and told["/"].unreplicated == ("sda",)
    assert told["/srv"].disks == told["/srv"].unreplicated == ("sdb", "sdc")


@pytest.mark.parametrize(
    ("volumes", "missing"),
    [
        ({}, {"/": ("sda",), "/boot": ("sda",), "/srv": ("sdb", "sdc")}),
        ({"sda"}, {"/": (), "/boot": (), "/srv": ("sdb", "sdc")}),
        ({"dm-1"}, {"/": (), "/boot": ("sda",), "/srv": ("sdb", "sdc")}),
        ({"sda2", "sdb"}, {"/": (), "/boot": ("sda",), "/srv": ("sdc",)}),
        ({"md0", "sda1"}, {"/": ("sda",), "/boot": (), "/srv": ()}),
    ],
)
def test_what_no_volume_covers(volumes: set[str], missing: dict[str, tuple[str, ...]]) -> None:
    shape = {
        **{"sda": (), "sdb": (), "sdc": (), "sda1": ("sda",), "sda2": ("sda",), "sdb1": ("sdb",), "sdc1": ("sdc",)},
        **{"dm-0": ("sda2",), "dm-1": ("dm-0",), "md0": ("sdb1", "sdc1")},
    }
    blocks = {name: Block(name, Path("/"), (8, 0), 1, below) for name, below in shape.items()}
    on = {"/": "dm-1", "/boot": "sda1", "/srv": "md0"}
    assert {at: uncovered(name, blocks, volumes) for at, name in on.items()} == missing


def test_no_file_of_any_form_ends_a_look(tmp_path: Path) -> None:
    names = (
        *("etc/os-release", "etc/fstab", "etc/resolv.conf", "proc/meminfo", "proc/net/tcp", "proc/net/udp"),
        *("proc/net/route", "proc/net/ipv6_route", "proc/net/if_inet6", "proc/1/mountinfo", "proc/self/mountinfo"),
        *("sys/class/net/eth0/address", "sys/class/net/eth0/flags", "sys/class/net/eth0/mtu", "proc/7/cgroup"),
        *("sys/class/block/sda/dev", "sys/class/block/sda/size", "sys/class/dmi/id/sys_vendor", "proc/7/comm"),
    )
    hexes = "A:B C:D 0A 0 0 0 0 -1 0 1 2\n" * 9
    lines = ("", "\0" * 9, "x y z\n" * 40, hexes, "-1", "9" * 500, "\x1b[2J\n", "\u00e9" * 3000)
    for text in lines:
        write(tmp_path, dict.fromkeys(names, text))
        found = look({}, 0, root=tmp_path)
        assert not list(faults(found)), text[:20]
        parse_inventory(pack_inventory(found))


def test_a_server_with_too_much_of_everything_is_told_in_part() -> None:
    crowd = Inventory(
        taken_ns=0,
        hostname="web\n1",
        os_name="x" * 5000,
        interfaces=tuple(Interface(name=f"eth{n}", addresses=("10.0.0.1/8",) * 300) for n in range(400)),
        listeners=SERVER.listeners * 4000,
        fstab=(*SERVER.fstab, *(type(SERVER.fstab[0])(device="x", at="/" + "y" * 2000, kind="ext4"),)),
    )
    found = fitting(crowd)
    assert len(pack_inventory(found)) <= DOCUMENT_BYTES_MAX and parse_inventory(pack_inventory(found)) == found
    assert found.interfaces and found.listeners and found.fstab == SERVER.fstab
    assert found.hostname == found.os_name == ""
    assert fitting(SERVER) == SERVER


LEASES = {
    "run/systemd/netif/leases/7": "# This is private data. Do not parse.\nADDRESS=10.0.0.5\nNETMASK=255.255.255.0\n",
    "var/lib/dhcp/dhclient.eno1.leases": 'lease {\n  interface "eno1";\n  fixed-address 10.0.0.5;\n}\n',
    "var/lib/NetworkManager/internal-2f1e-eno1.lease": "ADDRESS=10.0.0.5\n",
    "var/lib/dhcpcd/eno1.lease": "ip_address='10.0.0.5'\n",
}


@pytest.mark.parametrize("place", LEASES)
def test_an_address_comes_by_dhcp_where_a_client_keeps_its_lease(place: str, tmp_path: Path) -> None:
    at = tmp_path / "sys/class/net/eno1"
    write(tmp_path, {"sys/class/net/eno1/ifindex": "7", place: LEASES[place]})
    assert has_lease(tmp_path, at, "eno1", ("10.0.0.5/24", "2001:db8::5/64"))
    assert not has_lease(tmp_path, at, "eno1", ("10.0.0.50/24",)), "an address that it had before"
    assert not has_lease(tmp_path, at, "eno1", ("2001:db8::5/64",))
    (tmp_path / place).unlink()
    assert not has_lease(tmp_path, at, "eno1", ("10.0.0.5/24",))


def test_whose_a_port_is_is_looked_up_again_when_another_socket_listens(tmp_path: Path) -> None:
    write(tmp_path, {"proc/net/tcp": TCP, "proc/7/comm": "postgres", "proc/7/fd/x": ""})
    (tmp_path / "proc/7/fd/4").symlink_to("socket:[501]")
    seen = Look({}, root=tmp_path)

    def programs() -> list[str]:
        return [each.program for each in seen(0).listeners if each.port == 5432]

    assert programs() == ["postgres"]
    write(tmp_path, {"proc/7/comm": "other"})
    assert programs() == ["postgres"]
    (tmp_path / "proc/7/fd/5").symlink_to("socket:[777]")
    write(tmp_path, {"proc/net/tcp": TCP.replace(" 501 ", " 777 ")})
    assert programs() == ["other"]


def test_comments_and_torn_lines_of_fstab_are_no_lines() -> None:
    assert fstab_lines("#UUID=1 / ext4\n\nUUID=1\nUUID=1 /\n") == ()
