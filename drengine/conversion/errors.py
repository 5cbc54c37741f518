"""What a conversion refuses, and how it fails."""

from __future__ import annotations

from drengine.model.errors import error_kind

CONVERSION_FAILED = error_kind(
    "conversion-failed",
    174,
    "The disks could not be made to boot on the machine that the launch driver offers.",
    "The message holds the last words of the guest's own program. The point is as it was; the branch is thrown away or "
    "converted again. `launch: {convert: never}` launches it unconverted.",
)
CONVERSION_HELPER = error_kind(
    "conversion-helper",
    CONVERSION_FAILED,
    "The helper machine of a conversion could not be started or did not answer.",
    "It needs qemu-system-x86_64, busybox (static), blkid, and a kernel with its modules (/boot/vmlinuz-*, "
    "/lib/modules); on Debian `apt-get install qemu-system-x86 busybox-static util-linux linux-image-cloud-amd64`.",
    retryable=True,
)
WINDOWS_GUEST = error_kind(
    "conversion-windows",
    CONVERSION_FAILED,
    "The disks hold Windows, which is not converted.",
    "Give the machine the hardware that the source had (`disk_bus: sata`), or install the drivers on the source while "
    "it lives, and write `launch: {convert: never}`.",
)
UNKNOWN_GUEST = error_kind(
    "conversion-unknown-system",
    CONVERSION_FAILED,
    "On the disks no operating system was found that can be converted.",
    "Debian, Ubuntu, and those of the family of Red Hat are. For others write `launch: {convert: never}` and prepare "
    "the source itself.",
)
ENCRYPTED_GUEST = error_kind(
    "conversion-encrypted-root",
    CONVERSION_FAILED,
    "The root file system is encrypted, so that nothing in it can be changed without its key.",
    "Prepare the source itself (drivers in its initramfs, names by UUID), and write `launch: {convert: never}`.",
)
NO_BOOT = error_kind(
    "conversion-no-boot",
    CONVERSION_FAILED,
    "The guest's kernel or its /boot is missing, or lies on a disk that is not replicated.",
    "Replicate the disk with /boot and its EFI system partition as well; look at `drengine inventory SOURCE`.",
)
NO_ROOM = error_kind(
    "conversion-no-room",
    CONVERSION_FAILED,
    "A file system of the guest is too full for a new initramfs.",
    "Remove old kernels on the source, or give its file system more room; later recovery points can be converted.",
)
NO_INITRAMFS_TOOL = error_kind(
    "conversion-no-initramfs-tool",
    CONVERSION_FAILED,
    "The guest has neither initramfs-tools nor dracut, so its initramfs can't be given other drivers.",
    "Install one of them on the source; later recovery points can be converted.",
)
WRONG_FIRMWARE = error_kind(
    "conversion-firmware",
    CONVERSION_FAILED,
    "The disks boot by other firmware than the machine has; BIOS is not turned into UEFI, nor UEFI into BIOS.",
    "Choose the launch driver's firmware after the source's (`firmware` of driver qemu, the AMI's boot mode of EC2).",
)
REFUSALS = frozenset(
    (WINDOWS_GUEST, UNKNOWN_GUEST, ENCRYPTED_GUEST, NO_BOOT, NO_ROOM, NO_INITRAMFS_TOOL, WRONG_FIRMWARE)
)
"""Those that come before the first change: the disks are as they were."""
