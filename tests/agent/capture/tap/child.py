"""A process that serves a tap until it is killed: `python child.py DIRECTORY SOCKET VOLUMES SYNC`."""

from __future__ import annotations

import sys
from pathlib import Path

from drengine.model.points import Mark
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.tap.server import TapServer
from drengine_agent.capture.tap.tracker import Tap, TapOptions

JOURNAL_BYTES = 64 << 20


def open_tap(directory: Path, volumes: int) -> Tap:
    opened = [Volume.open(n, f"disk{n}", directory / f"disk{n}", writable=True) for n in range(1, volumes + 1)]
    tap = Tap(opened, directory / "journal", TapOptions(journal_bytes=JOURNAL_BYTES))
    tap.open([volume.geometry for volume in opened])
    return tap


def main(directory: Path, socket: str, volumes: int) -> None:
    tap = open_tap(directory, volumes)
    known = directory / "mark"
    if not known.exists():  # the target begins with an exact copy
        mark = tap.changes(Mark(), bytes_max=1).mark
        tap.acknowledge(tap.changes(mark, bytes_max=1).mark)
        known.write_text(f"{mark.epoch.hex()} {mark.position}")
    TapServer(tap, socket).start()
    print("serving", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
