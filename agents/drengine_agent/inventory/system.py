"""The machine and its operating system."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path
from typing import Any

from drengine_agent.inventory.texts import assignments, printable, text_of

_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_RESOLVERS = ("run/systemd/resolve/resolv.conf", "etc/resolv.conf")
_DMI = "sys/class/dmi/id"
_VENDORS = (
    ("Amazon EC2", "amazon"),
    ("QEMU", "qemu"),
    ("KVM", "kvm"),
    ("VMware", "vmware"),
    ("VirtualBox", "oracle"),
    ("innotek", "oracle"),
    ("Xen", "xen"),
    ("Microsoft Corporation Virtual Machine", "microsoft"),
    ("Google Compute Engine", "google"),
    ("OpenStack", "kvm"),
    ("Parallels", "parallels"),
    ("BHYVE", "bhyve"),
)
"""What the firmware calls itself, and the word of systemd-detect-virt."""


def system_facts(root: Path) -> dict[str, Any]:
    """Attributes of Inventory that concern the machine and its operating system."""
    release = assignments(text_of(root / "etc/os-release") or text_of(root / "usr/lib/os-release"))
    boot_mode = _boot_mode(root)
    return {
        "hostname": printable(socket.gethostname()),
        "os_id": printable(release.get("ID", "")),
        "os_like": tuple(map(printable, release.get("ID_LIKE", "").split())),
        "os_version": printable(release.get("VERSION_ID", "")),
        "os_name": printable(release.get("PRETTY_NAME", "")),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "boot_mode": boot_mode,
        "secure_boot": boot_mode == "uefi" and _is_secure(root),
        "cpus": os.cpu_count() or 0,
        "memory_bytes": _memory_bytes(root),
        "virtualization": _virtualization(root),
        "machine": printable(_machine(root)),
    }


def resolver_facts(root: Path) -> dict[str, Any]:
    """Name servers and search domains; behind systemd's own resolver, those that it asks."""
    for name in _RESOLVERS:
        servers: list[str] = []
        search: tuple[str, ...] = ()
        for line in text_of(root / name).splitlines():
            match line.split():
                case ["nameserver", address, *_]:
                    servers.append(address.partition("%")[0])
                case ["search" | "domain", *domains]:
                    search = tuple(map(printable, domains))
        if servers:
            return {"name_servers": tuple(servers), "search": search}
    return {}


def _boot_mode(root: Path) -> str:
    if (root / "sys/firmware/efi").is_dir():
        return "uefi"
    # A container has the firmware of its host, and boots by none.
    return "" if _container(root) or not (root / _DMI).is_dir() else "bios"


def _is_secure(root: Path) -> bool:
    try:
        return (root / _SECURE_BOOT).read_bytes()[4:5] == b"\1"
    except OSError:
        return False


def _memory_bytes(root: Path) -> int:
    """What the machine has; where the kernel lists no blocks of it, what it left itself."""
    memory = root / "sys/devices/system/memory"
    block = text_of(memory / "block_size_bytes")
    blocks = sum(each.name.removeprefix("memory").isdigit() for each in memory.glob("memory*"))
    if block and blocks:
        return int(block, 16) * blocks
    total = next((line for line in text_of(root / "proc/meminfo").splitlines() if line.startswith("MemTotal:")), "")
    return int(total.split()[1]) << 10 if total else 0


def _container(root: Path) -> str:
    return text_of(root / "run/systemd/container") or ("docker" if (root / ".dockerenv").exists() else "")


def _machine(root: Path) -> str:
    vendor, product = (text_of(root / _DMI / name) for name in ("sys_vendor", "product_name"))
    return product if product.startswith(vendor) else f"{vendor} {product}"


def _virtualization(root: Path) -> str:
    if container := _container(root):
        return printable(container)
    if hypervisor := text_of(root / "sys/hypervisor/type"):
        return printable(hypervisor)
    said = " ".join((_machine(root), text_of(root / _DMI / "bios_vendor")))
    known = next((word for name, word in _VENDORS if name.lower() in said.lower()), "")
    is_virtual = any(
        " hypervisor" in line
        for line in text_of(root / "proc/cpuinfo").split("\n\n")[0].splitlines()
        if line.startswith("flags")
    )
    return known or ("vm-other" if is_virtual else "none")
