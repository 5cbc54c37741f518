"""A recovery host attaches real disks, mounts them and starts services; its driver keeps the contract."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.config import Address
from drengine.control.attach import AttachOrder, StandbyMount, StandbySettings
from drengine.control.config import BrokerOptions
from drengine.control.messages import Answer, Command, Verb
from drengine.failover.drivers.contract import LaunchDriverContract
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.failover.drivers.standby import StandbyDriver
from drengine.linux.mounts import read_mounts
from drengine.model.errors import BAD_NAME, DrengineError
from drengine.nbd.file_export import FileProvider
from drengine.nbd.server import NbdServer
from drengine.transport.errors import OUTSIDE_DATA_NETWORK
from drengine_agent.standby.config import StandbyConfig
from drengine_agent.standby.errors import PLACE_TAKEN, STANDBY_FAILED, STANDBY_SETTINGS
from drengine_agent.standby.host import StandbyHost
from drengine_agent.standby.ways import choose
from drengine_agent.standby.workload import Workload
from tests.agent.cuts.disks import BYTES, MAKE, file_system, run

MISSING = [tool for tool in ("nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "ip") if not shutil.which(tool)]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or bool(MISSING), reason=f"only root can attach disks; not installed: {MISSING or 'nothing'}"
)


def image_of(path: Path, content: Path, kind: str = "ext4") -> Path:
    """A disk image with a file system that holds this directory's content."""
    with path.open("wb") as file:
        file.truncate(BYTES[kind])
    subprocess.run([*MAKE[kind], *(["-d", content] if kind == "ext4" else []), path], check=True)
    return path


