"""Which drivers the guest's initramfs must hold, and how its own tools are told."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from drengine.conversion.network.named import HEADER
from drengine.model.hardware import Machine

DRIVERS = (
    *("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "nvme", "ena", "xen_blkfront", "xen_netfront"),
    *("sd_mod", "ahci"),
)
"""What any machine of ours, of EC2 or of a hypervisor may have; as far as the guest's kernel has them."""
_NEEDED = {
    "virtio": ("virtio_pci", "virtio_blk"),
    "nvme": ("nvme",),
    "scsi": ("virtio_pci", "virtio_scsi", "sd_mod"),
    "sata": ("ahci", "sd_mod"),
    "xen": ("xen_blkfront",),
}
"""Without which the root file system isn't found."""
INITRAMFS_TOOLS_LIST = "/etc/initramfs-tools/modules"
INITRAMFS_TOOLS_SETTING = "/etc/initramfs-tools/conf.d/zz-drengine"
DRACUT_SETTING = "/etc/dracut.conf.d/drengine.conf"
_MODULES = re.compile(r"^\s*MODULES=[\"']?(\w+)", re.MULTILINE)
_DISK_DRIVERS = re.compile(r"/kernel/drivers/(?:ata|scsi|block|nvme|md|message|virtio|usb/storage)/")


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel that is installed in the guest.

    Attributes:
        version: as in /lib/modules.
        initramfs: its file; empty: none was found.
        modules: that it has, built in ones too; `_` for `-`.
        held: paths of the modules in its initramfs.
        builtin: those that need no initramfs.
    """

    version: str
    initramfs: str
    modules: frozenset[str]
    builtin: frozenset[str]
    held: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The drivers that its initramfs is to hold."""
        return tuple(name for name in DRIVERS if name in self.modules - self.builtin)

    def missing(self) -> tuple[str, ...]:
        """Those of them that it does not hold."""
        held = {module_name(path) for path in self.held}
        return tuple(name for name in self.wanted if name not in held)

    def cannot(self, machine: Machine) -> tuple[str, ...]:
        """Drivers without which it can't start on a machine, and which it does not have."""
        return tuple(name for name in _NEEDED.get(machine.disk_bus, ()) if name not in self.modules | self.builtin)


def module_name(path: str) -> str:
    """`kernel/drivers/block/xen-blkfront.ko.xz` -> `xen_blkfront`."""
    return re.sub(r"\.ko(\.\w+)?$", "", path.rpartition("/")[2]).replace("-", "_")


def initramfs_tools_files(before: Mapping[str, str], kernels: Iterable[GuestKernel]) -> Mapping[str, str]:
    """Files of initramfs-tools: `before` holds those under /etc/initramfs-tools.

    With `MODULES=dep` the machine that builds is asked which drivers it needs. That is the helper, so `most` takes its
    place.
    """
    text = before.get(INITRAMFS_TOOLS_LIST, "")
    named = {line.split()[0].replace("-", "_") for line in text.splitlines() if line.split()}
    new = [name for name in _union(kernels) if name not in named]
    made = {}
    if new:
        made[INITRAMFS_TOOLS_LIST] = _ended(text) + HEADER + "".join(f"{name}\n" for name in new)
    # The files of conf.d are read after the main one, by their names.
    order = sorted(before, key=lambda path: ("/conf.d/" in path, path))
    chosen = [
        match[1]
        for path in order
        if "/conf.d/" in path or path.endswith(".conf")
        for match in _MODULES.finditer(before[path])
    ]
    if chosen and chosen[-1] == "dep":
        made[INITRAMFS_TOOLS_SETTING] = f"{HEADER}MODULES=most\n"
    return made


def dracut_files(kernels: Sequence[GuestKernel]) -> Mapping[str, str]:
    """dracut's setting. In host-only mode it leaves out what the helper does not have: the old disks' drivers stay."""
    old = {module_name(path) for each in kernels for path in each.held if _DISK_DRIVERS.search(path)}
    names = [*_union(kernels), *sorted(old - set(DRIVERS))]
    return {DRACUT_SETTING: f'{HEADER}add_drivers+=" {" ".join(names)} "\n'}


def initramfs_file(tool: str, kernel: GuestKernel) -> str:
    """Where a kernel's initramfs is, or will be."""
    made = f"/boot/initramfs-{kernel.version}.img" if tool == "dracut" else f"/boot/initrd.img-{kernel.version}"
    return kernel.initramfs or made


def rebuild_command(tool: str, kernel: GuestKernel) -> list[str]:
    """How the guest's tool makes a kernel's initramfs anew."""
    if tool == "dracut":
        return ["dracut", "--force", "--no-hostonly-cmdline", "--kver", kernel.version, initramfs_file(tool, kernel)]
    return ["update-initramfs", "-u" if kernel.initramfs else "-c", "-k", kernel.version]


def _union(kernels: Iterable[GuestKernel]) -> list[str]:
    wanted: Collection[str] = {name for each in kernels for name in each.wanted}
    return [name for name in DRIVERS if name in wanted]


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"
