"""Debian 12 as it stands on a physical server: SATA names, a static address, an initramfs without virtio and NVMe.

A tree is made by mmdebstrap, once; from it come disks, each once. All lie in a cache, by what they were made from: what
changes here is made anew. The disks' boot loader is installed by the tree's own programs in a helper machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from drengine.conversion.helper import Helper, HelperDisk, HelperOptions
from tests.images.serving import served

CACHE = Path(os.environ.get("DRENGINE_TEST_IMAGES", "/var/cache/drengine-test-images"))
MIRROR = "http://deb.debian.org/debian"
DISK_BYTES = 1280 << 20
FIRST_BYTES = 64 << 20
INTERFACE, ADDRESS = "enp0s31f6", "192.168.50.10"
BUILD_SECONDS = 900.0
PROGRAMS = ("mmdebstrap", "mke2fs", "sfdisk", "qemu-nbd", "qemu-system-x86_64", "busybox")

_PACKAGES = (
    *("linux-image-amd64", "initramfs-tools", "zstd", "kmod", "systemd-sysv", "udev", "ifupdown", "iproute2"),
    *("grub2-common", "grub-pc-bin", "grub-efi-amd64-bin", "lvm2", "netbase"),
)
_LEFT_OUT = (
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"),
    *(
        f"/lib/modules/*/kernel/{each}/*"
        for each in (
            *("sound", "drivers/gpu", "drivers/media", "drivers/net/wireless", "drivers/infiniband", "drivers/staging"),
            *(
                "drivers/iio",
                "drivers/isdn",
                "drivers/input",
                "drivers/hwmon",
                "drivers/usb",
                "drivers/mtd",
                "net/sctp",
            ),
            *("drivers/net/ethernet/mellanox", "drivers/net/ethernet/broadcom", "drivers/net/ethernet/qlogic"),
            *("drivers/net/ethernet/chelsio", "drivers/net/ethernet/netronome", "drivers/net/can", "net/wireless"),
            *(
                "fs/ceph",
                "fs/smb",
                "fs/ocfs2",
                "fs/gfs2",
                "fs/nfsd",
                "fs/bcachefs",
                "drivers/net/usb",
                "drivers/crypto",
            ),
        )
    ),
)
_CONFIGURE = r"""
set -e
root=$1
cat > $root/etc/fstab <<'END'
# made by the installer
/dev/sda2 / ext4 errors=remount-ro 0 1
END
cat > $root/etc/network/interfaces <<'END'
auto lo
iface lo inet loopback

auto enp0s31f6
iface enp0s31f6 inet static
    address 192.168.50.10/24
    gateway 192.168.50.1
