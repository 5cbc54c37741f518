"""File systems that are mounted elsewhere, already, or under another device number."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from drengine.control.attach import AttachOrder, StandbyMount, StandbySettings
from drengine.model.errors import DrengineError
from drengine.model.points import PointKind
from drengine_agent.standby.workload import Workload
from tests.agent.capture.ebpf.rig import loop_device
from tests.field.ground import Ground, Pair
from tests.field.load import scatter
from tests.field.trial import trial

MIB = 1 << 20
FROZEN = 4
MAKE_EXT4 = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0")


@trial(seconds_max=150)
def a_recovery_host_touches_only_its_own_mounts(ground: Ground) -> None:
    """A place where the host has a disk mounted is refused and stays mounted; places with spaces and by links work."""
    ground.needs_kernel()
    ground.needs("nbdfuse", "fusermount3", "mkfs.ext4")
    uri = _served(ground)
    own = ground.disk("own", 32 * MIB)
    ground.run(*MAKE_EXT4, own)
    with ground.mounted(own, "taken") as taken:
        (taken / "theirs").write_text("of the host")
        for turn in range(2):
            workload = Workload(_order(uri, taken), ground.folder / f"taken-{turn}")
            refused = False
            try:
                workload.start(lambda _: None)
            except DrengineError:
                refused = True
            workload.stop()
            assert (taken / "theirs").read_text() == "of the host", "the host's own disk was unmounted"
            assert refused, "the workload came up on the host's own disk"
    real = ground.folder / "a place with spaces"
    real.mkdir()
    (ground.folder / "by-link").symlink_to(real)
    for place in (real, ground.folder / "by-link", ground.folder / "made anew/and deep"):
        workload = Workload(_order(uri, place), ground.folder / "instance")
        try:
            workload.start(lambda _: None)
            assert (place / "hello").read_text() == "from the source"
        finally:
            workload.stop()
        assert not (place / "hello").exists(), f"{place} is still mounted"


def _served(ground: Ground) -> str:
    """A branch of a point whose disk has an ext4 with a file, over NBD."""
    image, content = ground.image("data", 16 * MIB), ground.folder / "content"
    content.mkdir()
    (content / "hello").write_text("from the source")
    ground.run("mkfs.ext4", "-q", "-F", "-d", content, image)
    pair = Pair(ground, {"data": image}).start()
    pair.until_equal()
    _, told = pair.export("latest", "--writable")
    return str(told["uris"][0])


def _order(uri: str, at: Path) -> AttachOrder:
    return AttachOrder(
        instance=f"t{secrets.token_hex(4)}",
        source="shop",
        disks={"data": uri},
        settings=StandbySettings(
            mounts=[StandbyMount(volume="data", at=str(at))], health=["test", "-e", f"{at}/hello"]
        ),
        isolated=False,
        timeout_seconds=10.0,
    )


@trial(seconds_max=150)
def an_image_whose_file_system_has_another_device_number_is_the_same(ground: Ground) -> None:
    """An image on xfs, whose loop device got another number as after a reboot, goes on without a new copy."""
    ground.needs_kernel()
    ground.needs("mkfs.xfs")
    below = ground.image("below", 512 * MIB)
    place = ground.folder / "images"
    with _xfs(ground, below, place, make=True) as first:
        (place / "disk.img").write_bytes(ground.rng.randbytes(8 * MIB))
        pair = Pair(ground, {"data": place / "disk.img"}).start()
        scatter(ground, pair, "data", 50)
        pair.until_equal()
        pair.stop_agent()
    taken = ground.enter(loop_device(ground.image("taken", MIB), MIB))
    assert taken == first, f"{taken} is not {first}: the number was not free"
    with _xfs(ground, below, place) as second:
        assert second != first
        pair.start_agent()
        pair.until_continuous()
        scatter(ground, pair, "data", 50)
        pair.until_equal()
        status = pair.status()
        assert status["bytes_sent_plain"] < 4 * MIB, f"{status['bytes_sent_plain']} bytes were sent again"
        ground.measured["rescans"] = status["rescans"]
        pair.stop_agent()


@contextlib.contextmanager
def _xfs(ground: Ground, image: Path, place: Path, *, make: bool = False) -> Iterator[Path]:
    with loop_device(image, image.stat().st_size) as device:
        if make:
            ground.run("mkfs.xfs", "-q", "-f", device)
        with ground.mounted(device, place.name):
            yield device


@trial(seconds_max=150)
def what_another_mount_namespace_has_mounted_is_frozen_too(ground: Ground) -> None:
    """A disk that only a container has mounted, and writes to all the time, gets frozen points that are clean."""
    ground.needs_kernel()
    ground.needs("unshare", "mkfs.ext4", "e2fsck")
    disk = ground.disk("data", 64 * MIB)
    ground.run(*MAKE_EXT4, disk)
    cuts = {"kinds": "quiet, frozen", "frozen_after": "300ms"}
    mount = ground.folder / "inside"
    mount.mkdir()
    script = (
        'mount "$0" "$1" && cd "$1" && while :; do echo x >> log; dd if=/dev/urandom of=f bs=64k count=4 '
        "conv=fsync 2>/dev/null; done"
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(disk), str(mount)]
    container = subprocess.Popen(command, start_new_session=True)
    try:
        ground.until("it is mounted", lambda: "/inside " in Path(f"/proc/{container.pid}/mountinfo").read_text())
        pair = Pair(ground, {"data": disk}, tracker="ebpf", agent={"cuts": cuts})
        pair.start_target()
        pair.start_agent()

        def frozen() -> bool:
            kinds = [each.kind for each in pair.points()]
            return kinds.count(PointKind.FROZEN) >= ground.times(FROZEN)

        ground.until("frozen points", frozen)
        ground.measured |= {"freezes": pair.status()["freezes"]}
        for point in [each for each in pair.points() if each.kind is PointKind.FROZEN][-2:]:
            image = ground.folder / "point.img"
            image.write_bytes(pair.content("data", point))
            ground.run("e2fsck", "-fy", "-E", "journal_only", image, ok=False)
            ground.run("e2fsck", "-fn", image)
    finally:
        os.killpg(container.pid, 9)
        container.wait()
    said = (ground.folder / "agent.log").read_text()
    assert "freeze-refused" not in said, said[-1500:]
