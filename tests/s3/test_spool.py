"""The spool finds its files by their names."""

from __future__ import annotations

from pathlib import Path

from drengine.store.blobs.s3.spool import Spool, Spooled


def test_files_are_found_by_prefix_and_by_exactly_their_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.files("") == spool.of_name("a/1.seg") == []
    files = [Spooled("a/1.seg", "0" * 16), Spooled("a/1.seg", "1" * 16), Spooled("a/1.seg.x", "2" * 16)]
    for file in files:
        spool.create(*file).close()
    assert spool.files("a/") == spool.files("a/1.seg") == files
    assert spool.of_name("a/1.seg") == files[:2]
    assert spool.of_name("a/1.seg.x") == files[2:]
    assert spool.of_name("a/1") == []
    spool.delete(*files[0])
    assert spool.of_name("a/1.seg") == files[1:2]
