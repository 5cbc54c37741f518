"""How each type of field is written and read. Frames are lists of these, and so are the tables in docs/protocol.md."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from drengine.model.errors import DrengineError
from drengine.model.extents import BATCH_EXTENTS_MAX, BATCH_FRAMES_MAX, EXTENT, FRAME, OFFSET_MAX
from drengine.model.inventory import (
    DOCUMENT_BYTES_MAX,
    ENTRIES_MAX,
    BadInventory,
    Inventory,
    pack_inventory,
    parse_inventory,
)
from drengine.model.inventory import TEXT_BYTES_MAX as INVENTORY_TEXT_BYTES_MAX
from drengine.model.names import check_name
from drengine.model.points import Mark, VolumeGeometry
from drengine.wire.events import Endpoint, MetricSample, Purpose, Span

NAME_BYTES_MAX = 63
TEXT_BYTES_MAX = 1024
IDENTITY_BYTES_MAX = 255
VOLUMES_MAX = 1024
ABILITIES_MAX = 32
DIGESTS_MAX = 4096
SPANS_MAX = 4096
SAMPLES_MAX = 1000
SAMPLES_BYTES_MAX = 64 << 10
"""Of all samples of a report together; a target keeps those of each source in memory."""
METRIC_NAME_BYTES_MAX = 128
LABELS_MAX = 8
LABEL_BYTES_MAX = 255
DIGEST_BYTES = 16
ENDPOINTS_MAX = 8
HOST_BYTES_MAX = 255

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_MARK = struct.Struct("<16sQ")
_VOLUME = struct.Struct("<IQ")
_SPAN = struct.Struct("<IQQ")
_ERRAND = struct.Struct("<BIQ")
_U8 = struct.Struct("<B")
_F64 = struct.Struct("<d")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9A-Fa-f:.]+", re.ASCII)
_METRIC_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


class FieldError(ValueError):
    """A field does not decode, or its value is not allowed."""


class FieldReader:
    """Takes fields off the front of a body."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next fixed fields."""
        return layout.unpack(self.take_bytes(layout.size))

    def take_bytes(self, length: int) -> bytes:
        """The next bytes.

        Raises:
            FieldError: the body has fewer.
        """
        end = self._at + length
        if end > len(self._data):
            raise FieldError("the body is too short")
        taken = bytes(self._data[self._at : end])
        self._at = end
        return taken

    @property
    def is_at_end(self) -> bool:
        """Whether everything has been taken."""
        return self._at == len(self._data)

    def end(self) -> None:
        """All must have been taken.

        Raises:
            FieldError: something is left over.
        """
        if self._at != len(self._data):
            raise FieldError(f"{len(self._data) - self._at} bytes are left over")


@dataclass(frozen=True)
class FieldType:
    """A type of field.

    Attributes:
        text: what the document says of its bytes.
        bytes_min, bytes_max: its possible size.
        write: from the value; need not judge it, because the sender reads back what was written.
        read: to the value; raises FieldError for anything that is not allowed.
    """

    text: str
    bytes_min: int
    bytes_max: int
    write: Callable[[Any], bytes]
    read: Callable[[FieldReader], Any]


def integer(code: str, low: int, high: int, text: str) -> FieldType:
    """An unsigned little-endian integer from `low` to `high`."""
    layout = struct.Struct("<" + code)

    def read(reader: FieldReader) -> int:
        (value,) = layout.unpack(reader.take_bytes(layout.size))
        if not low <= value <= high:
            raise FieldError(f"{value} is not between {low} and {high}")
        return int(value)

    return FieldType(text, layout.size, layout.size, layout.pack, read)


def one_of(code: str, numbers: Mapping[Any, int], text: str) -> FieldType:
    """An integer that stands for one of a few values."""
    layout = struct.Struct("<" + code)
    values = {number: value for value, number in numbers.items()}

    def read(reader: FieldReader) -> Any:
        (number,) = reader.take(layout)
        if number not in values:
            raise FieldError(f"{number} is not one of {sorted(values)}")
        return values[number]

    return FieldType(text, layout.size, layout.size, lambda value: layout.pack(numbers[value]), read)


def raw(length: int) -> FieldType:
    """So many bytes as they are."""

    def write(value: bytes) -> bytes:
        if len(value) != length:
            raise FieldError(f"{len(value)} bytes are not {length}")
        return value

    return FieldType(f"{length} bytes", length, length, write, lambda reader: reader.take_bytes(length))


