"""Makes the sample stores under tests/store/samples: run it when the format gets a new version, beside the old ones.

``python -m tests.store.make_samples DIRECTORY`` writes ``v2-good`` (2 is the segments' version) and its damaged
relatives, each named by defect; with ``--encrypted`` the same of version 3, under the key of tests/store/harness.py.
Everything in them is fixed (content, clock, salts, identity): a second run gives the same bytes but SQLite's.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from unittest import mock

import msgspec
import xxhash

from drengine.store.care.retention import RetentionPolicy
from drengine.store.catalogue.sqlite import CATALOGUE_NAME
from drengine.store.identity import IDENTITY_NAME
from drengine.store.options import StoreOptions
from drengine.store.segments.format import ENCRYPTED_VERSION, PLAIN_VERSION
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.store.harness import Source, crash, encrypted

SAMPLE_OPTIONS = StoreOptions(segment_bytes_max=1200)
VERSION, ENCRYPTED = f"v{PLAIN_VERSION}", f"v{ENCRYPTED_VERSION}"


def contents() -> tuple[bytes, bytes]:
    """What every sample's newest point shows: volume 1 and volume 2."""
    root = bytearray(8000)
    root[100:400] = random.Random(3).randbytes(300)
    root[5000:5960] = b"compressible" * 80
    return bytes(root), b"\0" * 1000 + b"end"


def make(directory: Path, version: str = VERSION) -> None:
    """Write every sample of a version into a directory."""
    dice = random.Random(1)
    with (
        mock.patch("secrets.randbits", dice.getrandbits),
        mock.patch("secrets.token_bytes", dice.randbytes),
    ):
        _good(directory / f"{version}-good")
    relatives = {
        "torn-tail": lambda path: _append(path, _segments(path)[-1], b"DRec torn"),
        "flipped-bit": lambda path: _flip(_segments(path)[2], 600 if version == VERSION else 800),
        "missing-segment": lambda path: _segments(path)[2].unlink(),
        "zero-length-segment": lambda path: _segments(path)[2].write_bytes(b""),
        "lost-catalogue": lambda path: (path / CATALOGUE_NAME).unlink(),
        "rotten-catalogue": lambda path: _flip(path / CATALOGUE_NAME, 100),
        "rotten-identity": lambda path: _flip(path / IDENTITY_NAME, 10),
        "newer-version": _newer,
    }
    for name, damage in relatives.items():
        path = directory / f"{version}-{name}"
        shutil.copytree(directory / f"{version}-good", path)
        damage(path)


def _good(path: Path) -> None:
    clock = ManualClock()
    with Store.create(path, options=SAMPLE_OPTIONS, clock=clock) as store:
        source = Source(store, root=8000, data=1003)
        for number in range(3):
            source.write(1, 100, random.Random(number).randbytes(900), level=None)
            source.write(1, 600, 7400)
            source.cut(f"early {number}")
            source.commit()
            clock.advance(3600)
        root, data = contents()
        source.write(1, 100, root[100:400], level=None)
        source.write(1, 400, 4600)
        source.write(1, 5000, root[5000:5960])
        source.write(2, 1000, data[1000:])
        source.cut("newest")
        source.commit()
        store.pin(source.point("1-4"), "kept for the sample")
        store.retain(RetentionPolicy(keep_all_seconds=10, steps=()), clock.now_ns())
        store.compact()
        crash(source.writer)
    shutil.rmtree(path / "locks")
    (path / "locks").mkdir()
    (path / "locks" / ".keep").touch()


def _segments(path: Path) -> list[Path]:
    return sorted(path.glob("segments/**/*.seg"))


def _append(_: Path, file: Path, data: bytes) -> None:
    with file.open("ab") as opened:
        opened.write(data)


def _flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def _newer(path: Path) -> None:
    line = (path / IDENTITY_NAME).read_bytes().split(b"\n")[0]
    newer = msgspec.json.encode(msgspec.json.decode(line) | {"version": 2})
    checksum = xxhash.xxh3_64_hexdigest(newer).encode()
    (path / IDENTITY_NAME).write_bytes(newer + b"\n" + checksum + b"\n")


if __name__ == "__main__":
    if sys.argv[2:] == ["--encrypted"]:
        with encrypted():
            make(Path(sys.argv[1]), ENCRYPTED)
    else:
        make(Path(sys.argv[1]))
