"""What the campaign sees of the daemons from outside, and what it makes of the figures."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOOK_SECONDS = 0.25


@dataclass
class Seen:
    """Of one daemon: how much at most, and what it has open now, sockets and all.

    Attributes:
        open: by what it is: a folder of the store, `socket`, `anon_inode` and the like.
    """

    resident_bytes_max: int = 0
    descriptors_max: int = 0
    sockets: int = 0
    open: dict[str, int] = field(default_factory=dict)


@dataclass
class Watch:
    """Looks at processes until it is stopped.

    Attributes:
        seen: by the daemon's name.
    """

    processes: Mapping[str, int]
    seen: dict[str, Seen] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def look(self) -> None:
        """Look once. A process that is gone shows nothing more."""
        for name, number in self.processes.items():
            seen = self.seen.setdefault(name, Seen())
            try:
                status = Path(f"/proc/{number}/status").read_text().splitlines()
                found = Counter(_kind(each) for each in Path(f"/proc/{number}/fd").iterdir())
            except OSError:
                continue
            seen.open, seen.sockets = dict(found), found["socket"]
            resident = next((int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS")), 0)
            seen.resident_bytes_max = max(seen.resident_bytes_max, resident)
            seen.descriptors_max = max(seen.descriptors_max, found.total())

    def _go_on(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self.look()


def _kind(descriptor: Path) -> str:
    try:
        to = str(descriptor.readlink())
    except OSError:
        return "gone"
    return Path(to).parent.name if to.startswith("/") else to.partition(":")[0]


@dataclass(frozen=True)
class Latency:
    """Of `count` things, in seconds."""

    count: int
    p50: float
    p99: float
    longest: float

    @staticmethod
    def of(seconds: Iterable[float]) -> Latency:
        """Zero where there were none."""
        found = sorted(seconds)
        if not found:
            return Latency(0, 0.0, 0.0, 0.0)
        p50, p99 = (round(found[len(found) * share // 100], 4) for share in (50, 99))
        return Latency(len(found), p50, p99, round(found[-1], 4))
