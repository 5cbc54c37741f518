"""What trials measured over time, as a plot for each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw(name: str, series: Mapping[str, Sequence[tuple[float, float]]], folder: Path) -> Path:
    """A panel for each series, all on one scale; the SVG file it is in."""
    canvas = Figure(figsize=(8.2, 0.6 + 1.6 * len(series)), layout="constrained")
    panels = canvas.subplots(len(series), sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (title, points) in zip(panels, series.items(), strict=True):
        panel.plot(*zip(*points, strict=True), color="#0b6e99", linewidth=1.2)
        panel.set_title(title, loc="left", fontsize=9)
        panel.set_ylabel("age, s")
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("seconds under load")
    canvas.suptitle(f"Age of the newest recovery point: {name}", fontsize=10, x=0.01, ha="left")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    canvas.savefig(path)
    return path
