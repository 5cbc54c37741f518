"""A live system, as an administrator has one on a stick: Debian's kernel, busybox, CPython, the one-file agent.

It has no disk of its own: everything is in its initial RAM disk. Its network is QEMU's, in which this machine's
loopback is 10.0.2.2.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.system.guest import kernel

HOST = "10.0.2.2"
"""This machine, as the guest sees it."""
NETWORK = "10.0.2.0/24"
PYTHON = Path("/usr/bin/python3.11")
LIBRARY = Path("/usr/lib/python3.11")
_NOT_NEEDED = {"test", "idlelib", "lib2to3", "__pycache__", "tkinter", "ensurepip", "pydoc_data", "turtledemo"}
_MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
)
"""In the order in which they need each other."""
_OLD_LIBC = ("libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libgcc_s.so.1")
"""What extensions of wheels ask for that were built on older systems; every distribution has them."""
_APPLETS = ("sh", "mount", "insmod", "ifconfig", "ls", "grep", "sync", "sleep", "echo", "uname", "mkdir")
_INIT = """#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
for each in {modules}; do insmod /modules/$each.ko; done
ifconfig lo 127.0.0.1; ifconfig eth0 10.0.2.15 netmask 255.255.255.0
echo "LIVE: the disk has $(ls /sys/block/vda | grep -c '^vda') partitions"
{command}
echo "LIVE: it ended with $?, and the disk has $(ls /sys/block/vda | grep -c '^vda') partitions"
sync
echo b >/proc/sysrq-trigger
sleep 600
"""


def missing_for_live() -> str:
    """What a live system can't be made without; empty when all is there."""
    wanted = {
        "qemu-system-x86_64": shutil.which("qemu-system-x86_64"),
        "busybox": shutil.which("busybox"),
        "cpio": shutil.which("cpio"),
        str(PYTHON): PYTHON.exists(),
        "a Debian kernel in /boot": kernel(),
        "its modules": module_folder().is_dir(),
    }
    return ", ".join(name for name, there in wanted.items() if not there)


def make_live(path: Path, work: Path, agent: Path, identity: Path, command: str) -> None:
    """Its initial RAM disk, in which `command` is run once.

    Args:
        path: of the image.
        work: an empty folder, which is filled.
        agent: the one-file agent: /drengine-agent there.
        identity: certificate, key and CA: /identity there.
        command: of the shell.
    """
    make_system(work, agent, identity)
    modules = " ".join(Path(each).name for each in _MODULES)
    (work / "init").write_text(_INIT.format(modules=modules, command=command))
    pack(path, work)


def make_system(
    work: Path, agent: Path, identity: Path, *, modules: Sequence[str] = _MODULES, programs: Sequence[Path] = ()
) -> None:
    """The files of such a system, but for /init.

    Args:
        work, agent, identity: as of `make_live`.
        modules: of the kernel, without `.ko`, as `insmod` takes them from /modules.
        programs: of this machine that are there too, in the same places.
    """
    for folder in ("bin", "dev", "proc", "sys", "tmp", "root", "modules", "usr/bin", "usr/lib"):
        (work / folder).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", work / "bin/busybox")
    for name in _APPLETS:
        (work / "bin" / name).symlink_to("busybox")
    for each in modules:
        shutil.copy(module_folder() / f"{each}.ko", work / "modules" / f"{Path(each).name}.ko")
    shutil.copytree(
        LIBRARY, work / LIBRARY.relative_to("/"), symlinks=True, ignore=lambda _, names: _NOT_NEEDED & set(names)
    )
    libraries = _libraries(PYTHON, *programs, *(LIBRARY / "lib-dynload").glob("*.so"))
    libc = next(each.parent for each in libraries if each.name == "libc.so.6")
    for file in (PYTHON, *programs, *libraries, *(libc / name for name in _OLD_LIBC)):
        place = work / file.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    shutil.copy(agent, work / "drengine-agent")
    shutil.copytree(identity, work / "identity")


def pack(path: Path, work: Path) -> None:
    """Make a system's initial RAM disk, whose /init is written."""
    (work / "init").chmod(0o755)
    names = "\0".join(str(each.relative_to(work)) for each in sorted(work.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--null", "--create", "--format=newc", "--quiet"],
        input=names.encode(),
        cwd=work,
        check=True,
        capture_output=True,
    )
    path.write_bytes(gzip.compress(packed.stdout, compresslevel=1))


def boot(disk: Path, console: Path, *more: str) -> list[str]:
    """QEMU's command; it ends when the guest boots anew."""
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-machine", "q35", "-accel", "tcg", "-display", "none", "-m", "1024", "-no-reboot"),
        *("-serial", f"file:{console}"),
        *("-drive", f"file={disk},format=raw,if=none,id=disk,cache=unsafe", "-device", "virtio-blk-pci,drive=disk"),
        *more,
    ]


def boot_live(disk: Path, console: Path, image: Path) -> list[str]:
    """The same from a live system's image."""
    network = ("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
    line = "console=ttyS0 quiet panic=1 rdinit=/init"
    return boot(disk, console, "-kernel", str(kernel()), "-initrd", str(image), "-append", line, *network)


def module_folder() -> Path:
    """Of the guests' kernel."""
    found = kernel()
    return Path("/lib/modules", found.name.removeprefix("vmlinuz-"), "kernel") if found else Path("/nowhere")


def _libraries(*programs: Path) -> set[Path]:
    """What the dynamic linker would load."""
    found = set()
    for program in programs:
        done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
        words = (word for line in done.stdout.splitlines() for word in line.split())
        found |= {Path(word) for word in words if word.startswith("/") and Path(word).exists()}
    return found
