"""What a source remembers about not being in charge: one small file, replaced whole and durable before it counts.

Unlike state.json it is needed for correctness. A file that is there and can't be read means *fenced*, until a person
has removed the doubt and releases the source.
"""

from __future__ import annotations

import enum
from pathlib import Path

import msgspec

from drengine.durable import replace_durably
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError, error_kind
from drengine_agent.errors import STATE_DAMAGED

SOURCE_FENCED = error_kind(
    "source-fenced",
    118,
    "This source is not in charge, or still is, so that can't be done now.",
    "`drengine-agent status` shows how it stands; docs/failback.md tells the way home.",
)

FILE_NAME = "fence.json"


class Standing(enum.StrEnum):
    """Whether the source may serve and ship."""

    IN_CHARGE = "in-charge"
    QUIESCED = "quiesced"
    """It has stopped serving for a planned switch, and still ships."""
    FENCED = "fenced"
    """It neither serves nor ships, until it is released."""


class Preserved(msgspec.Struct, frozen=True):
    """What the disks held was shipped to this branch, whole, and is durable as the point at `sequence`."""

    branch: int
    sequence: int


class FenceRecord(msgspec.Struct, frozen=True):
    """Contents of the file.

    Attributes:
        standing: see Standing.
        generation: that the source shipped under when it was fenced.
        reason: what fenced it: ``command`` (of a run), ``operator``, ``stale``, ``lease``, ``replaced``, ``quiesced``,
            ``spare``, ``settled``, ``moved`` (daemon/home.py).
        run, by: the run on whose behalf that was, and who began it; empty: no run's.
        since_ns: wall clock.
        preserved: valid until the disks are written.
        reversing: the point that the disks are being made equal to; while it is set they are neither one nor the other.
        equals: the point that the disks are equal to, verified.
        stamps: of each volume when they were found equal; a volume with another stamp was written since.
        replaced: volumes on disks that were adopted in place of others and hold nothing of this source yet.
    """

    standing: Standing = Standing.IN_CHARGE
    generation: int = 0
    reason: str = ""
    run: str = ""
    by: str = ""
    since_ns: int = 0
    preserved: Preserved | None = None
    reversing: str = ""
    equals: str = ""
    stamps: dict[str, str] = {}
    replaced: list[str] = []


def fenced_record(generation: int, reason: str, clock: Clock, *, run: str = "", by: str = "") -> FenceRecord:
    """A source that is fenced from now on."""
    return FenceRecord(Standing.FENCED, generation, reason, run=run, by=by, since_ns=clock.now_ns())


class Fence:
    """The record of one agent, in its state directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self.record = _read(self._path)
        self.is_durable = True

    @property
    def may_serve(self) -> bool:
        """Whether clients may use the volumes."""
        return self.record.standing is Standing.IN_CHARGE

    @property
    def may_ship(self) -> bool:
        """Whether the stream may go on."""
        return self.record.standing is not Standing.FENCED

    def replace(self, record: FenceRecord) -> None:
        """Make a new record durable; then it counts.

        Raises:
            DrengineError: STATE_DAMAGED; the old record counts.
        """
        try:
            replace_durably(self._path, msgspec.json.encode(record))
        except OSError as error:
            raise DrengineError(STATE_DAMAGED, f"{self._path}: {error.strerror}") from error
        self.record, self.is_durable = record, True

    def assume(self, record: FenceRecord) -> None:
        """It counts, although a restart would not know of it."""
        self.record, self.is_durable = record, False


def _read(path: Path) -> FenceRecord:
    try:
        return msgspec.json.decode(path.read_bytes(), type=FenceRecord)
    except FileNotFoundError:
        return FenceRecord()
    except (OSError, msgspec.MsgspecError) as error:
        # Nobody knows how far the disks are: they are not served, and compared anew.
        return FenceRecord(Standing.FENCED, reason=f"{path} can't be read: {error}", reversing="unknown")
