"""Crashes a recorded store at every persistence point: ``python -m tests.crash.campaign --seed N``.

For each operation of the recording the states that a crash may leave (disk.py) are opened by the real store and
judged (judge.py). A failure is printed with what makes it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from drengine.model.errors import DrengineError
from tests.crash.disk import Disk, Tree
from tests.crash.judge import Broken, Judge
from tests.crash.recording import Recording, Said, record
from tests.crash.workload import ENCRYPTED, Oracle, script
from tests.store.harness import encrypted

FAILURES_MAX = 20


class Moment(NamedTuple):
    """A crash after `operation` operations; `variant` says which of its outcomes."""

    operation: int
    variant: str
    begun: int
    done: int
    tree: Tree


@dataclass
class Report:
    """What a campaign found."""

    seed: int
    operations: int
    states: int = 0
    deep: int = 0
    rebuilt: int = 0
    seconds: float = 0.0
    variants: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def moments(recording: Recording, seed: int, *, reorderings: int) -> Iterator[Moment]:
    """Every persistence point with its strict, eager, half-way and `reorderings` random outcomes."""
    disk = Disk(recording)
    begun = done = 0
    for number, operation in enumerate(recording.operations):
        differs = disk.apply(operation)
        if isinstance(operation, Said):
            for line in operation.text.splitlines():
                what, step, _ = json.loads(line)
                begun, done = (max(begun, step + 1), done) if what == "begin" else (begun, step + 1)
            differs = True
        if not differs:
            continue
        for variant, tree in (
            ("strict", disk.strict()),
            ("eager", disk.eager()),
            ("names first", disk.names_first()),
            ("contents first", disk.contents_first()),
        ):
            yield Moment(number, variant, begun, done, tree)
        for turn in range(reorderings):
            chosen = random.Random(f"{seed}/{number}/{turn}")
            yield Moment(number, f"reordered {turn}", begun, done, disk.reordered(chosen))


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory, in memory if there is any: laying out states is most of the work."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as temporary:
        yield Path(temporary)


def record_life(seed: int, directory: Path, *, rounds: int) -> Recording:
    """Run the script of a seed in a child process under `directory` and record it."""
    (directory / "live").mkdir()
    arguments = ["-m", "tests.crash.workload", str(directory / "live"), str(seed), str(rounds)]
    return record(arguments, directory / "live", directory / "trace")


def crash(
    recording: Recording,
    directory: Path,
    seed: int,
    *,
    rounds: int,
    reorderings: int,
    share: float = 1.0,
    deep_share: float = 0.1,
    only: int | None = None,
) -> Report:
    """Judge what crashes of a recorded life leave.

    Args:
        recording: of the script with this seed and these rounds.
        directory: for laying out states.
        seed: also of the reorderings and of the sample.
        rounds: length of the script.
        reorderings: random outcomes a persistence point.
        share: part of all states to judge.
        deep_share: part of those to go on with, compact and rebuild.
        only: judge only the states after this operation, all of them deeply.
    """
    began = time.monotonic()
    judge = Judge(Oracle(script(seed, rounds=rounds), _results(recording)), directory / "crashed")
    report = Report(seed, len(recording.operations))
    chosen = random.Random(seed)
    for moment in moments(recording, seed, reorderings=reorderings):
        judged, deeply = chosen.random() < share, chosen.random() < deep_share
        if only is not None:
            judged, deeply = moment.operation == only, True
        if judged:
            _judge(judge, moment, report, deeply=deeply)
        if len(report.failures) >= FAILURES_MAX:
            break
    report.states, report.rebuilt = judge.states, judge.rebuilt
    report.seconds = time.monotonic() - began
    return report


def _judge(judge: Judge, moment: Moment, report: Report, *, deeply: bool) -> None:
    where = f"seed {report.seed}, operation {moment.operation}, {moment.variant}, step {moment.begun}"
    try:
        if judge.judge(moment.tree, moment.begun, moment.done, deeply=deeply):
            report.variants[moment.variant.split()[0]] += 1
            report.deep += deeply
    except (Broken, DrengineError) as error:
        report.failures.append(f"{where}: {type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 - a traceback is a finding as well
        report.failures.append(f"{where}: TRACEBACK {type(error).__name__}: {error}")


def _results(recording: Recording) -> dict[int, Any]:
    said = b"".join(operation.text for operation in recording.operations if isinstance(operation, Said))
    lines = [json.loads(line) for line in said.splitlines()]
    return {step: result for what, step, result in lines if what == "done"}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="first seed")
    parser.add_argument("--count", type=int, default=1, help="seeds to try, one after the other")
    parser.add_argument("--reorderings", type=int, default=6)
    parser.add_argument("--share", type=float, default=1.0, help="part of the states to judge")
    parser.add_argument("--deep", type=float, default=0.1, help="part of those to go on with and rebuild")
    parser.add_argument("--rounds", type=int, default=12, help="length of the recorded life")
    parser.add_argument("--only", type=int, help="only the states after this operation, deeply")
    parser.add_argument("--encrypted", action="store_true", help="of an encrypted store")
    chosen = parser.parse_args()
    if chosen.encrypted:
        os.environ[ENCRYPTED] = "1"
    with encrypted() if chosen.encrypted else nullcontext():
        return campaign(chosen)


def campaign(chosen: argparse.Namespace) -> int:
    """See main."""
    failed = False
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        with scratch() as directory:
            report = crash(
                record_life(seed, directory, rounds=chosen.rounds),
                directory,
                seed,
                rounds=chosen.rounds,
                reorderings=chosen.reorderings,
                share=chosen.share,
                deep_share=chosen.deep,
                only=chosen.only,
            )
        print(
            f"seed {seed}: {report.operations} operations, {report.states} states {dict(report.variants)},"
            f" {report.deep} deeply, {report.rebuilt} rebuilt, {len(report.failures)} failures,"
            f" {report.seconds:.0f} s",
            flush=True,
        )
        for failure in report.failures:
            print(f"  {failure}")
        failed = failed or bool(report.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
