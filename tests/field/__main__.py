"""`make field`: run the trials one after another, each in a process and a folder of its own, and say which held.

Exit status 1 when one did not hold. A trial is ended when its time is up. Processes, mounts and loop devices that it
leaves behind are removed, and are a failure too.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drengine.process import end_marked, find_marked
from drengine.process.environment import PASS_VARIABLE
from tests.field.trial import Trial, all_trials

MARK = "DRENGINE_FIELD"
GRACE_SECONDS = 30.0
SHOWN_CHARACTERS = 3000
SAID_CHARACTERS = 300


@dataclass
class Outcome:
    """How a trial ended.

    Attributes:
        verdict: `held`, `FAILED` or `skipped`.
        measured: figures, by what they are of.
        series: what was measured over time, by what it is of: pairs of seconds and a value.
        said: why it failed or was skipped.
    """

    name: str
    verdict: str
    seconds: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    said: str = ""


def main() -> int:
    """Run what was asked for; 1 when something did not hold, 2 when nothing is called so."""
    parser = argparse.ArgumentParser(prog="make field", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the trials, run none")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a trial's name, or a part of it")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--scale", type=float, default=1.0, help="how much of everything: 10 for a long night")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw what was measured over time, as SVG files")
    parser.add_argument("--keep", action="store_true", help="leave the folders of trials that failed")
    options = parser.parse_args()
    chosen = [each for each in all_trials() if not options.only or any(part in each.name for part in options.only)]
    if not chosen:
        parser.error(f"no trial is called {', '.join(options.only)}; --list lists them")
    if options.list:
        _list(chosen, as_json=options.json)
        return 0
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}, {len(chosen)} trials", file=sys.stderr, flush=True)
    outcomes = []
    for each in chosen:
        print(f"  {each.name} ...", file=sys.stderr, flush=True)
        outcomes.append(_run(each, seed, options.scale, keep=options.keep))
        why = f"  {outcomes[-1].said[:SAID_CHARACTERS]}" if outcomes[-1].said else ""
        print(f"  {outcomes[-1].verdict:8} {outcomes[-1].seconds:6.1f} s{why}", file=sys.stderr, flush=True)
        if options.plots and outcomes[-1].series:
            print(f"  {_draw(outcomes[-1], options.plots)}", file=sys.stderr, flush=True)
    failed = [each for each in outcomes if each.verdict == "FAILED"]
    if options.json:
        print(json.dumps({"seed": seed, "scale": options.scale, "trials": [asdict(each) for each in outcomes]}))
    else:
        _print(outcomes, seed)
    return 1 if failed else 0


def _draw(outcome: Outcome, folder: Path) -> Path:
    from tests.field.plots import draw  # matplotlib takes a second to come in

    return draw(outcome.name, outcome.series, folder)


def _list(chosen: list[Trial], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"name": each.name, "story": each.story} for each in chosen]))
        return
    for each in chosen:
        print(f"{each.name}\n    {each.story}")


def _run(chosen: Trial, seed: int, scale: float, *, keep: bool) -> Outcome:
    """One trial in a process of its own, and everything that it left behind removed."""
    folder = Path(tempfile.mkdtemp(prefix="dr-field-"))  # short, for sockets
    folder.chmod(0o755)  # for service users
    token, passed = secrets.token_hex(8), f"PYTHONPATH {MARK}"
    its_seed = zlib.crc32(f"{seed}/{chosen.name}".encode())  # the same for one trial alone as for all
    argv = [sys.executable, "-m", "tests.field.ground", chosen.name, str(folder), str(its_seed), str(scale)]
    begun = time.monotonic()
    with (folder / "trial.log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {MARK: token, PASS_VARIABLE: passed},
        )
        in_time = _wait(process, chosen.seconds_max * max(1.0, scale))
    outcome = _outcome(chosen.name, folder, in_time=in_time)
    outcome.seconds = round(time.monotonic() - begun, 1)
    left = _clean_up(folder, token)
    if left and outcome.verdict == "held":
        outcome.verdict, outcome.said = "FAILED", f"left behind: {'; '.join(left)}"
    if outcome.verdict == "FAILED" and keep:
        outcome.said += f"\nfolder {folder}"
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it ended in time; otherwise it is asked to, so that it can clean up, and then made to."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return False
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait(GRACE_SECONDS)
        raise
    return True


def _outcome(name: str, folder: Path, *, in_time: bool) -> Outcome:
    try:
        found = json.loads((folder / "outcome.json").read_text())
    except (OSError, ValueError):
        said = (folder / "trial.log").read_text(errors="replace")[-SHOWN_CHARACTERS:]
        return Outcome(name, "FAILED", said=said or "it ended without a word")
    if not in_time and found["verdict"] != "FAILED":
        found["verdict"] = "FAILED"
        found["said"] = "its time was up"
    return Outcome(name, **found)


def _clean_up(folder: Path, token: str) -> list[str]:
    """End marked processes, take mounts and loop devices of the folder away; what there was."""
    left = []
    for number in find_marked(MARK, token):
        words = Path(f"/proc/{number}/cmdline")
        if words.exists():
            left.append(words.read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120])
    end_marked(MARK, token, grace_seconds=2.0)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([each for each in mounts if each.startswith(f"{folder}/")]):
        left.append(f"mount {mount}")
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    if shutil.which("losetup"):
        command = ["losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"]
        listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
        for device in [line.split()[0] for line in listed.splitlines() if f" {folder}/" in line]:
            left.append(f"loop device {device}")
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)
    return left


def _print(outcomes: list[Outcome], seed: int) -> None:
    width = max(len(each.name) for each in outcomes)
    for each in outcomes:
        figures = ", ".join(f"{name} {value}" for name, value in each.measured.items())
        print(f"{each.name:{width}}  {each.verdict:8}{each.seconds:7.1f} s  {figures}")
    for each in outcomes:
        if each.said:
            print(f"\n{each.name}: {each.said.strip()[-SHOWN_CHARACTERS:]}")
    counts = {verdict: sum(each.verdict == verdict for each in outcomes) for verdict in ("held", "FAILED", "skipped")}
    total = sum(each.seconds for each in outcomes)
    print(f"\n{', '.join(f'{count} {verdict}' for verdict, count in counts.items())} in {total:.0f} s (seed {seed})")


if __name__ == "__main__":
    sys.exit(main())
