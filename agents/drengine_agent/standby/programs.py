"""The system's programs that a recovery host runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

FUSE = "needed for disks that are attached by `fuse`, where the kernel has no NBD driver"
KERNEL = "needed for disks that are attached by `kernel`"
ISCSI = "needed for disks that are attached by `iscsi`"
PROGRAMS: Mapping[str, str] = {
    "nbdfuse": f"{FUSE} (Debian: apt install libnbd-bin)",
    "fusermount3": f"{FUSE} (Debian: apt install fuse3)",
    "losetup": FUSE,
    "nbd-client": f"{KERNEL} (Debian: apt install nbd-client)",
    "iscsiadm": f"{ISCSI} (Debian: apt install open-iscsi)",
    "mount": "mounts disks",
    "umount": "unmounts disks",
    "ip": "makes the network of an isolated drill (Debian: apt install iproute2)",
    "dnsmasq": "answers names and DHCP in a drill with `network: bubble` (Debian: apt install dnsmasq-base)",
    "runuser": "runs commands of an isolated drill as a user",
}
"""What for, by program."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing_programs() -> dict[str, str]:
    """Those that are not on this host, with what they are for."""
    return {name: use for name, use in PROGRAMS.items() if shutil.which(name, path=_PATH) is None}
