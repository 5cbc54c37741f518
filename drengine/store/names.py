"""Names of the files in a store, relative to its directory; and back from names to what they hold."""

from __future__ import annotations

import re
from typing import NamedTuple

SEGMENTS = "segments"
MANIFESTS = "manifests"
KEYS = "keys"
STORE_KEYS = f"{KEYS}/STORE"
"""The store's own keyring: of its catalogue's seal, its manifests and its layers. No source is called so."""
NOTES = "epochs"
"""In a seat of a shared store: the newest epoch of each partition that was committed there."""
EPOCH_NAME = f"{SEGMENTS}/epoch"
_SEGMENT = re.compile(r"segments/([a-z0-9][a-z0-9._-]{0,62})/(\d{8})/(\d{8})\.(\d{4,6})\.seg", re.ASCII)
_LAYER = re.compile(r"segments/[^/]+/\d{8}/(\d{8})\.L(\d)\.map", re.ASCII)
_MANIFEST = re.compile(r"manifests/(?:sources/([a-z0-9][a-z0-9._-]{0,62})/)?(\d{8})", re.ASCII)


class SegmentPlace(NamedTuple):
    """What a segment file's name says."""

    source: str
    branch: int
    segment: int
    revision: int


def segment_directory(source: str, branch: int) -> str:
    """Where a branch's segments and layers are."""
    return f"{SEGMENTS}/{source}/{branch:08d}"


def segment_name(source: str, branch: int, segment: int, revision: int) -> str:
    """A segment's file."""
    return f"{segment_directory(source, branch)}/{segment:08d}.{revision:04d}.seg"


def layer_name(source: str, branch: int, level: int, first: int) -> str:
    """The file of a layer that begins with segment `first`."""
    return f"{segment_directory(source, branch)}/{first:08d}.L{level}.map"


def layer_last(name: str) -> int:
    """The newest segment that a layer's file covers; 0 when the name is not a layer's."""
    match = _LAYER.fullmatch(name)
    return int(match[1]) + 16 ** int(match[2]) - 1 if match else 0


class ManifestPlace(NamedTuple):
    """What a manifest's name says; `source` is empty in one of a whole store, as early versions wrote them."""

    source: str
    number: int


def manifests_of(source: str) -> str:
    """What the names of a source's manifests begin with; without a source, those of the whole store."""
    return f"{MANIFESTS}/sources/{source}/" if source else f"{MANIFESTS}/0"


def manifest_name(source: str, number: int) -> str:
    """A manifest's file."""
    return f"{MANIFESTS}/sources/{source}/{number:08d}" if source else f"{MANIFESTS}/{number:08d}"


def keys_name(source: str) -> str:
    """The file of a source's keyring."""
    return f"{KEYS}/{source}"


def source_of(name: str) -> str:
    """Whose file it is; empty for the store's own."""
    folder, _, rest = name.partition("/")
    if folder == SEGMENTS:
        return rest.partition("/")[0] if "/" in rest else ""
    return rest if folder == KEYS and name != STORE_KEYS else ""


def parse_segment_name(name: str) -> SegmentPlace | None:
    """What a name says, or None when it is not a segment's."""
    match = _SEGMENT.fullmatch(name)
    return SegmentPlace(match[1], int(match[2]), int(match[3]), int(match[4])) if match else None


def parse_manifest_name(name: str) -> ManifestPlace | None:
    """What a name says, or None when it is not a manifest's."""
    match = _MANIFEST.fullmatch(name)
    return ManifestPlace(match[1] or "", int(match[2])) if match else None
