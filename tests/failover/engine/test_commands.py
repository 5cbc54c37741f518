"""The commands as typed: exit codes for scripts, one JSON object, plain lines, help that needs nothing."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from drengine.cli.main import app
from drengine.failover.errors import NOT_READY
from drengine.process import find_marked
from drengine.terminal import main
from tests.failover.engine.prompt import ASK, Typed, marked


def test_a_drill_that_passes_ends_with_0_and_tells_what_it_measured(typed: Typed) -> None:
    code, told = typed.json("drill", typed.book())
    assert (code, told["outcome"], told["mode"]) == (0, "completed", "drill")
    assert told["rto_seconds"] > 0
    assert told["rpo_known_by"]
    assert {step["status"] for step in told["steps"]} == {"done"}
    assert not find_marked("WHOSE", str(typed.directory)), "the drill left its workload behind"


def test_without_a_terminal_each_step_is_a_line(typed: Typed) -> None:
    code, out, _ = typed("drill", typed.book())
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("drill shop: run ")
    assert any("launch:shop: done in" in line for line in lines)
    assert "\x1b" not in out
    assert any("(RTO)" in line for line in lines)


@pytest.mark.fault(59)
def test_a_secret_that_a_workload_prints_is_kept_nowhere(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "orchestrators-own")
    book = Path(typed.book(run="[sh, -c, 'echo it is $API_TOKEN $AWS_SECRET_ACCESS_KEY; exit 1']"))
    book.write_text(book.read_text().replace("WHOSE:", "API_TOKEN: sesame-open, WHOSE:"))
    code, told = typed.json("drill", str(book))
    assert (code, "it is" in str(told)) == (106, True)
    assert "sesame-open" not in str(told)
    kept = sqlite3.connect(next(typed.directory.glob("state/**/*.sqlite*")))
    journal = str(kept.execute("select payload from journal where event = 'result'").fetchall())
    kept.close()
    assert "it is" in journal
    assert "sesame-open" not in journal
    assert "orchestrators-own" not in journal


def test_what_failed_is_106_and_says_which_step(typed: Typed) -> None:
    code, told = typed.json("drill", typed.book(run="['false']"))
    assert (code, told["state"], told["outcome"]) == (106, "finished", "failed")
    code, _, err = typed("drill", typed.book(run="['false']"))
    assert code == 106
    assert "[run-failed]" in err


@pytest.mark.fault(47)
def test_an_unfenced_source_is_107_and_force_is_told_first(typed: Typed) -> None:
    place = typed.book(fence="")
    code, told = typed.json("failover", place)
    assert (code, told["outcome"]) == (107, "blocked")
    code, out, _ = typed("run", "resume", told["run"], "--force")
    assert code == 0
    told_last = [line for line in out.splitlines() if "NOT FENCED" in line and "fence:shop" not in line]
    assert told_last, out
    code, told = typed.json("run", "show", told["run"])
    assert told["unfenced"] == ["shop"]


def test_an_approval_is_108_until_it_is_given_by_who_may(typed: Typed) -> None:
    typed.know("ann")
    code, told = typed.json("failover", typed.book(before=ASK), "--no-wait")
    assert (code, told["state"], told["waiting_for"]) == (108, "waiting", ["all.before.1"])
    run = told["run"]
    for by, expected in (("", 186), ("vic", 181), ("eve", 111)):
        with typed.acting_as(by):
            code, _, err = typed("approve", run)
            assert code == expected, err
    with typed.acting_as("ann"):
        code, out, _ = typed("approve", run)
    assert code == 0
    assert "ann (login:" in out
    code, told = typed.json("run", "resume", run)
    assert (code, told["outcome"]) == (0, "completed")


def test_an_aborted_run_frees_its_sources(typed: Typed) -> None:
    typed.know("ann")
    place = typed.book(before=ASK)
    run = typed.json("failover", place, "--no-wait")[1]["run"]
    code, _, err = typed("drill", place)
    assert code == 101, err
    code, told = typed.json("abort", run)
    assert (code, told["outcome"]) == (0, "aborted")
    assert typed.json("drill", typed.book())[0] == 0


def test_commit_and_rollback_of_what_is_not_there(typed: Typed) -> None:
    for argv in (("commit", "nope"), ("rollback", "nope"), ("abort", "nope"), ("run", "show", "nope")):
        assert typed(*argv)[0] == 102
    code, told = typed.json("failback", typed.book())
    assert (code, told["error"]) == (110, "run-state")


def test_plan_prints_steps_points_and_time_and_touches_nothing(typed: Typed) -> None:
    code, told = typed.json("plan", typed.book(), "--mode", "failover")
    assert code == 0
    assert [step["id"] for step in told["steps"]][:2] == ["declare", "preflight"]
    assert told["points"]["shop"]["point"] == "1-53"
    assert told["predicted_seconds"] > 0
    assert typed.json("runs")[1] == []
    assert typed("plan", typed.book(), "--mode", "sideways")[0] == 2


def test_runs_lists_what_there_was(typed: Typed) -> None:
    typed("drill", typed.book())
    code, told = typed.json("runs")
    assert (code, told[0]["mode"], told[0]["outcome"]) == (0, "drill", "completed")
    code, out, _ = typed("runs")
    assert "completed" in out


@pytest.mark.parametrize("mode", ["drill", "failover"])
def test_where_workloads_find_their_disks_must_be_known_before_anything_is_done(
    typed: Typed, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    given = ["--store", str(typed.directory / "store"), "--state", str(typed.directory / "state")]
    assert main(app, [mode, typed.book(), *given]) == NOT_READY.exit_code
    assert "export is missing" in capsys.readouterr().out
    run = typed.json("runs")[1][0]["run"]
    steps = typed.json("run", "show", run)[1]["steps"]
    assert [step["status"] for step in steps] == ["done", "failed", *("pending" for _ in steps[2:])]


def test_an_interrupt_ends_the_command_and_the_run_goes_on_when_resumed(typed: Typed) -> None:
    place = typed.book(before="then: [{wait: 1h}]")
    given = ["--store", str(typed.directory / "store"), "--state", str(typed.directory / "state")]
    given += ["--export", f"unix:{typed.directory / 'nbd.sock'}"]
    program = [sys.executable, "-m", "drengine.cli.main", "drill", place, *given]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=marked(typed)) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        run = next(lines).split()[-1]
        assert any("launch:shop: done" in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    code, told = typed.json("abort", run)
    assert (code, told["outcome"]) == (0, "aborted")
    assert told["steps"][-1]["status"] == "done", "it was cleaned up"


@pytest.mark.fault(57)
def test_a_killed_command_is_resumed_by_another_once_its_lease_is_over(typed: Typed) -> None:
    hanging = f"then: [{{command: [sh, -c, 'test -e {typed.directory}/go || sleep 600'], timeout: 60s}}]"
    place = typed.book(before=hanging)
    config = typed.directory / "orchestrator.toml"
    config.write_text('store = "/"\nlease = "2s"\n')
    given = ["--store", str(typed.directory / "store"), "--state", str(typed.directory / "state")]
    given += ["--export", f"unix:{typed.directory / 'nbd.sock'}", "--config", str(config)]
    program = [sys.executable, "-m", "drengine.cli.main", "failover", place, *given]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=marked(typed)) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        run = next(lines).split()[-1]
        assert any("launch:shop: done" in line for line in lines)
        process.kill()
    (typed.directory / "go").touch()
    code, told = typed.json("run", "resume", run, "--config", str(config))
    assert (code, told["outcome"]) == (0, "completed")
    assert {step["id"]: step["attempt"] for step in told["steps"]}["promote:shop"] == 1
    assert len(find_marked("WHOSE", str(typed.directory))) >= 1


COMMANDS = ("plan", "drill", "failover", "migrate", "failback", "reprotect", "runs", "approve", "abort", "commit")
HELP = f"""
import sys
from drengine.cli.main import app
from drengine.failover.errors import NOT_READY
from drengine.terminal import main
for command in {[[each] for each in (*COMMANDS, "rollback")] + [["run", "show"], ["run", "resume"]]!r}:
    assert main(app, [*command, "--help"]) == 0
assert "numpy" not in sys.modules and "sqlalchemy" not in sys.modules
"""


def test_help_needs_neither_numpy_nor_a_database() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == len(COMMANDS) + 3
