"""`make demo`: play the story and print it, for people or as one JSON object."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from demo.disks import MissingTool
from demo.outcome import Outcome
from demo.site import StoryFailed
from demo.story import Story


def main() -> int:
    """Run the demo; the exit status is 0 only when everything is as it should be."""
    parser = argparse.ArgumentParser(
        prog="make demo", description="Replication, drill, disaster, failover, and the way home."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--seed", type=int, help="repeat a run's order of writes")
    parser.add_argument(
        "--guarded", action="store_true", help="everything on: enrolment, TLS, identities, signed orders, encryption"
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder with store, logs and disks")
    options = parser.parse_args()
    begun = time.monotonic()

    def tell(act: str, what: str) -> None:
        if not options.json:
            print(f"{time.monotonic() - begun:6.1f} s  {act:14}{what}", flush=True)

    folder = Path(tempfile.mkdtemp(prefix="drengine-demo-"))
    story = Story(folder, seed=options.seed, tell=tell, guarded=options.guarded)
    try:
        outcome = story.play()
    except (StoryFailed, MissingTool) as failure:
        outcome = story.outcome
        outcome.problems.append(str(failure))
    except KeyboardInterrupt:
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps({"ok": outcome.ok, **asdict(outcome)}))
    else:
        _print_summary(outcome, folder if options.keep else None)
    return 0 if outcome.ok else 1


def _print_summary(outcome: Outcome, kept: Path | None) -> None:
    colours = sys.stdout.isatty()
    good, bad, plain = ("\x1b[32m", "\x1b[1;31m", "\x1b[0m") if colours else ("", "", "")

    def verdict(value: bool) -> str:
        return f"{good}yes{plain}" if value else f"{bad}NO{plain}"

    lost = outcome.acknowledged_writes - outcome.recovered_writes
    rows = (
        ("drill passed, nothing changed by it", verdict(outcome.drill_ok)),
        ("failover completed", verdict(outcome.failover_ok)),
        ("source was fenced", verdict(outcome.fenced)),
        ("recovered disks are a prefix of the writes", verdict(outcome.prefix_intact and outcome.older_prefix_intact)),
        ("file system is clean", verdict(outcome.filesystem_clean)),
        ("old source was refused when it came back", verdict(outcome.stale_source_refused)),
        ("failback completed, the shop is home", verdict(outcome.failback_ok)),
        ("writes acknowledged, recovered, lost", f"{outcome.acknowledged_writes}, {outcome.recovered_writes}, {lost}"),
        (
            "orders confirmed, recovered, at home again",
            f"{outcome.confirmed_orders}, {outcome.recovered_orders}, {outcome.orders_home}",
        ),
        ("lost although older than promised", str(outcome.lost_writes_beyond_rpo)),
        ("data lost (RPO): promised, seen", f"{outcome.rpo_seconds:.3f} s, {outcome.lost_seconds:.3f} s"),
        (
            "declaration to checked (RTO)",
            f"{outcome.rto_seconds:.3f} s (in the drill {outcome.drill_rto_seconds:.3f} s)",
        ),
        ("recovery points to choose from", str(outcome.points)),
        ("an older point readable after", f"{outcome.read_seconds:.3f} s"),
        ("initial sync", f"{outcome.initial_sync_seconds:.2f} s"),
        ("read, on the wire", f"{outcome.bytes_read / 2**20:.1f} MiB, {outcome.bytes_on_wire / 2**20:.1f} MiB"),
        ("shipped back", f"{outcome.failback_bytes_shipped / 2**20:.2f} MiB"),
        ("report", outcome.report or "none"),
        *([("nothing of the disks in clear", verdict(not outcome.in_clear))] if outcome.guarded else []),
    )
    print()
    for label, value in rows:
        print(f"  {label:46}{value}")
    for problem in outcome.problems:
        print(f"{bad}  problem: {problem}{plain}")
    print(f"  seed {outcome.seed}" + (f", everything is in {kept}" if kept else ""))


if __name__ == "__main__":
    sys.exit(main())
