"""Bringing a point back as a raw file: by `drengine restore`, and over NBD from the running target."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.peers import qemu_nbd, run, serving, uri
from benchmarks.results import Contestant, Measured, Share, Table, clocked, contest
from benchmarks.site import Target, command

RESTORE, UNVERIFIED = "drengine restore, read back and compared", "drengine restore --no-verify"
EXPORT, QEMU, CP = "nbdcopy from drengine's export", "nbdcopy from qemu-nbd", "cp"


def measure(bench: Bench) -> list[Table]:
    """Ours beside copies from an uncompressed image."""
    with bench.site(bench.fresh("restored")) as here:
        target = here.start_target()
        since_ns = time.time_ns()
        here.start_agent(target, "source", {"disk": bench.image})
        target.wait_point("source", since_ns)
        output = bench.folder / "restored.img"

        def checked(measured: Measured) -> Measured:
            run("cmp", bench.image, output)
            output.unlink()
            return measured

        def from_qemu() -> Measured:
            socket = bench.folder / "restore.sock"
            with serving(socket, *qemu_nbd(socket, bench.image, "-r")):
                return checked(clocked(lambda: _nbdcopy(uri(socket), output)))

        figures = contest(
            [
                Contestant(RESTORE, lambda: checked(clocked(lambda: _restore(target, output))), ours=True),
                Contestant(
                    UNVERIFIED,
                    lambda: checked(clocked(lambda: _restore(target, output, "--no-verify"))),
                    ours=True,
                ),
                Contestant(
                    EXPORT,
                    lambda: checked(clocked(lambda: _nbdcopy(uri(target.nbd, "source/disk@latest"), output))),
                    ours=True,
                ),
                Contestant(QEMU, from_qemu),
                Contestant(CP, lambda: checked(clocked(lambda: _copy(bench.image, output)))),
            ],
            bench.rounds,
        )
    return [
        Table(
            "restore",
            f"Restore of {bench.image_bytes >> 20} MiB to a file",
            "s",
            figures,
            shares={RESTORE: Share(CP, 0.95), EXPORT: Share(QEMU, 0.7)},
            baseline=CP,
            remark="Whole commands, synced; ours decompress and check. All results were compared with the image.",
        )
    ]


def _restore(target: Target, output: Path, *options: str) -> None:
    command("restore", "latest", "--store", target.store, "--to", f"disk={output}", "--json", *options)


def _nbdcopy(source: str, output: Path) -> None:
    run("nbdcopy", "--flush", source, str(output))


def _copy(image: Path, output: Path) -> None:
    run("cp", "--sparse=never", "--reflink=never", image, output)
    run("sync", "-d", output)
