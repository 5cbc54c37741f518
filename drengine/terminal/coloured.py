"""Output at a terminal, by rich: tables and progress. Imported only where somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest

from rich.console import Console
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


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", styles: Sequence[str] = ()
) -> None:
    """See `output.show_table`."""
    table = Table(title=title or None, header_style="bold cyan", title_justify="left")
    for heading in headings:
        table.add_column(heading)
    for row, style in zip_longest(rows, styles, fillvalue=""):
        table.add_row(Text(row[0], style=style), *(Text(cell) for cell in row[1:]))
    Console().print(table)


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
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
