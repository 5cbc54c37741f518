"""`python -m benchmarks`: measure, print, and leave a JSON file and a page."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import limits, works
from benchmarks.bench import Bench
from benchmarks.page import render
from benchmarks.report import Report, begin
from benchmarks.text import aims_table, limits_text, peak_name, table_text


def main() -> int:
    """Returns 1 when a work failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short round, to see that everything works")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=works.WORKS,
        default=works.WORKS,
        help=", ".join(works.WORKS),
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder of the results")
    parser.add_argument("--scratch", type=Path, default=None, help="folder on the disk to measure (about 20 GiB)")
    parser.add_argument("--image-mib", type=int, default=0, help="size of the copied image; aims are for 2048")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end what was started, as after Ctrl-C
    options.out.mkdir(parents=True, exist_ok=True)
    report = begin(quick=options.quick)
    with tempfile.TemporaryDirectory(prefix="drengine-bench-", dir=options.scratch) as folder:
        bench = Bench(Path(folder), options.quick, options.image_mib)
        _say(f"{report.begun}; {report.machine}; {report.load}")
        report.limits = limits.measure(bench.image, bench.folder)
        report.sync_ms = limits.sync_latency(bench.folder)
        _say(limits_text(report.limits, report.sync_ms))
        for name in options.only:
            _measure(name, bench, report)
            (options.out / "results.json").write_text(report.to_json())
            (options.out / "index.html").write_text(render(report))
            (options.out / "aims.md").write_text(aims_table(report))
    _say(f"results: results.json, aims.md and index.html in {options.out}")
    return 1 if report.failed else 0


def _measure(name: str, bench: Bench, report: Report) -> None:
    bench.target_peaks.clear()
    try:
        tables = works.load(name)(bench)
    except Exception as error:  # noqa: BLE001 - a work that fails is shown, and the others go on
        report.failed[name] = f"{type(error).__name__}: {error}"
        _say(f"{name} FAILED: {report.failed[name]}")
        return
    for table in tables:
        report.tables.append(table)
        _say(table_text(table))
    if bench.target_peaks:
        report.target_peaks[name] = max(bench.target_peaks)
        _say(f"{peak_name(name)}: {report.target_peaks[name] >> 20} MiB")
    os.sync()  # the next one does not pay for this one's dirty pages


def _say(text: str) -> None:
    print(text, end="\n\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
