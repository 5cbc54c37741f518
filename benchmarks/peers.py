"""What users would pick instead, run on the same image in the same run. A peer that isn't installed is left out by name."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A measured work: the median of `runs`, all of them, and bytes that travelled where they are known."""

    name: str
    seconds: float
    runs: tuple[float, ...]
    wire_bytes: int | None = None
    note: str = ""


def timed(name: str, action: Callable[[], int | None], *, rounds: int, before: Callable[[], None] | None = None) -> Figure:
    """Run `before` (untimed) and `action` so often, and keep the median."""
    runs: list[float] = []
    wire: int | None = None
    for _ in range(rounds):
        if before:
            before()
        begun = time.perf_counter()
        wire = action()
        runs.append(time.perf_counter() - begun)
    return Figure(name, statistics.median(runs), tuple(runs), wire)


def run(*command: str | Path) -> str:
    """Run a command to its end and return its output.

    Raises:
        RuntimeError: it failed; a failed peer must not look quick.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-300:]}")
    return done.stdout + done.stderr


@contextmanager
def serving(socket: Path, *command: str | Path) -> Iterator[None]:
    """Run a server until the block ends; it is ready when its unix socket exists."""
    socket.unlink(missing_ok=True)
    server = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not socket.exists():
            if server.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {server.returncode}")
            time.sleep(0.01)
        yield
    finally:
        server.terminate()
        server.wait()


def available(*tools: str) -> bool:
    """Whether all of them are on the path."""
    return all(shutil.which(tool) for tool in tools)


def initial_copies(image: Path, folder: Path, rounds: int) -> list[Figure]:
    """Whole copies of the image to an empty destination."""
    target = folder / "peer.img"
    source_socket, target_socket = folder / "peer-source.sock", folder / "peer-target.sock"

    def fresh() -> None:
        target.unlink(missing_ok=True)

    def sized() -> None:
        fresh()
        with target.open("wb") as empty:
            empty.truncate(image.stat().st_size)

    figures = [timed("cat", lambda: _cat(image, target), rounds=rounds, before=fresh)]
    if available("nbdcopy", "qemu-nbd", "qemu-img"):
        serve = ("qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k")
        sized()
        with (
            serving(source_socket, *serve, source_socket, "-r", image),
            serving(target_socket, *serve, target_socket, "--discard=unmap", target),
        ):
            ends = (f"nbd+unix:///?socket={source_socket}", f"nbd+unix:///?socket={target_socket}")
            figures.append(timed("nbdcopy", lambda: _no_wire("nbdcopy", *ends), rounds=rounds))
            figures.append(
                timed("qemu-img convert over NBD", lambda: _no_wire("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", *ends), rounds=rounds)
            )
    if available("rsync"):
        plain = ("rsync", "--whole-file", "--stats", image, target)
        packed = ("rsync", "--whole-file", "--stats", "-z", "--compress-choice=zstd", "--compress-level=1", image, f"{folder}/piped/")
        figures.append(timed("rsync --whole-file", lambda: _rsync(*plain), rounds=rounds, before=fresh))
        figures.append(timed("rsync zstd level 1", lambda: _rsync(*_through_pipe(packed)), rounds=rounds, before=lambda: _empty(folder / "piped")))
    if available("blocksync-fast"):
        digests = folder / "peer.digests"
        figures.append(
            timed(
                "blocksync-fast, stored digests",
                lambda: _no_wire("blocksync-fast", "-s", image, "-d", target, "-f", digests, "--no-progress"),
                rounds=rounds,
                before=lambda: (sized(), digests.unlink(missing_ok=True))[0],
            )
        )
    fresh()
    shutil.rmtree(folder / "piped", ignore_errors=True)
    return figures


def updates(image: Path, replica: Path, name: str) -> list[Figure]:
    """Bring a replica up to date with the changed image, once for each tool on a copy of the old replica."""
    figures: list[Figure] = []
    work = replica.with_name("peer-update.img")
    tools: list[tuple[str, tuple[str | Path, ...]]] = []
    if available("rsync"):
        tools.append(("rsync --inplace", ("rsync", "--no-whole-file", "--inplace", "--stats", "--ignore-times", image, work)))
        tools.append(
            ("rsync --inplace, 4 KiB blocks", ("rsync", "--no-whole-file", "--inplace", "--block-size=4096", "--stats", "--ignore-times", image, work))
        )
    for label, command in tools:
        shutil.copyfile(replica, work)
        figures.append(timed(f"{label}, {name}", lambda command=command: _rsync(*command), rounds=1))  # type: ignore[misc]
    if available("rdiff"):
        figures.append(timed(f"rdiff, {name}", lambda: _rdiff(image, replica, work), rounds=1))
    work.unlink(missing_ok=True)
    return figures


def _cat(source: Path, target: Path) -> int:
    with target.open("wb") as sink:
        pipe = subprocess.Popen(["cat", str(source)], stdout=subprocess.PIPE)
        subprocess.run(["cat"], stdin=pipe.stdout, stdout=sink, check=True)
        pipe.wait()
        os.fdatasync(sink.fileno())
    return source.stat().st_size


def _no_wire(*command: str | Path) -> None:
    run(*command)


def _rsync(*command: str | Path) -> int:
    report = run(*command)
    return next(int(line.split(":")[1].replace(",", "").replace(".", "")) for line in report.splitlines() if line.startswith("Total bytes sent"))


def _through_pipe(command: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
    """rsync compresses only between two processes with a remote shell between them: a shell that just runs the command."""
    *options, source, target = command
    return (*options, "-e", "sh -c 'shift; exec \"$@\"' sh", source, f"localhost:{target}")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _rdiff(image: Path, replica: Path, work: Path) -> int:
    signature, delta = work.with_suffix(".sig"), work.with_suffix(".delta")
    run("rdiff", "--force", "signature", replica, signature)
    run("rdiff", "--force", "delta", signature, image, delta)
    run("rdiff", "--force", "patch", replica, delta, work)
    sent = signature.stat().st_size + delta.stat().st_size
    signature.unlink()
    delta.unlink()
    return sent
