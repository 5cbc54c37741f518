"""Curves against the number of sources, as SVG: what was measured now, and, dashed, before something was mended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

Results = Mapping[int, Mapping[str, float]]
"""Figures by number of sources."""

PLOTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "start": (
        "Start of a target, and what it asks again and again",
        "seconds",
        ("open", "load", "figures", "fleet", "set_aside"),
    ),
    "passes": ("A turn of maintenance", "seconds", ("retention", "retention_with_manifests", "compaction", "judging")),
    "one": ("Of one source in a store of many", "seconds", ("commit", "takeover", "point", "reference_commit")),
    "written": (
        "Written by a turn of maintenance",
        "bytes",
        ("retention_with_manifests_written", "manifest_written"),
    ),
    "size": ("Catalogue, memory of the process, page of metrics", "bytes", ("catalogue", "resident", "metrics")),
}
"""By file: title, unit (which ends a figure's name), and figures."""
_COLOURS = ("#0b6e99", "#c0392b", "#1e7d34", "#8e6c0b", "#6b4c9a")
mpl.rcParams["svg.fonttype"] = "none"
mpl.rcParams["svg.hashsalt"] = "drengine"
mpl.rcParams["font.size"] = 9


def draw(folder: Path, now: Results, before: Results) -> list[Path]:
    """Write all plots into a folder."""
    return [_draw(folder / f"{name}.svg", *PLOTS[name], now, before) for name in PLOTS]


def _draw(path: Path, title: str, unit: str, names: Sequence[str], now: Results, before: Results) -> Path:
    canvas = Canvas(figsize=(6.4, 3.6), layout="constrained")
    axes = canvas.subplots()
    for name, colour in zip(names, _COLOURS, strict=False):
        key = f"{name}_{unit}"
        for results, style in ((now, "o-"), (before, "x--")):
            sizes = [size for size in sorted(results) if results[size].get(key)]
            if sizes:
                label = f"{name.replace('_', ' ')}{' (before)' if results is before else ''}"
                axes.plot(
                    sizes, [results[size][key] for size in sizes], style, color=colour, label=label, linewidth=1.3
                )
    axes.set(xscale="log", yscale="log", xlabel="sources", ylabel=unit, title=title)
    axes.grid(visible=True, which="major", color="#dde2e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(loc="outside right upper", frameon=False)
    canvas.savefig(path, format="svg", metadata={"Date": None})
    return path
