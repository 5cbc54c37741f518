"""The hash indexes of all volumes of a source, and the epoch that ties them to what one target has."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from drengine.model.points import Mark, VolumeGeometry
from drengine_agent.capture.index import BlockHashes, BlockIndex, IndexState

Note = tuple[int, int, int, BlockHashes]
"""(volume, page, block in the page, its entry)."""


class HashIndexes:
    """One BlockIndex per volume, opened and closed together.

    The target's durable mark names the epoch it was filled under. Only if that is ours do the entries say anything
    about it.
    """

    def __init__(self, directory: Path, volumes: Sequence[VolumeGeometry]) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._indexes = {volume.volume: BlockIndex(directory / f"{volume.name}.index", volume) for volume in volumes}
        states = {number: index.load() for number, index in self._indexes.items()}
        newest = max((state for state in states.values() if state), key=lambda state: state.round, default=None)
        self._doubt: str | None = None
        for number, state in states.items():
            if newest is None or state is None or state.epoch != newest.epoch:
                self._indexes[number].reset(zeros=False)
                self._doubt = "geometry-changed" if self._indexes[number].resized else "index-lost"
        self.epoch = newest.epoch if newest else secrets.token_bytes(16)
        self.round = newest.round if newest else 0
        self.durable_sequence = newest.durable_sequence if newest else 0
        self._begun = False

    @property
    def by_volume(self) -> Mapping[int, BlockIndex]:
        """The indexes by volume number."""
        return self._indexes

    def begin(self, since: Mark, *, target_empty: bool) -> Mark:
        """Prepare for a session with a target whose durable mark is `since`; returns the mark to go on from.

        If the target was not filled under our epoch, or is empty, a new epoch begins.
        """
        if target_empty or since.epoch != self.epoch:
            if self.round and not target_empty:
                self._doubt = self._doubt or "epoch-changed"
            if target_empty:
                self._doubt = None
            self.epoch = secrets.token_bytes(16)
            self.round = 0
            since = Mark(self.epoch)
            for index in self._indexes.values():
                index.reset(zeros=target_empty)
        self._begun = True
        for index in self._indexes.values():
            index.mark_open(self._state())
        return since

    def doubt(self, reason: str) -> None:
        """Forget everything, for a reason (a code of states.REASONS)."""
        for index in self._indexes.values():
            index.reset(zeros=False)
        self._doubt = reason

    def take_doubt(self) -> str | None:
        """Why everything has to be compared with the target; None if it doesn't. Asked once at each round's start."""
        reason, self._doubt = self._doubt, None
        return reason

    def next_round(self) -> Mark:
        """The mark of the scanning round that begins now."""
        self.round += 1
        return Mark(self.epoch, self.round)

    def remember(self, notes: Iterable[Note]) -> None:
        """The target durably has these."""
        pages: dict[tuple[int, int], dict[int, BlockHashes]] = defaultdict(dict)
        for volume, page, block, entry in notes:
            pages[volume, page][block] = entry
        for (volume, page), blocks in pages.items():
            self._indexes[volume].remember(page, blocks)

    def forget(self, volume: int, page: int, blocks: list[int]) -> None:
        """What the target has there is about to change, or is damaged."""
        self._indexes[volume].forget(page, blocks)

    def close(self, *, clean: bool) -> None:
        """Close all; `clean` if nothing is half done: then the next run may believe them."""
        state = self._state() if clean and self._begun else None
        for index in self._indexes.values():
            index.close(state)

    def _state(self) -> IndexState:
        return IndexState(self.epoch, self.round, self.durable_sequence)
