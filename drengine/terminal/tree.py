"""A tree of lines, as values: what is shown, not how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Branch(NamedTuple):
    """A line as texts with their styles, and what is below it."""

    line: Sequence[tuple[str, str]]
    below: Sequence[Branch] = ()
