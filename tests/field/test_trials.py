"""`make field` runs the trials; here it is only made sure that they are all there and can be listed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.field import trials
from tests.field.trial import all_trials

ROOT = Path(__file__).parents[2]
FOLDER = Path(trials.__file__).parent


def listed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.field", "--list", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_module_holds_trials_and_each_has_a_name_of_its_own() -> None:
    found = all_trials()
    modules = {each.run.__module__.rpartition(".")[2] for each in found}
    assert modules == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert len({each.name for each in found}) == len(found)


def test_the_page_names_each_trial_and_the_runner_lists_it() -> None:
    names = [each.name for each in all_trials()]
    page = (ROOT / "docs/faults.md").read_text()
    assert [name for name in names if f"| `{name}` |" not in page] == []
    assert [each["name"] for each in json.loads(listed("--json").stdout)] == names
    shown = listed().stdout
    assert [name for name in names if name not in shown] == []


def test_a_name_that_no_trial_has_is_an_error_and_never_a_success() -> None:
    done = listed("--only", "no-such-trial")
    assert done.returncode == 2
    assert "no-such-trial" in done.stderr
