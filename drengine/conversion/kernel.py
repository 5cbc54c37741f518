"""The helper machine's kernel: this host's own, or one that is named, with the modules that the helper loads."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from drengine.conversion.errors import CONVERSION_HELPER
from drengine.model.errors import DrengineError

BOOT, MODULES = Path("/boot"), Path("/lib/modules")
MODULE_BYTES_MAX = 64 << 20
NEEDED = ("virtio_pci", "virtio_blk", "virtio_console")
GROUPS = {
    "start": (*NEEDED, "ext4", "vfat", "nls_cp437", "nls_iso8859-1", "nls_ascii", "nls_utf8"),
    "xfs": ("xfs",),
    "btrfs": ("btrfs",),
    "lvm": ("dm-mod", "dm-snapshot", "dm-mirror", "dm-thin-pool"),
}
"""What the helper loads, as far as its kernel has it: at its start, and once a guest turns out to need it."""
_MODULE = re.compile(r"([^/]+?)\.ko(?:\.(gz|xz|zst))?$")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be booted here.

    Attributes:
        image: its file.
        modules: the directory with modules.dep.
    """

    image: Path
    modules: Path


def find_kernel(image: Path | None = None, *, boot: Path = BOOT, modules: Path = MODULES) -> Kernel:
    """The newest kernel of this host that has its modules, or that of the file `image`.

    Raises:
        DrengineError: CONVERSION_HELPER.
    """
    images = [image] if image else sorted(boot.glob("vmlinuz-*"), key=_version, reverse=True)
    for each in images:
        place = modules / each.name.removeprefix("vmlinuz-")
        if each.is_file() and (place / "modules.dep").is_file():
            return Kernel(each, place)
    looked = f"{image} has no modules in {modules}" if image else f"no kernel in {boot} has its modules in {modules}"
    raise DrengineError(CONVERSION_HELPER, looked)


def modules_of(kernel: Kernel) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """Contents of the helper's modules by name, and each group's names in the order in which they can be loaded.

    Raises:
        DrengineError: CONVERSION_HELPER, one that is needed is missing or can't be read.
    """
    builtin = {_name(line) for line in _lines(kernel.modules / "modules.builtin")}
    files, needs = {}, {}
    for line in _lines(kernel.modules / "modules.dep"):
        file, _, others = line.partition(":")
        files[_name(file)] = kernel.modules / file
        needs[_name(file)] = [_name(other) for other in reversed(others.split())]
    for name in NEEDED:
        if _plain(name) not in files and _plain(name) not in builtin:
            raise DrengineError(CONVERSION_HELPER, f"{kernel.image} has no module {name}")
    groups: dict[str, list[str]] = {}
    for group, wanted in GROUPS.items():
        order: dict[str, None] = {}
        for name in map(_plain, wanted):
            _add(name, files, needs, order)
        groups[group] = list(order)
    try:
        return {name: _content(files[name]) for order in groups.values() for name in order}, groups
    except (OSError, EOFError, ValueError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DrengineError(CONVERSION_HELPER, f"a module of {kernel.image} can't be read: {error}") from error


def _add(name: str, files: dict[str, Path], needs: dict[str, list[str]], order: dict[str, None]) -> None:
    """A module after those it needs; modules.dep names all of them, also the indirect ones."""
    if name in files and name not in order:
        for other in needs[name]:
            _add(other, files, needs, order)
        order[name] = None


def _content(file: Path) -> bytes:
    raw = file.read_bytes()
    match file.suffix:
        case ".gz":
            return gzip.decompress(raw)
        case ".xz":
            return lzma.decompress(raw)
        case ".zst":
            return zstandard.ZstdDecompressor().decompress(raw, max_output_size=MODULE_BYTES_MAX)
    return raw


def _name(file: str) -> str:
    match = _MODULE.search(file.strip())
    return _plain(match[1]) if match else ""


def _plain(name: str) -> str:
    """The kernel takes `-` and `_` in a module's name for the same."""
    return name.replace("-", "_")


def _lines(file: Path) -> Iterable[str]:
    return file.read_text().splitlines() if file.is_file() else ()


def _version(image: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", image.name))
