"""Whoever does what a runbook's mistake says makes no other mistake in that place."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from drengine.failover.drivers.available import load_drivers
from drengine.failover.reading.fit import join
from drengine.failover.reading.reader import examine
from drengine.failover.runbook.document import Node, parse
from drengine.failover.runbook.findings import Finding, Findings
from tests.failover.runbook.books import WHOLE

NUMBERS = ("120", "2.5")


def texts(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every text of a runbook, with its path."""
    for key, each in (node.entries or {}).items():
        yield from texts(each, join(path, key))
    for number, each in enumerate(node.items or ()):
        yield from texts(each, f"{path}[{number}]")
    if isinstance(node.value, str):
        yield path, node


def replaced(node: Node, text: str) -> str:
    """The runbook with something else in the place of a scalar."""
    lines = WHOLE.splitlines(keepends=True)
    line, column = lines[node.place.line - 1], node.place.column - 1
    quote = line[column] if line[column] in "'\"" else ""
    end = line.index(quote, column + 1) + 1 if quote else column + len(node.written)
    lines[node.place.line - 1] = line[:column] + text + line[end:]
    return "".join(lines)


def mistakes(text: str, path: str) -> list[Finding]:
    """What is said of the value at a path."""
    found = examine(text, drivers=load_drivers()).findings
    return [each for each in found if each.path == path and not each.warning]


def followed(hint: str) -> str:
    """What to write, by a hint."""
    for pattern in (r'Put it in quotes: (".*")\.', r"with its unit: (\w[\w.]*),", r"Write for example (.*)\."):
        if found := re.search(pattern, hint):
            return found[1]
    raise AssertionError(f"nothing to write is in: {hint}")


ROOT = parse(WHOLE, Findings())
assert ROOT is not None
PLACES = {
    path: node
    for path, node in texts(ROOT)
    if "settings" not in path and "drill" not in path and "\n" not in node.written
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("path", PLACES)
def test_a_number_where_a_text_belongs(path: str, number: str) -> None:
    if path.endswith((".modes[0]", ".modes[1]", ".modes[2]", ".on_failure")):
        return  # words: the nearest one is told
    (first,) = mistakes(replaced(PLACES[path], number), path)
    assert first.id == "wrong-type"
    then = mistakes(replaced(PLACES[path], followed(first.hint)), path)
    assert [each for each in then if each.id not in ("unknown-source", "unused-source", "unknown-wave")] == []


def test_there_are_texts_of_every_kind() -> None:
    assert len(PLACES) > 40
    kinds = ("timeout", "rto", "wait", "every", "url", "dsn", "schedule", "driver", "point", "command[0]", "query")
    assert all(any(path.endswith(kind) for path in PLACES) for kind in kinds)
