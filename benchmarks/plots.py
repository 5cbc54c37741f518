"""Plots as SVG text, one for each table: bars with their spread, ours in colour, aims as ticks."""

from __future__ import annotations

import io

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from benchmarks.results import Table
from benchmarks.text import number

OURS, PEER, AIM = "#0b6e99", "#b8bec4", "#c0392b"
mpl.rcParams["svg.fonttype"] = "none"
mpl.rcParams["font.size"] = 9


def draw(table: Table) -> Canvas:
    """Horizontal bars in the order of the table."""
    figures = table.figures
    canvas = Canvas(figsize=(8.2, 0.9 + 0.34 * len(figures)), layout="constrained")
    axes = canvas.subplots()
    values = [figure.value or 0.0 for figure in figures]
    places = range(len(figures))
    axes.barh(places, values, color=[OURS if figure.ours else PEER for figure in figures], height=0.66)
    aims = [table.aim(figure.name) for figure in figures]
    largest = max([*values, *(run for figure in figures for run in figure.runs), *filter(None, aims), 1e-9])
    for place, figure, aim in zip(places, figures, aims, strict=True):
        if figure.value is None:
            axes.text(
                largest * 0.01,
                place,
                "failed" if "not installed" not in figure.failed else "not installed",
                va="center",
                color=AIM,
            )
            continue
        low, high = min(figure.runs, default=figure.value), max(figure.runs, default=figure.value)
        axes.hlines(place, low, high, color="black", linewidth=1.1)
        axes.text(max(high, figure.value) + largest * 0.012, place, number(figure.value), va="center")
        if aim is not None:
            axes.vlines(aim, place - 0.42, place + 0.42, color=AIM, linewidth=2)
    axes.set_yticks(list(places), [figure.name for figure in figures])
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.13)
    axes.set_xlabel(f"{table.unit}, {'higher' if table.higher_is_better else 'lower'} is better")
    axes.spines[["top", "right"]].set_visible(False)
    return canvas


def svg(table: Table) -> str:
    """The drawing, to be put into a page."""
    text = io.StringIO()
    draw(table).savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
