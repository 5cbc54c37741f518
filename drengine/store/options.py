"""Limits of a store; tests shrink them so that a few blocks span several segments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Sizes in bytes unless the name says otherwise.

    Attributes:
        segment_bytes_max: a segment is sealed when it has grown to this.
        segment_extents_max: ... or holds so many extents.
        frame_cache_bytes_max: decoded frames and prepared windows kept in memory per store.
        open_segments_max: segments' files kept open for reading per store.
        index_cache_bytes_max: decoded segment indexes kept in memory per store.
        write_buffer_bytes: a writable view packs so much into one record.
        uncommitted_bytes_max: a writable view commits by itself beyond this.
        compact_dead_fraction: a segment is rewritten when this part of its plain bytes is dead.
        merge_mappings_max: a merged layer is made only of so many mappings (28 bytes each); beyond, a view looks
            through the smaller ones.
        manifests_kept: newest manifests kept of each source.
        manifest_seconds: retention alone writes a source's manifest no sooner than this after the last one.
    """

    segment_bytes_max: int = 64 << 20
    segment_extents_max: int = 65536
    frame_cache_bytes_max: int = 256 << 20
    open_segments_max: int = 64
    index_cache_bytes_max: int = 64 << 20
    write_buffer_bytes: int = 1 << 20
    uncommitted_bytes_max: int = 32 << 20
    compact_dead_fraction: float = 0.25
    merge_mappings_max: int = 4 << 20
    manifests_kept: int = 3
    manifest_seconds: float = 600.0
