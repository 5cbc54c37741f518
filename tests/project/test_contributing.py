"""CONTRIBUTING.md says which files to touch: they are there, and each kind of change is named."""

from __future__ import annotations

import re

import pytest

from tests.project.test_project import ROOT

ROWS = re.findall(r"^\| (an? [^|]+?) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
CHANGES = (
    "a tracker",
    "a step kind",
    "a launch driver",
    "a check",
    "a field in a frame",
    "a metric",
    "a command",
    "an error",
    "a storage",
)
GROUPS = re.compile(r"`(drengine\.[a-z_]+)`")


def paths(cell: str) -> list[str]:
    """What the row names: in backticks, or as a link."""
    return [one or other for one, other in re.findall(r"`([^`]+/[^`]*)`|\]\(([^)]+)\)", cell)]


@pytest.mark.parametrize("change", CHANGES)
def test_each_kind_of_change_has_its_row(change: str) -> None:
    assert any(what.startswith(change) for what, _ in ROWS)


@pytest.mark.parametrize(("what", "cell"), ROWS, ids=[what.split(" (")[0] for what, _ in ROWS])
def test_the_files_of_a_change_are_there(what: str, cell: str) -> None:
    assert paths(cell)
    for name in paths(cell):
        assert (ROOT / name).exists(), f"{what}: {name}"


def test_each_plug_in_has_its_group_of_entry_points_or_a_registry_that_reads_it() -> None:
    sources = "\n".join(path.read_text() for path in [*ROOT.glob("drengine/**/*.py"), *ROOT.glob("agents/**/*.py")])
    groups = [group for what, _ in ROWS for group in GROUPS.findall(what)]
    assert len(groups) == 4
    for group in groups:
        assert f'"{group}"' in sources, group
