"""Running one session of a pipeline in a test: everything real but the socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

from drengine.config import Address
from drengine.config.bandwidth import BandwidthSchedule
from drengine.model.clock import Clock, SystemClock
from drengine.model.points import VolumeGeometry
from drengine_agent.bandwidth import TokenBucket
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.indexes import HashIndexes
from drengine_agent.capture.scan.tracker import ScanTracker
from drengine_agent.capture.tracker import Readable, Tracker
from drengine_agent.ship.compression import CompressionController
from drengine_agent.ship.lag import LagMeter
from drengine_agent.ship.pipeline import Pipeline, Progress
from drengine_agent.ship.resume import decide_resume
from drengine_agent.ship.route import Route
from drengine_agent.ship.sender import Sender, Traffic
from drengine_agent.ship.uplink import Uplink
from tests.agent.replica import Replica, ReplicaStream

DEADLINE_SECONDS = 30.0
ADDRESS = Address("outpost.example", 7440)


class Source:
    """A source server with files as volumes, its indexes and a scan tracker; outlives sessions."""

    def __init__(self, folder: Path, sizes: Mapping[int, int], *, clock: Clock | None = None) -> None:
        self.folder = folder
        self.clock = clock or SystemClock()
        self.paths = {number: folder / f"v{number}.img" for number in sizes}
        for number, size in sizes.items():
            if not self.paths[number].exists():
                with self.paths[number].open("wb") as file:
                    file.truncate(size)
        self.volumes: dict[int, Volume] = {}
        self.progress = Progress()
        self.traffic = Traffic()
        self.lag = LagMeter(self.clock)
        self.assume_quiescent = False
        self.tracker: Tracker | None = None
        self.indexes: HashIndexes | None = None
        self.wrap: Callable[[Volume], Readable] = lambda volume: volume

    def open(self) -> None:
        self.volumes = {number: Volume.open(number, f"v{number}", path) for number, path in self.paths.items()}
        self.indexes = HashIndexes(self.folder / "index", self.geometry)
        self.tracker = ScanTracker(
            self.volumes, self.indexes, self.clock, interval_seconds=3600.0, assume_quiescent=self.assume_quiescent
        )

    @property
    def geometry(self) -> tuple[VolumeGeometry, ...]:
        return tuple(volume.geometry for volume in self.volumes.values())

    def close(self, *, clean: bool = True) -> None:
        assert self.tracker and self.indexes
        self.tracker.close()
        self.indexes.close(clean=clean)
        for volume in self.volumes.values():
            volume.close()

    @contextlib.contextmanager
    def opened(self, *, clean: bool = True) -> Iterator[Source]:
        self.open()
        try:
            yield self
        finally:
            self.close(clean=clean)

    def contents(self, number: int = 1) -> bytes:
        return self.paths[number].read_bytes()

    def write(self, offset: int, data: bytes, number: int = 1) -> None:
        with self.paths[number].open("r+b") as file:
            file.seek(offset)
            file.write(data)

    async def pipeline(self, replica: Replica, *, workers: int = 2, **options: float) -> tuple[Pipeline, ReplicaStream]:
        bandwidth = TokenBucket(BandwidthSchedule(), self.clock)
        uplink = Uplink(
            "server",
            replica.connect,
            Route((ADDRESS,), Random(1)),
            self.clock,
            bandwidth,
            CompressionController(),
            workers,
        )
        session = await uplink.open(uplink.hello(1))
        assert self.tracker
        pipeline = Pipeline(
            uplink=uplink,
            tracker=self.tracker,
            volumes={number: self.wrap(volume) for number, volume in self.volumes.items()},
            geometry=self.geometry,
            indexes=self.indexes,
            sender=Sender(session, self.clock, self.traffic),
            resume=decide_resume(session.welcome, self.geometry, 0),
            lag=self.lag,
            progress=self.progress,
            **options,  # type: ignore[arg-type]
        )
        assert isinstance(session.stream, ReplicaStream)
        return pipeline, session.stream

    async def replicate(self, replica: Replica) -> None:
        """One session that ships what there is and ends in peace; a new round begins with it."""
        tracker = self.tracker
        assert isinstance(tracker, ScanTracker)
        tracker.request_round()
        pipeline, _ = await self.pipeline(replica)
        pipeline.finish()
        await asyncio.wait_for(pipeline.run(), DEADLINE_SECONDS)