END
echo 'MODULES=list' > $root/etc/initramfs-tools/conf.d/installer
printf 'ahci\nsd_mod\next4\n' >> $root/etc/initramfs-tools/modules
cat > $root/etc/default/grub <<'END'
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX=""
GRUB_DISABLE_LINUX_UUID=true
END
printf 'Debian at \\4\n\n' > $root/etc/issue
echo shop > $root/etc/hostname
echo root:drengine | chroot $root chpasswd
chroot $root systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service dpkg-db-backup.timer
rm -rf $root/var/lib/apt/lists/* $root/var/cache/apt/*.bin $root/var/cache/debconf/*-old
# On the machine that builds, the root of a chroot is no device: what is asked for is what the list says.
chroot $root update-initramfs -u -k all
"""
_DRACUT_PACKAGES = tuple("dracut" if each == "initramfs-tools" else each for each in _PACKAGES if each != "lvm2")
# systemd waits 90 s for the serial line's device. Emulated with a fifth of a processor, udev took longer: no login.
_PATIENCE = r"""
mkdir -p $root/etc/systemd/system.conf.d
printf '[Manager]\nDefaultDeviceTimeoutSec=15min\n' > $root/etc/systemd/system.conf.d/emulated.conf
"""
_DRACUT = (
    _CONFIGURE[: _CONFIGURE.index("echo 'MODULES=list'")]
    + _CONFIGURE[_CONFIGURE.index("cat > $root/etc/default/grub") : _CONFIGURE.index("# On the machine")]
    + _PATIENCE
    + r"""
version=$(ls $root/lib/modules)
echo 'hostonly="yes"' > $root/etc/dracut.conf.d/installer.conf
mkdir -p $root/boot/loader/entries
echo "options root=/dev/sda2 ro" > $root/boot/loader/entries/debian.conf
chroot $root dracut --force --no-hostonly --drivers "ahci sd_mod ext4" /boot/initrd.img-$version $version
"""
)
_GRUB = r"""
set -e
mkdir -p /guest; mount /dev/vda2 /guest
for each in dev proc sys; do mount --bind /$each /guest/$each; done
{firmware}
PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot /guest update-grub
sed -i 's,root=/dev/vda,root=/dev/sda,' /guest/boot/grub/grub.cfg
grep -q 'root=/dev/sda2' /guest/boot/grub/grub.cfg
for each in boot/efi dev proc sys ''; do umount /guest/$each 2>/dev/null || true; done
sync; ! grep -q ' /guest' /proc/mounts
"""
_BIOS = "PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot /guest grub-install --target=i386-pc /dev/vda"
_UEFI = r"""
mkdosfs -F 32 -n EFI /dev/vda1 || mkdosfs /dev/vda1
mkdir -p /guest/boot/efi; mount /dev/vda1 /guest/boot/efi
echo '/dev/sda1 /boot/efi vfat umask=0077 0 1' >> /guest/etc/fstab
PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot /guest grub-install --target=x86_64-efi --no-nvram --bootloader-id=debian
[ -e /guest/boot/efi/EFI/debian/grubx64.efi ] && [ ! -e /guest/boot/efi/EFI/BOOT ]
"""
_LVM = r"""
set -e
load lvm
config="activation{udev_sync=0 udev_rules=0} devices{use_devicesfile=0} backup{backup=0 archive=0}"
lvm pvcreate --config "$config" /dev/vda1
lvm vgcreate --config "$config" vg /dev/vda1
lvm lvcreate --config "$config" -Zn -Wn -l 100%FREE -n root vg
lvm vgscan --config "$config" --mknodes
dd if=/dev/vdb2 of=/dev/mapper/vg-root bs=4M
mkdir -p /guest; mount /dev/mapper/vg-root /guest
for each in dev proc sys; do mount --bind /$each /guest/$each; done
echo '/dev/mapper/vg-root / ext4 errors=remount-ro 0 1' > /guest/etc/fstab
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
chroot /guest grub-install --target=i386-pc /dev/vda
chroot /guest update-grub
grep -q 'root=/dev/mapper/vg-root' /guest/boot/grub/grub.cfg
for each in dev proc sys ''; do /bin/umount /guest/$each; done
sync; ! grep -q ' /guest' /proc/mounts
lvm vgchange --config "$config" -an vg
sync
"""
_TABLES = {
    "bios": "label: dos\nstart=2048, size={first}, type=82\ntype=83, bootable\n",
    "uefi": "label: gpt\nstart=2048, size={first}, type=U\ntype=L\n",
}


def debian_disk(firmware: str, *, dracut: bool = False) -> Path:
    """A disk that boots by `bios` (MBR) or `uefi` (GPT) on the server that it was made on: not to be written.

    /dev/sda1 is swap space or the EFI system partition, /dev/sda2 the root. With `dracut` that makes the initramfs,
    for its host only as Red Hat's does, and an entry of the boot loader specification lies in /boot/loader.
    """
    for program in PROGRAMS:
        if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
            pytest.skip(f"no {program}")
    if os.geteuid() != 0:
        pytest.skip("a Debian image is made by root")
    packages, configure = (_DRACUT_PACKAGES, _DRACUT) if dracut else (_PACKAGES, _CONFIGURE)
    name = "dracut" if dracut else "debian"
    kind = "dracut-tree" if dracut else "tree"
    key = _key(packages, _LEFT_OUT, configure)
    tree = _made(kind, ".tar", key, lambda place: _make_tree(place, packages, configure))
    what = _key(tree.name, _TABLES[firmware], _GRUB, _BIOS, _UEFI, DISK_BYTES, FIRST_BYTES)
    return _made(f"{name}-{firmware}", ".raw", what, lambda place: _make_disk(place, tree, firmware))


def debian_on_lvm() -> Path:
    """The same with its root on a logical volume, booted by BIOS: not to be written."""
    if shutil.which("lvm", path="/usr/sbin:/sbin") is None:
        pytest.skip("no lvm")
    plain = debian_disk("bios")
    return _made("lvm-bios", ".raw", _key(plain.name, _LVM), lambda place: _onto_lvm(place, plain))


def _onto_lvm(place: Path, plain: Path) -> None:
    with place.open("wb") as file:
        file.truncate(DISK_BYTES + (64 << 20))
    _run("sfdisk", "-q", str(place), given="label: dos\nstart=2048, type=8e\n")
    with tempfile.TemporaryDirectory(prefix="drengine-image-", dir=CACHE) as directory:
        made = Path(directory)
        shutil.copyfile(plain, made / "plain.raw")
        with served(place, made / "lvm.sock") as uri, served(made / "plain.raw", made / "plain.sock") as other:
            disks = [HelperDisk("lvm", uri), HelperDisk("plain", other)]
            _ordered(made, "image-lvm", disks, _LVM)


def _ordered(directory: Path, name: str, disks: list[HelperDisk], script: str) -> None:
    end = time.monotonic() + BUILD_SECONDS
    with Helper(directory / "helper", name, disks, HelperOptions(), end) as helper:
        answer = helper.order(script, BUILD_SECONDS)
    if not answer.ok:
        raise AssertionError(f"no boot loader: {answer.errors} {answer.text}")


def _made(name: str, suffix: str, key: str, make: Callable[[Path], None]) -> Path:
    """From the cache, or made and kept there; those of other keys are given up."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / f"{name}.lock"):
        found = CACHE / f"{name}-{key}{suffix}"
        if not found.exists():
            for old in CACHE.glob(f"{name}-*{suffix}"):
                old.unlink()
            making = CACHE / f"{name}.making"
            making.unlink(missing_ok=True)
            make(making)
            making.rename(found)
        return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _make_tree(place: Path, packages: Sequence[str], configure: str) -> None:
    with tempfile.TemporaryDirectory(prefix="drengine-image-") as directory:
        hook = Path(directory) / "configure"
        hook.write_text(f"#!/bin/sh\n{configure}")
        hook.chmod(0o755)
        argv = ["mmdebstrap", "--variant=minbase", "--format=tar", f"--include={','.join(packages)}"]
        argv += ['--aptopt=APT::Install-Recommends "false"', "--aptopt=Acquire::Retries 3"]
        argv += [f"--dpkgopt=path-exclude={each}" for each in _LEFT_OUT]
        argv += [f"--customize-hook={hook}", "bookworm", str(place), MIRROR]
        made = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if made.returncode:
        place.unlink(missing_ok=True)
        pytest.skip(f"no Debian image can be made here (is the mirror reachable?): {made.stderr[-400:]}")


def _make_disk(place: Path, tree: Path, firmware: str) -> None:
    with place.open("wb") as file:
        file.truncate(DISK_BYTES)
    table = _TABLES[firmware].format(first=FIRST_BYTES // 512)
    _run("sfdisk", "-q", str(place), given=table)
    start = (1 << 20) + FIRST_BYTES
    blocks = (DISK_BYTES - start - (1 << 20)) // 4096
    with tempfile.TemporaryDirectory(prefix="drengine-image-", dir=CACHE) as directory:
        _run("tar", "-xf", str(tree), "-C", directory)
        features = ("-t", "ext4", "-b", "4096", "-L", "root", "-d", directory)
        _run("mke2fs", "-q", "-F", *features, "-E", f"offset={start},lazy_itable_init=1", str(place), str(blocks))
        script = _GRUB.replace("{firmware}", _UEFI if firmware == "uefi" else _BIOS)
        with served(place, Path(directory) / "disk.sock") as uri:
            _ordered(Path(directory), f"image-{firmware}", [HelperDisk("root", uri)], script)


def _run(*argv: str, given: str = "") -> None:
    path = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run(argv, input=given, text=True, check=True, env=os.environ | path, stdout=subprocess.DEVNULL)
