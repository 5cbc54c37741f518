"""Output at a terminal, by rich: tables, progress, trees. Imported only where somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from drengine.terminal.streams import printable, styled
from drengine.terminal.tree import Branch

HEADING = "bold cyan"
TICKS_PER_SECOND = 8


FIRM_CHARACTERS_MAX = 26
"""A column with no longer cells (ids, times, sizes) is never folded, and neither is the first."""
FOLDED_CHARACTERS_MIN = 20


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", styles: Sequence[str] = ()
) -> None:
    """See `output.show_table`: ruled where there is room for it, with texts folded where that is enough, else a few
    lines for each row. Nothing is cut off."""
    console = _console()
    widths = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    words = [max(_longest_word(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    least = [
        width if at == 0 or width <= FIRM_CHARACTERS_MAX else max(FOLDED_CHARACTERS_MIN, word)
        for at, (width, word) in enumerate(zip(widths, words, strict=True))
    ]
    if sum(least) + 3 * len(least) + 1 > console.width:
        _print_flowing(console, headings, rows, title, styles)
        return
    table = Table(title=title or None, header_style=HEADING, title_justify="left")
    for heading, width, natural in zip(headings, least, widths, strict=True):
        table.add_column(heading, min_width=width, no_wrap=width == natural, overflow="fold")
    for row, style in zip_longest(rows, styles, fillvalue=""):
        table.add_row(Text(row[0], style=style), *(Text(cell) for cell in row[1:]))
    console.print(table)


def _longest_word(cell: str) -> int:
    """A run's id, a command, a path: what nobody could copy if it were broken in two."""
    return max(map(cell_len, cell.split()), default=0)


def _print_flowing(
    console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], title: str, styles: Sequence[str]
) -> None:
    """Each row as its first cell and then, as many as fit in a line, the others with their headings."""
    if title:
        console.print(Text(title, style="italic"), soft_wrap=True)
    for row, style in zip_longest(rows, styles, fillvalue=""):
        line = Text(row[0], style=style or "bold")
        for heading, cell in zip(headings[1:], row[1:], strict=True):
            if not cell:
                continue
            part = Text.assemble((heading, HEADING), " ", cell)
            if line.cell_len + 2 + part.cell_len > console.width:
                console.print(line, soft_wrap=True)
                line = Text()
            line = Text.assemble(line, "  ", part)
        console.print(line, soft_wrap=True)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """See `output.progress_bar`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=styled(sys.stderr))) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def live(draw: Callable[[], Branch]) -> Live:
    """See `output.live_tree`."""
    return Live(get_renderable=lambda: _grown(draw()), refresh_per_second=TICKS_PER_SECOND, console=_console())


def _console() -> Console:
    return Console(file=styled(sys.stdout))


def _grown(branch: Branch) -> Tree:
    tree = Tree(Text.assemble(*((printable(text), style) for text, style in branch.line)))
    tree.children += [_grown(each) for each in branch.below]
    return tree


class Screen:
    """What a terminal can show."""

    table = staticmethod(print_table)
    bar = staticmethod(bar)
    live = staticmethod(live)