@contextlib.contextmanager
def serving(folder: Path, **images: Path) -> Iterator[dict[str, str]]:
    """Disks served over NBD by a thread of its own: URIs by volume."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = NbdServer(FileProvider(images))
    place = asyncio.run_coroutine_threadsafe(server.start_unix(folder / "nbd.sock"), loop).result()
    try:
        yield {name: f"nbd+unix:///{name}?socket={place}" for name in images}
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """An ext4 disk with a file on it."""
    content = tmp_path / "content"
    content.mkdir()
    (content / "hello").write_text("from the source")
    with serving(tmp_path, data=image_of(tmp_path / "disk.img", content)) as uris:
        yield uris["data"]


def order(uri: str, **settings: Any) -> AttachOrder:
    return AttachOrder(
        instance=f"t{secrets.token_hex(4)}",
        source="shop",
        disks={"data": uri},
        settings=StandbySettings(**settings),
        isolated=bool(settings.get("network", "") == "none"),
        timeout_seconds=15.0,
    )


def mount_of(at: Path, *, volume: str = "data", options: Sequence[str] = ()) -> StandbyMount:
    return StandbyMount(volume=volume, at=str(at), options=list(options))


def mounts_below(folder: Path) -> list[tuple[str, Path]]:
    """(kind, place) of every mount there."""
    return [(each.kind, each.at) for each in read_mounts() if each.at.is_relative_to(folder)]


def traces(instance: str, folder: Path) -> str:
    """Whatever a workload may leave behind."""
    listed = [
        subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        for argv in (["losetup", "--list", "--output", "BACK-FILE"], ["ip", "netns", "list"], ["cat", "/proc/mounts"])
    ]
    return "".join(line for text in listed for line in text.splitlines() if instance in line or str(folder) in line)


@needs_root
@pytest.mark.parametrize(("hydrate", "attach"), [(False, "auto"), (True, "fuse"), (False, "copy")])
def test_a_workload_comes_up_on_its_disk_and_leaves_nothing_behind(
    served: str, tmp_path: Path, hydrate: bool, attach: str
) -> None:
    at, place = tmp_path / "mnt", tmp_path / "instance"
    wanted = order(
        served,
        mounts=[StandbyMount(volume="data", at=str(at))],
        start=["sh", "-c", f"echo recovered >> {at}/log"],
        stop=["sync"],
        health=["grep", "-q", "source", str(at / "hello")],
        attach=attach,
    )
    wanted = replace_struct(wanted, hydrate=hydrate)
    workload = Workload(wanted, place)
    said: list[str] = []
    try:
        details = workload.start(said.append)
        assert details["mounts"] == [str(at)]
        assert details["attach"] == (choose("auto").way if attach == "auto" else attach)
        assert Workload(wanted, place).start(said.append)["devices"] == details["devices"]  # by another process, later
        assert (at / "log").read_text() == "recovered\n", "it was started twice"
        found = Workload.load(place)
        assert found is not None
        assert found.healthy(5.0)
    finally:
        workload.stop()
    workload.stop()
    assert not place.exists()
    assert traces(wanted.instance, tmp_path) == ""
    again = Workload(order(served, mounts=[StandbyMount(volume="data", at=str(at))]), place)
    try:
        again.start(said.append)
        assert (at / "log").read_text() == "recovered\n", "what was written did not reach the branch"
    finally:
        again.stop()


def replace_struct(wanted: AttachOrder, **changes: Any) -> AttachOrder:
    import msgspec

    return msgspec.structs.replace(wanted, **changes)


@needs_root
@pytest.mark.fault(62)
def test_a_drill_runs_in_a_network_with_nothing_but_loopback(served: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    wanted = order(served, network="none", start=["sh", "-c", f"ip -o link > {seen}"], stop=["true"])
    workload = Workload(wanted, tmp_path / "instance")
    try:
        workload.start(lambda _: None)
        assert [line.split(": ")[1] for line in seen.read_text().splitlines()] == ["lo"]
    finally:
        workload.stop()
    assert traces(wanted.instance, tmp_path) == ""


ASKING = [
    ["systemctl", "start", "postgresql"],
    ["/usr/bin/systemctl", "start", "postgresql"],
    ["service", "postgresql", "start"],
    ["sh", "-c", "sleep 1; systemctl start postgresql"],
    ["/bin/bash", "-ec", "cd / && exec /bin/systemctl start x"],
    ["env", "A=b", "systemd-run", "sleep", "9"],
    ["sudo", "docker", "start", "shop"],
    ["sh", "-c", "$(systemctl start x)"],
]


@pytest.mark.fault(62)
@pytest.mark.parametrize("argv", ASKING, ids=" ".join)
def test_a_drill_that_would_start_its_workload_outside_of_its_network_is_refused(
    argv: list[str], tmp_path: Path
) -> None:
    for settings in ({"start": argv, "stop": ["true"]}, {"stop": argv}, {"health": argv}):
        with pytest.raises(DrengineError, match="network: host") as raised:
            Workload(order("nbd://x/y", network="none", **settings), tmp_path / "instance").start(lambda _: None)
        assert raised.value.kind is STANDBY_SETTINGS
    asked: list[Verb] = []

    def tell(verb: Verb, *_: Any) -> Answer:
        asked.append(verb)
        return Answer(id="x", done=True, ok=True)

    drill = LaunchRequest(
        instance="i", run="r", source="shop", disks=(), isolated=True, settings={"start": argv, "stop": ["true"]},
        directory=tmp_path, host="recovery-1", timeout_seconds=1.0, order=tell,
    )  # fmt: skip
    with pytest.raises(DrengineError, match="network: host") as raised:
        StandbyDriver().launch(drill, lambda _: None)
    assert raised.value.kind is LAUNCH_SETTINGS
    assert not asked, "the host was asked to attach its disks"
    for accepted in (
        replace(drill, isolated=False),
        replace(drill, settings={**drill.settings, "network": "host"}),
        replace(drill, settings={"start": ["/srv/shop/service", "systemctl"], "stop": ["true"]}),
    ):
        StandbyDriver().launch(accepted, lambda _: None)


@needs_root
@pytest.mark.fault(58)
def test_what_does_not_get_healthy_fails_with_its_words_and_can_be_undone(served: str, tmp_path: Path) -> None:
    wanted = replace_struct(order(served, health=["sh", "-c", "echo no database; false"]), timeout_seconds=0.5)
    workload = Workload(wanted, tmp_path / "instance")
    with pytest.raises(DrengineError, match="no database") as raised:
        workload.start(lambda _: None)
    assert raised.value.kind is STANDBY_FAILED
    workload.stop()
    assert traces(wanted.instance, tmp_path) == ""


@needs_root
def test_who_looks_into_a_disk_for_a_moment_does_not_keep_it(served: str, tmp_path: Path) -> None:
    wanted = order(served, attach="fuse")
    workload = Workload(wanted, tmp_path / "instance")
    details = workload.start(lambda _: None)
    with Path(details["devices"]["data"]).open("rb") as device:
        looks = threading.Timer(0.5, device.close)
        looks.start()
        workload.stop()
        looks.join()
    assert traces(wanted.instance, tmp_path) == ""


@needs_root
def test_a_disk_that_is_not_served_fails_with_the_tools_words(tmp_path: Path) -> None:
    workload = Workload(order("nbd+unix:///x?socket=/no/such"), tmp_path / "instance")
    with pytest.raises(DrengineError, match="/no/such"):
        workload.start(lambda _: None)
    workload.stop()


@needs_root
@pytest.mark.fault(67)
def test_a_place_that_the_host_has_mounted_is_not_taken_for_the_replica(served: str, tmp_path: Path) -> None:
    with file_system(tmp_path / "host") as (_, at):
        (at / "hello").write_text("the source of nothing: this is the host's own")
        workload = Workload(
            order(served, mounts=[mount_of(at)], health=["grep", "source", str(at / "hello")]), tmp_path / "instance"
        )
        try:
            with pytest.raises(DrengineError, match="is mounted there") as raised:
                workload.start(lambda _: None)
            assert raised.value.kind is PLACE_TAKEN
            assert not workload.running()
        finally:
            workload.stop()
        assert "own" in (at / "hello").read_text(), "the host's disk was unmounted"


@needs_root
@pytest.mark.fault(67)
def test_places_with_spaces_are_mounted_once_and_unmounted(served: str, tmp_path: Path) -> None:
    at = tmp_path / "a place\\with"
    workload = Workload(order(served, mounts=[mount_of(at)]), tmp_path / "the instance")
    try:
        workload.start(lambda _: None)
        workload.start(lambda _: None)
        assert workload.running()
        assert len(list(mounts_below(tmp_path))) == 2, "nbdfuse's and the disk's"
        assert (at / "hello").exists()
    finally:
        workload.stop()
    assert mounts_below(tmp_path) == []


@needs_root
@pytest.mark.fault(67)
def test_a_link_of_the_hosts_own_is_followed_once_and_for_all(served: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    workload = Workload(order(served, mounts=[mount_of(tmp_path / "link/at")]), tmp_path / "instance")
    try:
        workload.start(lambda _: None)
        workload.start(lambda _: None)
        assert workload.running()
        assert (tmp_path / "real/at/hello").exists()
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("elsewhere")
    finally:
        workload.stop()
    assert mounts_below(tmp_path) == []


@needs_root
@pytest.mark.fault(67)
def test_a_link_on_a_replica_leads_nowhere(tmp_path: Path) -> None:
    content, victim, at = tmp_path / "content", tmp_path / "etc", tmp_path / "at"
    content.mkdir()
    victim.mkdir()
    (content / "log").symlink_to(victim)
    images = {name: image_of(tmp_path / f"{name}.img", content) for name in ("data", "log")}
    with serving(tmp_path, **images) as uris:
        wanted = order(uris["data"], mounts=[mount_of(at), mount_of(at / "log", volume="log")])
        workload = Workload(replace_struct(wanted, disks=uris), tmp_path / "instance")
        try:
            with pytest.raises(DrengineError, match="link on an attached disk") as raised:
                workload.start(lambda _: None)
            assert raised.value.kind is STANDBY_SETTINGS
            assert not os.path.ismount(victim)
        finally:
            workload.stop()
    assert mounts_below(tmp_path) == []


@needs_root
@pytest.mark.fault(67)
def test_what_somebody_mounted_over_ours_stays_and_is_named(served: str, tmp_path: Path) -> None:
    at, instance = tmp_path / "at", tmp_path / "instance"
    workload = Workload(order(served, mounts=[mount_of(at)]), instance)
    workload.start(lambda _: None)
    run("mount", "-t", "tmpfs", "nobody's", at)
    try:
        assert not workload.running()
        with pytest.raises(DrengineError, match=f"still mounted at {at}"):
            workload.stop()
        assert [kind for kind, _ in mounts_below(at)] == ["ext4", "tmpfs"]
    finally:
        run("umount", at)
        found = Workload.load(instance)
        assert found is not None
        found.stop()
    assert mounts_below(tmp_path) == []


@needs_root
def test_mounts_of_a_version_that_noted_none_are_known_by_their_device(served: str, tmp_path: Path) -> None:
    at, instance = tmp_path / "at", tmp_path / "instance"
    workload = Workload(order(served, mounts=[mount_of(at)]), instance)
    workload.start(lambda _: None)
    (instance / "mounts.json").unlink()
    workload.stop()
    assert mounts_below(tmp_path) == []


@needs_root
@pytest.mark.fault(67)
@pytest.mark.parametrize(("options", "wanted"), [([], {"nosuid", "nodev"}), (["suid", "ro"], {"nodev", "ro"})])
def test_programs_and_devices_of_a_replica_mean_nothing_unless_asked(
    served: str, tmp_path: Path, options: list[str], wanted: set[str]
) -> None:
    at = tmp_path / "at"
    workload = Workload(order(served, mounts=[mount_of(at, options=options)]), tmp_path / "instance")
    try:
        workload.start(lambda _: None)
        seen = run("findmnt", "--noheadings", "--output", "OPTIONS", at).split(",")
        assert {"nosuid", "nodev", "ro"} & set(seen) == wanted
    finally:
        workload.stop()


@needs_root
def test_an_xfs_replica_is_mounted_beside_its_original(tmp_path: Path) -> None:
    at = tmp_path / "at"
    with file_system(tmp_path / "original", "xfs") as (device, place):
        (place / "hello").write_text("from the source")
        run("sync", "--file-system", place)
        replica = tmp_path / "replica.img"
        replica.write_bytes(device.read_bytes())
        with serving(tmp_path, data=replica) as uris:
            workload = Workload(order(uris["data"], mounts=[mount_of(at)]), tmp_path / "instance")
            try:
                workload.start(lambda _: None)
                assert (at / "hello").read_text() == "from the source"
            finally:
                workload.stop()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attach": "magic"}, "magic"),
        ({"network": "bridge"}, "bridge"),
        ({"mounts": [StandbyMount(volume="other", at="/x")]}, "other"),
        ({"mounts": [StandbyMount(volume="data", at="relative")]}, "relative"),
        ({"mounts": [StandbyMount(volume="data", at="/a/../etc")]}, "absolute"),
    ],
)
def test_orders_that_make_no_sense_are_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DrengineError, match=told) as raised:
        Workload(order("nbd+unix:///x?socket=/y", **changes), tmp_path)
    assert raised.value.kind is STANDBY_SETTINGS


@pytest.mark.fault(53)
@pytest.mark.parametrize("name", ["../up", "a/b", "", "a\0b", "A"])
def test_instances_and_volumes_can_not_escape_their_directory(name: str, tmp_path: Path) -> None:
    for wanted in (
        replace_struct(order("nbd://x/y"), instance=name),
        replace_struct(order("nbd://x/y"), disks={name: "nbd://x/y"}),
    ):
        with pytest.raises(DrengineError) as raised:
            Workload(wanted, tmp_path)
        assert raised.value.kind is BAD_NAME


def host(folder: Path) -> StandbyHost:
    broker = BrokerOptions(address=Address("127.0.0.1", 1))
    return StandbyHost(StandbyConfig(name="recovery-1", state_directory=folder, control=broker))


def command(verb: Verb, arguments: Mapping[str, Any]) -> Command:
    return Command(id=secrets.token_hex(4), verb=verb, generation=1, expires_ns=2**62, arguments=dict(arguments))


async def test_disks_from_outside_the_data_networks_are_not_attached(tmp_path: Path) -> None:
    import msgspec

    told = msgspec.to_builtins(order("nbd://203.0.113.7:10809/shop/data%232"))
    with pytest.raises(DrengineError) as raised:
        await host(tmp_path).attach(command(Verb.ATTACH, told), lambda _: None)
    assert raised.value.kind is OUTSIDE_DATA_NETWORK


async def test_nothing_is_known_of_an_instance_that_never_was(tmp_path: Path) -> None:
    found = await host(tmp_path).status(command(Verb.STATUS, {"instance": "never"}), lambda _: None)
    assert (found["running"], found["healthy"]) == (False, False)
    assert await host(tmp_path).detach(command(Verb.DETACH, {"instance": "never"}), lambda _: None) == {"found": False}


def ordering(folder: Path) -> Callable[..., Answer]:
    """What the engine gives the driver, without the broker between: a fresh host object for each order."""

    def tell(verb: Verb, arguments: Mapping[str, Any], seconds: float, progress: Callable[[str], None]) -> Answer:
        async def act() -> Answer:
            made = host(folder)
            actions = {
                Verb.ATTACH: made.attach,
                Verb.STATUS: made.status,
                Verb.QUIESCE: made.quiesce,
                Verb.DETACH: made.detach,
            }
            try:
                result = await actions[verb](command(verb, arguments), lambda told: progress(told["message"]))
            except DrengineError as error:
                return Answer(id="x", done=True, ok=False, code=error.kind.id, message=error.message)
            return Answer(id="x", done=True, ok=True, result=dict(result))

        return asyncio.run(act())

    return tell


@needs_root
class TestContract(LaunchDriverContract):
    @pytest.fixture(autouse=True)
    def disk(self, served: str, tmp_path: Path) -> None:
        self.uri, self.folder = served, tmp_path

    def driver(self) -> StandbyDriver:
        return StandbyDriver()

    def request(self, directory: Path) -> LaunchRequest:
        return LaunchRequest(
            instance=f"t{secrets.token_hex(4)}",
            run="run-1",
            source="shop",
            disks=(Disk("data", BYTES["ext4"], self.uri),),
            isolated=False,
            settings={"mounts": [{"volume": "data", "at": str(self.folder / directory.name)}]},
            directory=directory,
            host="recovery-1",
            timeout_seconds=20.0,
            order=ordering(self.folder / "state"),
        )

    def failing(self, directory: Path) -> LaunchRequest:
        return replace(self.request(directory), settings={"health": ["false"]}, timeout_seconds=0.5)
