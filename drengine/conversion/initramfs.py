"""The helper machine's initramfs: busybox, this host's blkid and (if it has one) lvm, kernel modules, our script."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

from drengine.conversion.cpio import Archive
from drengine.conversion.errors import CONVERSION_HELPER
from drengine.conversion.kernel import Kernel, modules_of
from drengine.model.errors import DrengineError
from drengine.process import run_command

SCRIPT = "helper.sh"
LDD_SECONDS = 10.0
_LOAD = b"""#!/bin/sh
while read -r name; do [ -d "/sys/module/$name" ] || insmod "/modules/$name.ko"; done <"/modules/$1.order"
"""
"""Loads a group of modules."""
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def build_initramfs(kernel: Kernel) -> bytes:
    """The archive; not compressed, which would take an emulated machine longer than to read it.

    Raises:
        DrengineError: CONVERSION_HELPER, what it needs is not on this host.
    """
    archive = Archive()
    for directory in ("dev", "proc", "sys", "run", "tmp", "etc/lvm", "guest", "look", "bin", "sbin"):
        archive.directory(directory)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", _program("busybox").read_bytes(), 0o755)
    for name, target in (("blkid", "sbin/blkid"), ("lvm", "sbin/lvm")):
        found = shutil.which(name, path=_PATH)
        if found:
            _put_with_libraries(archive, Path(found), target)
        elif name == "blkid":
            raise DrengineError(CONVERSION_HELPER, "program blkid is not on this host")
    modules, groups = modules_of(kernel)
    for name, content in modules.items():
        archive.file(f"modules/{name}.ko", content)
    for group, order in groups.items():
        archive.file(f"modules/{group}.order", "".join(f"{name}\n" for name in order).encode())
    archive.file("bin/load", _LOAD, 0o755)
    archive.file("init", (files(__package__) / SCRIPT).read_bytes(), 0o755)
    return archive.finished()


def _program(name: str) -> Path:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise DrengineError(CONVERSION_HELPER, f"program {name} is not on this host")
    return Path(found).resolve()


def _put_with_libraries(archive: Archive, program: Path, target: str) -> None:
    """A program of this host with what ldd says that it loads; for one that is linked statically that is nothing."""
    archive.file(target, program.read_bytes(), 0o755)
    for line in run_command(["ldd", str(program)], timeout_seconds=LDD_SECONDS).output.splitlines():
        words = line.split()
        paths = [word for word in words if word.startswith("/")]
        if paths:
            # The loader's line begins with the path under which the program asks for it.
            archive.file(words[0] if words[0].startswith("/") else paths[0], Path(paths[0]).read_bytes(), 0o755)
