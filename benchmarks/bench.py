"""What every work is given: a folder, an image, and how much time there is."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.image import make_image
from benchmarks.site import Site, site

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Bench:
    """One run of the benchmarks.

    Attributes:
        folder: scratch space on the disk that is measured; removed at the end.
        quick: a short round, to see that everything works; its figures mean little.
        image_mib: size of the image, if not the usual one.
        target_peaks: the largest resident memory of each target that has ended, in bytes.
    """

    folder: Path
    quick: bool = False
    image_mib: int = 0
    target_peaks: list[int] = field(default_factory=list)

    @property
    def image_bytes(self) -> int:
        """Size of the image that is copied."""
        if self.image_mib:
            return self.image_mib * MIB
        return 256 * MIB if self.quick else 2 * GIB

    @property
    def has_aims(self) -> bool:
        """Whether the aims for copies, which are for the usual image, can be compared."""
        return self.image_bytes == 2 * GIB

    @property
    def rounds(self) -> int:
        """How often each contestant runs."""
        return 1 if self.quick else 3

    @cached_property
    def image(self) -> Path:
        """The image; nobody writes to it. It is in the page cache once it has been made."""
        path = self.folder / "image.img"
        make_image(path, self.image_bytes)
        return path

    def fresh(self, name: str) -> Path:
        """An empty folder of this name."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def site(self, folder: Path) -> contextlib.AbstractContextManager[Site]:
        """A site that ends with the block; what its targets took is noted."""
        return site(folder, peaks=self.target_peaks)
