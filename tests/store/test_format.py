"""docs/format.md says what the code does, and old stores stay readable."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from drengine.crypt.keyring import KEYRING_MAGIC
from drengine.model.errors import DrengineError
from drengine.model.extents import EXTENT, FRAME
from drengine.model.points import PointSelector
from drengine.store.catalogue.epoch import EPOCH_MAGIC, EPOCH_SLOT
from drengine.store.catalogue.sqlite import APPLICATION_ID, SCHEMA_VERSION
from drengine.store.rebuild.manifest import MANIFEST_MAGIC, MANIFEST_MAGIC_WITH_TAG, OLD_MAGIC, OLD_MAGIC_WITH_TAG
from drengine.store.segments import format as codec
from drengine.store.store import Store
from tests.store.harness import encrypted
from tests.store.make_samples import SAMPLE_OPTIONS, contents

SAMPLES = Path(__file__).parent / "samples"
VERSIONS = ("v1", "v2", "v3")
DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
STRUCTS = {
    "HEADER": codec.HEADER,
    "ENCRYPTION": codec.ENCRYPTION,
    "RECORD": codec.RECORD,
    "EXTENT": EXTENT,
    "FRAME": FRAME,
    "CUT_FIXED": codec.CUT_FIXED,
    "GEOMETRY_ROW": codec.GEOMETRY_ROW,
    "FOOTER": codec.FOOTER,
    "EPOCH_SLOT": EPOCH_SLOT,
}


@pytest.fixture(autouse=True)
def with_its_key(request: pytest.FixtureRequest) -> Iterator[None]:
    """Version 3 is that of encrypted segments."""
    version = getattr(request.node, "callspec", None) and request.node.callspec.params.get("version")
    with encrypted() if version in ("v3", 3) else nullcontext():
        yield


def layout(form: str) -> list[tuple[int, int]]:
    """(offset, bytes) of each field of a struct format."""
    found, at = [], 0
    for count, kind in re.findall(r"(\d*)([a-zA-Z])", form):
        size = struct.calcsize("<" + count + kind)
        if kind != "x":
            repeats = 1 if kind == "s" else int(count or 1)
            found += [(at + size // repeats * i, size // repeats) for i in range(repeats)]
        at += size
    return found


@pytest.mark.parametrize("name", STRUCTS)
def test_the_documents_tables_are_the_codes_layouts(name):
    section = re.split(r"\n#+ ", DOCUMENT.split(f"\n### {name}", 1)[1], maxsplit=1)[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \|", section, re.MULTILINE)
    assert [(int(at), int(size)) for at, size in rows] == layout(STRUCTS[name].format)


def test_the_numpy_layouts_are_the_same():
    assert codec.RECORD_DTYPE.itemsize == codec.RECORD.size
    assert codec.EXTENT_DTYPE.itemsize == EXTENT.size
    assert codec.FRAME_DTYPE.itemsize == FRAME.size


def test_the_documents_constants_are_the_codes():
    assert "`DRSEG\\r\\n\\x1a`" in DOCUMENT and codec.HEADER_MAGIC == b"DRSEG\r\n\x1a"
    assert "`DRec`" in DOCUMENT and codec.RECORD_MAGIC == b"DRec"
    assert "`DRSEAL\\x1a\\n`" in DOCUMENT and codec.FOOTER_MAGIC == b"DRSEAL\x1a\n"
    assert "`DRMAN\\x03\\r\\n`" in DOCUMENT and MANIFEST_MAGIC == b"DRMAN\x03\r\n"
    assert "`DREPOCH\\n`" in DOCUMENT and EPOCH_MAGIC == b"DREPOCH\n"
    assert "`DRMAN\\x04\\r\\n`" in DOCUMENT and MANIFEST_MAGIC_WITH_TAG == b"DRMAN\x04\r\n"
    assert "`DRMAN\\x01\\r\\n`" in DOCUMENT and OLD_MAGIC == b"DRMAN\x01\r\n"
    assert "`DRMAN\\x02\\r\\n`" in DOCUMENT and OLD_MAGIC_WITH_TAG == b"DRMAN\x02\r\n"
    assert "`DRKEYS\\x01\\n`" in DOCUMENT and KEYRING_MAGIC == b"DRKEYS\x01\n"
    assert f"0x{APPLICATION_ID:08X}" in DOCUMENT and f"user version {SCHEMA_VERSION}" in DOCUMENT
    for kind in codec.RecordType:
        assert f"{kind.value} {kind.name}" in DOCUMENT
    for role in codec.Role:
        assert f"{role.value} {role.name.lower()}" in DOCUMENT


def copy_of(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLES / name, tmp_path / name))


def newest(path: Path) -> tuple[bytes, bytes]:
    with Store.open(path, options=SAMPLE_OPTIONS) as store:
        point = store.find_point("web1", PointSelector())
        assert point.label == "newest"
        with store.view(point) as view:
            return view.read(1, 0, 8000), view.read(2, 0, 1003)


def test_every_version_ever_written_has_a_sample():
    good = sorted(path.name for path in SAMPLES.iterdir() if path.name.endswith("-good"))
    assert good == [f"{version}-good" for version in VERSIONS]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_good_sample_is_read_and_nothing_is_wrong_with_it(version, tmp_path):
    path = copy_of(f"{version}-good", tmp_path)
    assert newest(path) == contents()
    with Store.open(path, options=SAMPLE_OPTIONS) as store:
        assert not store.scrub().records_damaged
        assert store.is_encrypted == (version == "v3")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_sealed_segment_has_the_documents_bytes(version):
    data = (SAMPLES / f"v{version}-good/segments/web1/00000001/00000001.0001.seg").read_bytes()
    assert data[:8] == b"DRSEG\r\n\x1a" and data[8:12] == struct.pack("<HH", version, 120)
    assert data[40:52] == struct.pack("<III", 1, 1, 1)
    tail = struct.unpack_from("<I", data, 12)[0]
    assert data[120 + (48 if version == 3 else 0) :][:5] == b"\x04web1"
    first = 120 + tail + 8
    assert data[first : first + 5] == b"DRec\x03", "the first record is a GEOMETRY"
    assert data[-56:-48] == b"DRSEAL\x1a\n"
    records, index_offset = struct.unpack_from("<I4xQ", data, len(data) - 48)
    assert data[index_offset : index_offset + 5] == b"DRec\x03" and records >= 2


@pytest.mark.fault(1)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_sample_with_a_torn_tail_is_whole(version, tmp_path):
    assert newest(copy_of(f"{version}-torn-tail", tmp_path)) == contents()


@pytest.mark.fault(2)
@pytest.mark.fault(9)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["flipped-bit", "missing-segment", "zero-length-segment"])
def test_a_sample_with_damage_refuses_what_needs_it_and_serves_the_rest(version, name, tmp_path):
    path = copy_of(f"{version}-{name}", tmp_path)
    with Store.open(path, options=SAMPLE_OPTIONS) as store:
        assert store.scrub().records_damaged
        points = {point.label: point for point in store.points("web1")}
        assert points["newest"].damaged and not points["early 0"].damaged
        with store.view(points["early 0"]) as view:
            assert view.read(1, 600, 100) == bytes(100)
        with pytest.raises(DrengineError, match="damaged"), store.view(points["newest"]) as view:
            view.read(1, 0, 8000)


@pytest.mark.fault(3)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["lost-catalogue", "rotten-catalogue", "rotten-identity"])
def test_a_sample_that_does_not_open_is_rebuilt(version, name, tmp_path):
    path = copy_of(f"{version}-{name}", tmp_path)
    with pytest.raises(DrengineError, match=r"\[(catalogue-damaged|store-identity-damaged)\]"):
        Store.open(path)
    assert Store.rebuild(path, options=SAMPLE_OPTIONS).lost == []
    assert newest(path) == contents()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sample_of_a_newer_version_is_refused(version, tmp_path):
    with pytest.raises(DrengineError, match=r"\[store-version\]"):
        Store.open(copy_of(f"{version}-newer-version", tmp_path))
