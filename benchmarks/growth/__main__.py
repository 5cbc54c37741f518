"""`python -m benchmarks.growth`: what a store costs at 10, 100 and 1,000 sources; figures as JSON, curves as SVG."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks.growth import plots
from benchmarks.growth.measure import Figures, measure
from benchmarks.growth.prices import Policy, Prices, requests_a_day
from benchmarks.growth.shape import Shape
from benchmarks.report import begin

SIZES = (10, 100, 1000)
QUICK_SIZES = (2, 4)
QUICK = Shape(copied_bytes=1 << 30, changed_bytes=8 << 30)
POLICIES = {"object": Policy(acks_objects=True), "local": Policy(acks_objects=False)}


def main() -> int:
    """Measure each size in a process of its own, smallest first, and leave what was found after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sources and few: to see that everything works")
    parser.add_argument("--sources", type=int, nargs="+", default=None, help="sizes; 10 100 1000 by default")
    parser.add_argument("--out", type=Path, default=Path("growth-results"), help="folder of the results")
    parser.add_argument("--scratch", type=Path, default=None, help="folder on the disk to measure (2 GiB)")
    parser.add_argument("--before", type=Path, default=None, help="results of an earlier version, drawn beside")
    parser.add_argument("--catalogue", default="", help="URL of an empty PostgreSQL database; else SQLite")
    parser.add_argument("--no-compaction", action="store_true", help="leave the passes of compaction out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    shape = QUICK if options.quick else Shape()
    before = _read(options.before) if options.before else {}
    results: dict[int, Figures] = {}
    report = begin(quick=options.quick)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="drengine-growth-", dir=options.scratch) as folder:
        for sources in options.sources or (QUICK_SIZES if options.quick else SIZES):
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                compacts, url = not options.no_compaction, options.catalogue
                task = process.submit(measure, Path(folder), shape, sources, compacts=compacts, catalogue=url)
                results[sources] = task.result()
            for name, value in results[sources].items():
                print(f"{sources:5} sources  {name:28} {value:,.6g}", flush=True)
            found = {
                "begun": report.begun,
                "machine": report.machine,
                "load": report.load,
                "shape": asdict(shape),
                "prices": asdict(Prices()),
                "sizes": {str(size): figures for size, figures in results.items()},
                "a_day": {
                    str(size): {ack: _a_day(figures, shape, policy) for ack, policy in POLICIES.items()}
                    for size, figures in results.items()
                },
            }
            (options.out / "growth.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            plots.draw(options.out, results, before)
    return 0


def _a_day(figures: Figures, shape: Shape, policy: Policy) -> Figures:
    found, prices = requests_a_day(figures, shape, policy), Prices()
    return {
        **found,
        "requests_dollars_day": prices.requests_day(found["puts"], found["gets"]),
        "storage_dollars_month": prices.storage_month(figures["stored_bytes"]),
    }


def _read(path: Path) -> dict[int, Figures]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {int(size): figures for size, figures in found["sizes"].items()}


if __name__ == "__main__":
    sys.exit(main())
