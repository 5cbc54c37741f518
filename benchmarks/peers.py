"""What users would pick instead, on the same image in the same run. A peer that isn't installed is shown as such."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.results import Contestant, Measured, clocked

NBDCOPY = "nbdcopy"


class NotInstalledError(RuntimeError):
    """A peer is missing on this machine."""


def run(*command: str | Path) -> str:
    """Run a command to its end and return its output.

    Raises:
        NotInstalledError: it is not there.
        RuntimeError: it failed; a failed peer must not look quick.
    """
    require(str(command[0]))
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr


def require(*tools: str) -> None:
    """Raise if one of the tools is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise NotInstalledError(f"{tool} is not installed")


@contextmanager
def serving(socket: Path, *command: str | Path) -> Iterator[None]:
    """Run a server until the block ends; it is ready when its unix socket exists."""
    require(str(command[0]))
    socket.unlink(missing_ok=True)
    server = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not serve (exit code {server.poll()})")
            time.sleep(0.01)
        yield
    finally:
        server.terminate()
        server.wait()


def qemu_nbd(socket: Path, image: Path, *options: str) -> tuple[str | Path, ...]:
    """Command of a qemu-nbd that serves a raw image to several clients."""
    return ("qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", socket, *options, image)


def uri(socket: Path, export: str = "") -> str:
    """NBD address of a unix socket."""
    return f"nbd+unix:///{export}?socket={socket}"


def copies(image: Path, folder: Path) -> list[Contestant]:
    """Whole copies of the image to an empty destination, synced."""
    target = folder / "copy.img"

    def whole(action: Callable[[], int | None]) -> Measured:
        target.unlink(missing_ok=True)
        return checked(clocked(action))

    def checked(measured: Measured) -> Measured:
        run("cmp", image, target)
        target.unlink()
        return measured

    def between_servers(command: Callable[[str, str], None]) -> Measured:
        target.unlink(missing_ok=True)
        with target.open("wb") as empty:
            empty.truncate(image.stat().st_size)
        source_socket, target_socket = folder / "source.sock", folder / "target.sock"
        with (
            serving(source_socket, *qemu_nbd(source_socket, image, "-r")),
            serving(target_socket, *qemu_nbd(target_socket, target, "--discard=unmap")),
        ):
            measured = clocked(lambda: command(uri(source_socket), uri(target_socket)))
        return checked(measured)

    def nbdcopy(source: str, destination: str) -> None:
        run("nbdcopy", "--flush", source, destination)

    def convert(source: str, destination: str) -> None:
        run("qemu-img", "convert", "-n", "-t", "writeback", "-f", "raw", "-O", "raw", source, destination)

    def blocksync() -> Measured:
        digests = folder / "copy.digests"
        digests.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        with target.open("wb") as empty:
            empty.truncate(image.stat().st_size)
        return checked(
            clocked(lambda: _quietly("blocksync-fast", "-s", image, "-d", target, "-f", digests, "--no-progress"))
        )

    plain = ("rsync", "--whole-file", "--fsync", "--stats", image, target)
    packed = (
        "rsync",
        "--whole-file",
        "--fsync",
        "--stats",
        "-z",
        "--compress-choice=zstd",
        "--compress-level=1",
    )
    remote = ("-e", "sh -c 'shift; exec \"$@\"' sh", image, f"localhost:{target}")
    return [
        Contestant("cat through a pipe", lambda: whole(lambda: _cat(image, target))),
        Contestant(NBDCOPY, lambda: between_servers(nbdcopy)),
        Contestant("qemu-img convert over NBD", lambda: between_servers(convert)),
        Contestant("rsync --whole-file", lambda: whole(lambda: rsync(*plain))),
        Contestant("rsync zstd level 1", lambda: whole(lambda: rsync(*packed, *remote))),
        Contestant("blocksync-fast, stored digests", blocksync),
    ]


def updates(image: Path, folder: Path) -> list[Contestant]:
    """Tools that bring a replica of their own, kept from run to run, up to date with an image that has changed."""

    def updating(name: str, *options: str) -> Contestant:
        replica = folder / f"{name.replace(' ', '-')}.img"

        def once() -> Measured:
            if not replica.exists():
                shutil.copyfile(image, replica)
            command: tuple[str | Path, ...] = (
                "rsync",
                "--no-whole-file",
                "--inplace",
                "--ignore-times",
                "--fsync",
                "--stats",
                *options,
                image,
                replica,
            )
            measured = clocked(lambda: rsync(*command))
            run("cmp", image, replica)
            return measured

        return Contestant(name, once)

    return [
        updating("rsync --inplace"),
        updating("rsync --inplace, 4 KiB blocks", "--block-size=4096"),
    ]


def rsync(*command: str | Path) -> int:
    """Run rsync; returns the bytes that its two ends exchanged."""
    report = run(*command)
    totals = [line for line in report.splitlines() if line.startswith(("Total bytes sent", "Total bytes received"))]
    return sum(int(line.split(":")[1].replace(",", "").replace(".", "")) for line in totals)


def _quietly(*command: str | Path) -> None:
    run(*command)


def _cat(source: Path, target: Path) -> int:
    with target.open("wb") as sink:
        pipe = subprocess.Popen(["cat", str(source)], stdout=subprocess.PIPE)
        subprocess.run(["cat"], stdin=pipe.stdout, stdout=sink, check=True)
        if pipe.wait():
            raise RuntimeError("cat failed")
        os.fdatasync(sink.fileno())
    return source.stat().st_size
