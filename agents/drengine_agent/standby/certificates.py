"""This host's certificate for attaching disks, under the names by which libnbd and nbd-client take it."""

from __future__ import annotations

from pathlib import Path

from drengine.nbd.client import CERTIFICATE_NAMES
from drengine.transport.files import TlsFiles


def name_for_nbd(files: TlsFiles, folder: Path) -> None:
    """Lay links to the files of a configuration into a folder: what is renewed counts from the next connection on.

    Raises:
        OSError: they can't be laid there.
    """
    folder.mkdir(exist_ok=True, mode=0o700)
    for name, file in zip(CERTIFICATE_NAMES, (files.ca, files.certificate, files.key), strict=True):
        aside = folder / f"{name}.new"
        aside.unlink(missing_ok=True)
        aside.symlink_to(file.absolute())
        aside.replace(folder / name)
