"""One HTML page with everything in it: no scripts, no links to elsewhere."""

from __future__ import annotations

from html import escape

from benchmarks.plots import svg
from benchmarks.report import Report
from benchmarks.results import Figure, Table
from benchmarks.text import aim_text, number, peak_name, sync_name

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1d252c }
body { background: #fff }
h1 { font-size: 1.6rem }
h2 { font-size: 1.15rem; margin-top: 2.4rem; border-top: 1px solid #dde2e6; padding-top: 1rem }
table { border-collapse: collapse; width: 100%; font-size: .87rem }
td, th { padding: .25rem .6rem; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #1d252c }
tr + tr td { border-top: 1px solid #eceff1 }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.ours { font-weight: 600; color: #0b6e99 }
.met { color: #1e7d34; white-space: nowrap }
.short { color: #c0392b; white-space: nowrap }
.failed { color: #c0392b }
.remark { color: #5b6770; font-size: .87rem }
svg { max-width: 100%; height: auto }
"""
_HEADS = "<tr><th><th class=n>{unit}<th class=n>ratio<th class=n>runs<th class=n>on the wire<th>aim<th>"
_QUICK = "<p class=failed>A quick round: it shows that everything works; its figures mean little."


def render(report: Report) -> str:
    """The page."""
    limits = "".join(
        f"<tr><td>{escape(name)}<td class=n>{value / 1e9:.2f} GB/s" for name, value in report.limits.items()
    )
    limits += "".join(
        f"<tr><td>{escape(sync_name(name))}<td class=n>{value:.2f} ms" for name, value in report.sync_ms.items()
    )
    limits += "".join(
        f"<tr><td>{escape(peak_name(name))}<td class=n>{value >> 20} MiB" for name, value in report.target_peaks.items()
    )
    sections = "".join(_section(table) for table in report.tables)
    failures = "".join(f"<p class=failed>{escape(name)} failed: {escape(why)}" for name, why in report.failed.items())
    quick = _QUICK if report.quick else ""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>drengine benchmarks</title><style>{_STYLE}</style><h1>drengine benchmarks</h1>"
        f"<p>{escape(report.begun)}; {escape(report.machine)}; {escape(report.load)}.{quick}"
        "<p class=remark>Bars are medians; black lines span all runs; red ticks are aims; ours are blue. "
        "Ratios are to the row marked 1.00. Trust ratios inside a table, not absolute values."
        f"{failures}<h2>Limits of this machine in this run, and memory of the target</h2><table>{limits}</table>"
        f"{sections}</html>\n"
    )


def _section(table: Table) -> str:
    rows = "".join(_row(table, figure) for figure in table.figures)
    return (
        f"<h2 id={table.name}>{escape(table.title)}</h2>{svg(table)}"
        f"<table>{_HEADS.format(unit=escape(table.unit))}{rows}</table>"
        f"<p class=remark>{escape(table.remark)}"
    )


def _row(table: Table, figure: Figure) -> str:
    name = f"<td class={'ours' if figure.ours else 'peer'}>{escape(figure.name)}"
    if figure.value is None:
        return f"<tr>{name}<td class=failed colspan=6>{escape(figure.failed)}"
    ratio, aim = table.ratio(figure), table.aim(figure.name)
    spread = f"{number(min(figure.runs))} - {number(max(figure.runs))}" if len(figure.runs) > 1 else ""
    wire = f"{figure.wire_bytes / 1e6:,.1f} MB" if figure.wire_bytes is not None else ""
    verdict = f"<td class={table.verdict(figure)}>{aim_text(table, figure)}" if aim is not None else "<td>"
    return (
        f"<tr>{name}<td class=n>{number(figure.value)}<td class=n>{'' if ratio is None else f'{ratio:.2f}'}"
        f"<td class=n>{spread}<td class=n>{wire}{verdict}<td class=remark>{escape(figure.note)}"
    )
