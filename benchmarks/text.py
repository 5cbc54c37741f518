"""The tables for people, in plain text."""

from __future__ import annotations

from benchmarks.report import Report
from benchmarks.results import Figure, Table

_UNIT_OF_LIMITS = 1e9


def limits_text(limits: dict[str, float], sync_ms: dict[str, float]) -> str:
    """The machine's limits, in GB/s and milliseconds."""
    width = max(map(len, [*limits, *map(sync_name, sync_ms)]), default=0)
    rows = [f"  {name:<{width}}  {value / _UNIT_OF_LIMITS:6.2f} GB/s" for name, value in limits.items()]
    rows += [f"  {sync_name(name):<{width}}  {value:6.2f} ms" for name, value in sync_ms.items()]
    return "\n".join(["Limits of this machine, in this run", *rows])


def sync_name(rank: str) -> str:
    """What a rank of the sync latency is called."""
    return f"4 KiB and fdatasync, {rank}"


def table_text(table: Table) -> str:
    """One table: value, ratio to the baseline, spread, bytes, aim, remark of the row."""
    width = max(len(figure.name) for figure in table.figures)
    better = "higher" if table.higher_is_better else "lower"
    lines = [f"{table.title}  [{table.unit}, {better} is better]"]
    lines += [_row(table, figure, width) for figure in table.figures]
    if table.remark:
        lines.append(f"  ({table.remark})")
    return "\n".join(lines)


def _row(table: Table, figure: Figure, width: int) -> str:
    mark = "*" if figure.ours else " "
    if figure.value is None:
        return f"{mark} {figure.name:<{width}}  FAILED: {figure.failed}"
    ratio = table.ratio(figure)
    parts = [
        f"{mark} {figure.name:<{width}}  {number(figure.value):>9}",
        f"x {ratio:<6.2f}" if ratio is not None else " " * 8,
    ]
    if len(figure.runs) > 1:
        parts.append(f"[{number(min(figure.runs))} - {number(max(figure.runs))}]")
    if figure.wire_bytes is not None:
        parts.append(f"{figure.wire_bytes / 1e6:,.1f} MB")
    if table.aim(figure.name) is not None:
        parts.append(f"aim {aim_text(table, figure)}")
    return "  ".join(parts) + (f"  {figure.note}" if figure.note else "")


def aim_text(table: Table, figure: Figure) -> str:
    """An aim, and how a row stands to it; a share with the share that was reached."""
    aim, share, speed = table.aim(figure.name), table.shares.get(figure.name), table.speed(figure)
    assert aim is not None
    text = f"{number(aim)}: {table.verdict(figure)}"
    if share and speed is not None:
        text += f" ({speed:.2f} of the speed of {share.of}, wanted {share.least:g})"
    return text


def peak_name(work: str) -> str:
    """What a work's largest target is called."""
    return f"target's peak resident memory, {work}"


def aims_table(report: Report) -> str:
    """Every row that has an aim, as the Markdown table of docs/benchmarks.md."""
    lines = ["| work | drengine | beside | ratio | aim | |", "|---|---|---|---|---|---|"]
    for table in report.tables:
        for figure in table.figures:
            if table.aim(figure.name) is None:
                continue
            share, speed = table.shares.get(figure.name), table.speed(figure)
            peer = f"{number(table.value(share.of) or 0)} {table.unit}, {share.of}" if share else ""
            ours = "failed" if figure.value is None else f"{number(figure.value)} {table.unit}"
            ratio = f"{speed:.2f}" if speed is not None else ""
            aim = f">= {share.least:g}" if share else f"{number(table.aims[figure.name])} {table.unit}"
            cells = (f"{table.title}: {figure.name}", ours, peer, ratio, aim, table.verdict(figure))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| work | target's peak resident memory |", "|---|---|"]
    lines += [f"| {name} | {value >> 20} MiB |" for name, value in report.target_peaks.items()]
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """A few significant digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" if value >= 1 else f"{value:.3f}"