def text(bytes_max: int) -> FieldType:
    """Printable UTF-8 text, at most so many bytes."""
    return FieldType(
        f"text: u16 length (at most {bytes_max}), printable UTF-8",
        2,
        2 + bytes_max,
        _write_text,
        _text_reader(bytes_max),
    )


def word(words: Collection[str], where: str) -> FieldType:
    """A text that must be one of a published list."""

    def read(reader: FieldReader) -> str:
        value = _read_name_text(reader)
        if value not in words:
            raise FieldError(f"{value[:60]!r} is not one of {where}")
        return value

    return FieldType(f"text: one of {where}", 2, 2 + NAME_BYTES_MAX, _write_text, read)


def _write_text(value: str) -> bytes:
    try:
        encoded = value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FieldError("a text is not UTF-8") from error
    return _U16.pack(len(encoded)) + encoded


def _text_reader(bytes_max: int) -> Callable[[FieldReader], str]:
    def read(reader: FieldReader) -> str:
        (length,) = reader.take(_U16)
        if length > bytes_max:
            raise FieldError(f"a text of {length} bytes is over {bytes_max}")
        try:
            value = reader.take_bytes(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FieldError("a text is not UTF-8") from error
        if not value.isprintable():
            raise FieldError("a text has control characters")
        return value

    return read


_read_name_text = _text_reader(NAME_BYTES_MAX)
_read_identity = _text_reader(IDENTITY_BYTES_MAX)


def _read_name(reader: FieldReader) -> str:
    try:
        return check_name(_read_name_text(reader), what="name")
    except DrengineError as error:
        raise FieldError(error.message) from error


def _read_count(reader: FieldReader, layout: struct.Struct, most: int) -> int:
    (count,) = reader.take(layout)
    if count > most:
        raise FieldError(f"a list of {count} is over {most}")
    return int(count)


def _write_abilities(names: frozenset[str]) -> bytes:
    return _U16.pack(len(names)) + b"".join(map(_write_text, sorted(names)))


def _read_abilities(reader: FieldReader) -> frozenset[str]:
    names = [_read_name(reader) for _ in range(_read_count(reader, _U16, ABILITIES_MAX))]
    if any(one >= other for one, other in itertools.pairwise(names)):
        raise FieldError("abilities are not in order, or one is named twice")
    return frozenset(names)


def _write_volumes(volumes: tuple[VolumeGeometry, ...]) -> bytes:
    return _U16.pack(len(volumes)) + b"".join(
        _VOLUME.pack(each.volume, each.size_bytes) + _write_text(each.name) + _write_text(each.identity)
        for each in volumes
    )


def _read_volumes(reader: FieldReader) -> tuple[VolumeGeometry, ...]:
    volumes: list[VolumeGeometry] = []
    for _ in range(_read_count(reader, _U16, VOLUMES_MAX)):
        number, size_bytes = reader.take(_VOLUME)
        volumes.append(VolumeGeometry(number, _read_name(reader), _read_identity(reader), size_bytes))
        if not number or not 0 < size_bytes <= OFFSET_MAX:
            raise FieldError(f"volume {number} of {size_bytes} bytes: a number of 0, or a size of 0 or above 2^63-1")
    if len({each.volume for each in volumes}) < len(volumes) or len({each.name for each in volumes}) < len(volumes):
        raise FieldError("a volume is declared twice")
    return tuple(volumes)


def _write_mark(mark: Mark) -> bytes:
    return _EPOCH.write(mark.epoch) + U64.write(mark.position)


def _read_mark(reader: FieldReader) -> Mark:
    return Mark(*reader.take(_MARK))


def _read_table(reader: FieldReader) -> bytes:
    rows = _read_count(reader, _U32, BATCH_EXTENTS_MAX)
    if not rows:
        raise FieldError("a table is empty")
    return reader.take_bytes(rows * EXTENT.size)


def _write_table(table: bytes) -> bytes:
    if len(table) % EXTENT.size:
        raise FieldError(f"a table of {len(table)} bytes is torn")
    return _U32.pack(len(table) // EXTENT.size) + table


def _read_frames(reader: FieldReader) -> bytes:
    return reader.take_bytes(FRAME.size * _read_count(reader, _U16, BATCH_FRAMES_MAX))


def _write_frames(frames: bytes) -> bytes:
    if len(frames) % FRAME.size:
        raise FieldError(f"a frame table of {len(frames)} bytes is torn")
    return _U16.pack(len(frames) // FRAME.size) + frames


def _read_digests(reader: FieldReader) -> bytes:
    return reader.take_bytes(DIGEST_BYTES * _read_count(reader, _U32, DIGESTS_MAX))


def _write_digests(digests: bytes) -> bytes:
    if len(digests) % DIGEST_BYTES:
        raise FieldError(f"{len(digests)} bytes of digests are torn")
    return _U32.pack(len(digests) // DIGEST_BYTES) + digests


def _write_spans(spans: tuple[Span, ...]) -> bytes:
    return _U16.pack(len(spans)) + b"".join(_SPAN.pack(*span) for span in spans)


def _read_spans(reader: FieldReader) -> tuple[Span, ...]:
    spans = tuple(Span(*reader.take(_SPAN)) for _ in range(_read_count(reader, _U16, SPANS_MAX)))
    for span in spans:
        if not span.length or span.offset + span.length > OFFSET_MAX:
            raise FieldError(f"a range {span.offset}+{span.length} is empty or ends above 2^63-1")
    return spans


def _write_samples(samples: tuple[MetricSample, ...]) -> bytes:
    return _U16.pack(len(samples)) + b"".join(map(_write_sample, samples))


def _write_sample(sample: MetricSample) -> bytes:
    labels = b"".join(_write_text(name) + _write_text(value) for name, value in sample.labels)
    return _write_text(sample.name) + _U8.pack(len(sample.labels)) + labels + _F64.pack(sample.value)


def sample_bytes(sample: MetricSample) -> int | None:
    """What a sample takes in a report; None where a report can't have it."""
    try:
        row = _write_sample(sample)
        _read_sample(FieldReader(memoryview(row)))
    except (FieldError, struct.error):
        return None
    return len(row)


def _read_samples(reader: FieldReader) -> tuple[MetricSample, ...]:
    return tuple(_read_sample(reader) for _ in range(_read_count(reader, _U16, SAMPLES_MAX)))


def _read_sample(reader: FieldReader) -> MetricSample:
    name = _read_metric_name(reader)
    count = _read_count(reader, _U8, LABELS_MAX)
    labels = tuple((_read_metric_name(reader), _read_label(reader)) for _ in range(count))
    if any(one[0] >= other[0] for one, other in itertools.pairwise(labels)):
        raise FieldError("labels are not in order, or one is named twice")
    (value,) = reader.take(_F64)
    return MetricSample(name, labels, value)


def _read_metric_name(reader: FieldReader) -> str:
    name = _read_metric_text(reader)
    if not _METRIC_NAME.fullmatch(name):
        raise FieldError(f"{name[:60]!r} is no name of a metric or label")
    return name


_read_metric_text = _text_reader(METRIC_NAME_BYTES_MAX)
_read_label = _text_reader(LABEL_BYTES_MAX)

_read_host = _text_reader(HOST_BYTES_MAX)


def _write_endpoints(endpoints: tuple[Endpoint, ...]) -> bytes:
    return _U8.pack(len(endpoints)) + b"".join(_write_text(host) + _U16.pack(port) for host, port in endpoints)


def _read_endpoints(reader: FieldReader) -> tuple[Endpoint, ...]:
    return tuple(_read_endpoint(reader) for _ in range(_read_count(reader, _U8, ENDPOINTS_MAX)))


def _read_endpoint(reader: FieldReader) -> Endpoint:
    host = _read_host(reader)
    (port,) = reader.take(_U16)
    if not port or not _HOST.fullmatch(host):
        raise FieldError(f"{host!r} with port {port} is no host to connect to")
    return Endpoint(host, port)


def _write_inventory(inventory: Inventory) -> bytes:
    document = pack_inventory(inventory)
    return _U32.pack(len(document)) + document


def _read_inventory(reader: FieldReader) -> Inventory:
    document = reader.take_bytes(_read_count(reader, _U32, DOCUMENT_BYTES_MAX))
    try:
        return parse_inventory(document)
    except BadInventory as error:
        raise FieldError(str(error)) from error


Errand = tuple[Purpose, int, int]
"""Purpose, branch and sequence of a session."""


def _write_errand(errand: Errand) -> bytes:
    return b"" if errand == (Purpose.REPLICATE, 0, 0) else _ERRAND.pack(*errand)


def _read_errand(reader: FieldReader) -> Errand:
    if reader.is_at_end:
        return Purpose.REPLICATE, 0, 0
    purpose, branch, sequence = reader.take(_ERRAND)
    if purpose not in (Purpose.PRESERVE, Purpose.REVERSE):
        raise FieldError(f"purpose {purpose} is unknown")
    return Purpose(purpose), branch, sequence


_VOLUME_BYTES_MIN = _VOLUME.size + 2 + 2

U16 = integer("H", 0, 2**16 - 1, "u16")
U32 = integer("I", 0, 2**32 - 1, "u32")
U64 = integer("Q", 0, 2**64 - 1, "u64")
U63 = integer("Q", 0, 2**63 - 1, "u64, below 2^63")
_EPOCH = raw(16)
FLAG = one_of("B", {False: 0, True: 1}, "u8: 0 or 1")
NAME = FieldType(
    f"name: u16 length (at most {NAME_BYTES_MAX}), characters a-z 0-9 . _ -",
    2,
    2 + NAME_BYTES_MAX,
    _write_text,
    _read_name,
)
MARK = FieldType(
    "mark: 16 bytes epoch, u64 position",
    _MARK.size,
    _MARK.size,
    _write_mark,
    _read_mark,
)
ABILITIES = FieldType(
    f"u16 count (at most {ABILITIES_MAX}), names in ascending order",
    2,
    2 + ABILITIES_MAX * NAME.bytes_max,
    _write_abilities,
    _read_abilities,
)
VOLUMES = FieldType(
    f"u16 count (at most {VOLUMES_MAX}), volumes: u32 number, u64 size in bytes, name, "
    f"identity (text of at most {IDENTITY_BYTES_MAX} bytes)",
    2,
    2 + VOLUMES_MAX * (_VOLUME_BYTES_MIN + NAME_BYTES_MAX + IDENTITY_BYTES_MAX),
    _write_volumes,
    _read_volumes,
)
TABLE = FieldType(
    f"u32 count (1 to {BATCH_EXTENTS_MAX}), rows of {EXTENT.size} bytes (see Extent rows)",
    4,
    4 + BATCH_EXTENTS_MAX * EXTENT.size,
    _write_table,
    _read_table,
)
FRAMES = FieldType(
    f"u16 count (at most {BATCH_FRAMES_MAX}), rows of {FRAME.size} bytes (see Frame rows)",
    2,
    2 + BATCH_FRAMES_MAX * FRAME.size,
    _write_frames,
    _read_frames,
)
SPANS = FieldType(
    f"u16 count (at most {SPANS_MAX}), ranges: u32 volume, u64 offset, u64 length",
    2,
    2 + SPANS_MAX * _SPAN.size,
    _write_spans,
    _read_spans,
)
ERRAND = FieldType(
    "nothing, or u8: 1 preserve, 2 reverse; u32 branch; u64 sequence",
    0,
    _ERRAND.size,
    _write_errand,
    _read_errand,
)
SAMPLES = FieldType(
    f"u16 count (at most {SAMPLES_MAX}), samples: name (text of at most {METRIC_NAME_BYTES_MAX} bytes, a-z 0-9 _), "
    f"u8 count (at most {LABELS_MAX}), labels: name, text of at most {LABEL_BYTES_MAX} bytes; f64 value",
    2,
    SAMPLES_BYTES_MAX,
    _write_samples,
    _read_samples,
)
INVENTORY = FieldType(
    f"u32 length (at most {DOCUMENT_BYTES_MAX}), a JSON document whose names are the attributes of "
    f"`drengine/model/inventory.py`: lists of at most {ENTRIES_MAX}, texts printable and of at most "
    f"{INVENTORY_TEXT_BYTES_MAX} bytes, integers from 0 to 2^63-1",
    4,
    4 + DOCUMENT_BYTES_MAX,
    _write_inventory,
    _read_inventory,
)
ENDPOINTS = FieldType(
    f"u8 count (at most {ENDPOINTS_MAX}), addresses: host (text of at most {HOST_BYTES_MAX} bytes: a name or an IP "
    "address), u16 port, not 0",
    1,
    1 + ENDPOINTS_MAX * (2 + HOST_BYTES_MAX + 2),
    _write_endpoints,
    _read_endpoints,
)
DIGESTS = FieldType(
    f"u32 count (at most {DIGESTS_MAX}), digests of {DIGEST_BYTES} bytes",
    4,
    4 + DIGESTS_MAX * DIGEST_BYTES,
    _write_digests,
    _read_digests,
)
