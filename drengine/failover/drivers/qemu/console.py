"""What the machine says on its console, in a file that stays small: QEMU's own would grow as long as the guest talks.

QEMU writes to a pipe. A process of its own reads that until the machine ends, since whoever launched the machine may be
gone meanwhile, and drops the older half of a file that became too large. It reads on where it can't write: a full pipe
would hold the guest up. If it dies, the guest's words are lost and the guest goes on.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drengine.process import end_marked, start_marked

MARK = "DRENGINE_CONSOLE"
CONSOLE, NOTES = "console.log", "console-reader.log"
SAID = "console.said"
"""There once the words that were waited for are no longer in the file."""
BYTES_MAX = 1 << 20
END_SECONDS = 5.0
_NEW = f"{CONSOLE}.new"
_READ_BYTES = 1 << 16


@contextmanager
def console_kept(instance: str, directory: Path, words: str) -> Iterator[int]:
    """The descriptor that QEMU inherits and writes to; ours is closed when this ends.

    Args:
        words: are found by `has_said` also when they have been dropped.

    Raises:
        OSError, ValueError: the reader can't be started.
    """
    end_console(instance, directory)
    for name in (CONSOLE, SAID):
        (directory / name).unlink(missing_ok=True)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        start_marked(
            [sys.executable, "-m", __name__, str(reading), str(BYTES_MAX), words],
            MARK,
            instance,
            output=directory / NOTES,
            directory=directory,
            environment={"PYTHONPATH": os.pathsep.join(sys.path)},
            descriptors=[reading],
        )
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def console_arguments(descriptor: int) -> list[str]:
    """QEMU's: the first serial line goes to a descriptor that it inherited."""
    kept = ["-add-fd", f"fd={descriptor},set=1", "-chardev", "file,id=console,path=/dev/fdset/1,append=on"]
    return [*kept, "-serial", "chardev:console"]


def end_console(instance: str, directory: Path) -> None:
    """After the machine has ended: until all that it said is in the file."""
    end_marked(MARK, instance, directory, grace_seconds=END_SECONDS)


def has_said(directory: Path, words: str) -> bool:
    """Whether the machine has said these words since it was started; they are those that its console is kept for."""
    try:
        with (
            (directory / CONSOLE).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as console,
        ):
            if console.find(words.encode()) >= 0:
                return True
    except (OSError, ValueError):  # there is none yet, or it is empty
        pass
    return (directory / SAID).exists()  # noted before the file is replaced, and so looked for after that was read


def keep(descriptor: int, bytes_max: int, words: str) -> None:
    """Read to the end of a pipe; the last of it stands in CONSOLE, in the working directory."""
    while data := os.read(descriptor, _READ_BYTES):
        with contextlib.suppress(OSError):
            _add(data, bytes_max, words)


def _add(data: bytes, bytes_max: int, words: str) -> None:
    with Path(CONSOLE).open("a+b") as file:
        if file.tell() + len(data) <= bytes_max:
            file.write(data)
            return
        file.seek(max(0, file.tell() - bytes_max))
        held = file.read(bytes_max) + data
    if words.encode() in held:
        Path(SAID).touch()
    Path(_NEW).write_bytes(held[-bytes_max // 2 :])
    Path(_NEW).replace(CONSOLE)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end of the machine is the end of the pipe
    keep(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
