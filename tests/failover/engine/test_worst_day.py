"""What a person meets at 3 a.m.: whole ids, the next command, the truth about who stands fenced and who serves."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.control.messages import Verb
from drengine.failover.measure import measure
from drengine.failover.run import Outcome, RequestKind, RunState
from drengine.failover.runbook.values import Mode, Step
from drengine.failover.steps.kinds import step_kinds
from drengine.process import find_marked
from drengine.terminal import main
from tests.failover.engine.keeper import MemoryKeeper
from tests.failover.engine.prompt import Typed, marked
from tests.failover.engine.runs import carry_out, executor, seen, way_home
from tests.failover.engine.world import World, runbook

COLUMNS = 80
ID = re.compile(r"\d{8}T\d{6}-[a-z0-9.-]+-[0-9a-f]{4}(?![0-9a-f])")
LONG = "shop-of-the-northern-warehouse-and-its-web-front"


def at_terminal(typed: Typed, *argv: str, answer: str = "", interrupt_at: str = "") -> tuple[int, str]:
    """A command typed at a terminal of 80 columns: its exit code, and all that it showed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    given = ["--store", str(typed.directory / "store")]
    if argv[0] not in ("branches", "grant"):
        given += ["--state", str(typed.directory / "state")]
    if argv[0] in ("drill", "failover", "rollback", "abort"):
        given += ["--export", f"unix:{typed.directory / 'nbd.sock'}"]
    program = [sys.executable, "-m", "drengine.cli.main", *argv, *given]
    environment = {**marked(typed), "TERM": "xterm", "COLUMNS": "", "DRENGINE_TOKEN": ""}
    del environment["COLUMNS"]
    with subprocess.Popen(
        program, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        if answer:
            os.write(ours, f"{answer}\n".encode())
        shown = ""
        for part in _read(ours):
            shown += part
            if interrupt_at and interrupt_at in shown:
                process.send_signal(2)
                interrupt_at = ""
        code = process.wait(60)
    os.close(ours)
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "")


def _read(descriptor: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character
    while True:
        try:
            part = os.read(descriptor, 1 << 16)
        except OSError:  # its other end was closed
            return
        if not part:
            return
        yield decoder.decode(part)


def renamed(typed: Typed, place: str, name: str) -> str:
    """The same runbook under another name."""
    book = Path(place)
    book.write_text(book.read_text().replace("name: shop\n", f"name: {name}\n", 1))
    return place


def lines_with(out: str, words: str) -> list[str]:
    return [line for line in out.splitlines() if words in line]


def test_ids_are_whole_in_every_table_at_80_columns_and_in_a_pipe(typed: Typed) -> None:
    run = typed.json("failover", renamed(typed, typed.book(), LONG))[1]["run"]
    assert len(run) > 60
    for argv in (("runs",), ("run", "show", run), ("reports", "list"), ("branches",)):
        code, shown = at_terminal(typed, *argv)
        assert code == 0, shown
        assert lines_with(shown, run), f"{argv}: {shown}"
    for argv in (("runs",), ("run", "show", run)):
        assert run in typed(*argv)[1]


def test_last_stands_for_the_newest_run_wherever_an_id_does(typed: Typed) -> None:
    assert typed("run", "show", "last")[0] == 102
    run = typed.json("failover", typed.asking(), "--no-wait")[1]["run"]
    assert typed.json("run", "show", "last")[1]["run"] == run
    with typed.acting_as("ann"):
        assert typed.json("approve", "last")[1]["run"] == run
    assert typed.json("run", "resume", "last")[1]["outcome"] == "completed"
    output = typed.directory / "report.html"
    given = ["--store", str(typed.directory / "store"), "--state", str(typed.directory / "state")]
    assert main(app, ["reports", "export", "last", "--output", str(output), *given]) == 0
    assert run in output.read_text()
    code, out, _ = typed("commit", "last")
    assert (code, f"{run} is committed" in out) == (0, True)
    code, _, err = typed("rollback", "last", "--yes")
    assert (code, run in err) == (110, True)
    code, _, err = typed("abort", "last")
    assert (code, run in err) == (110, True)


def test_a_finished_failover_prints_what_can_be_typed_next(typed: Typed) -> None:
    code, out, _ = typed("failover", typed.book())
    run = ID.findall(out)[0]
    assert code == 0
    assert lines_with(out, f"drengine commit {run}")
    assert lines_with(out, f"drengine rollback {run}")
    _, out, _ = typed("run", "show", run)
    assert lines_with(out, f"drengine rollback {run}")
    _, out, _ = typed("commit", run)
    assert lines_with(out, "drengine failback shop")
    assert not lines_with(out, f"drengine rollback {run}")


def test_errors_name_the_run_itself_and_never_a_placeholder(typed: Typed) -> None:
    code, out, err = typed("failover", typed.book(fence=""))
    run = ID.findall(out)[0]
    assert (code, f"drengine run resume {run}" in err) == (107, True)
    assert lines_with(out, f"drengine rollback {run}")
    for argv in (("commit", run), ("approve", run), ("rollback", run, "--yes"), ("approve", run)):
        _, _, err = typed(*argv)
        assert not re.search(r"\bRUN\b", err), err
    code, _, err = typed("failover", typed.asking(), "--no-wait")
    assert (code, re.search(r"\bRUN\b", err)) == (108, None)
    run = typed.json("runs")[1][0]["run"]
    code, _, err = typed("approve", run)
    assert (code, f"drengine run show {run}" in err) == (186, True)
    code, _, err = typed("drill", typed.book())
    assert (code, f"drengine abort {run}" in err) == (101, True)


def test_the_live_view_and_ctrl_c_tell_the_id(typed: Typed) -> None:
    place = renamed(typed, typed.book(before="then: [{wait: 1h}]"), LONG)
    code, shown = at_terminal(typed, "drill", place, interrupt_at="wait 1h")
    run = typed.json("runs")[1][0]["run"]
    assert code == 130, shown
    assert lines_with(shown, f"run {run}"), shown
    assert lines_with(shown.replace("\n", ""), f"drengine run resume {run}"), shown
    code, told = typed.json("abort", run)
    assert (code, told["outcome"]) == (0, "aborted")


def test_a_second_failover_of_what_runs_here_asks(typed: Typed) -> None:
    place = typed.book()
    first = typed.json("failover", place)[1]["run"]
    (workload,) = find_marked("WHOSE", str(typed.directory))
    code, told = typed.json("failover", place)
    assert (code, told["error"], first in told["message"]) == (220, "failed-over-already", True)
    for answer, expected in (("n", 220), ("", 220)):
        code, shown = at_terminal(typed, "failover", place, answer=answer or "no")
        assert (code, "[y/N]" in shown) == (expected, True), shown
    assert find_marked("WHOSE", str(typed.directory)) == [workload], "nothing was stopped"
    code, told = typed.json("failover", place, "--again")
    assert (code, told["outcome"]) == (0, "completed")
    code, shown = at_terminal(typed, "failover", place, answer="y")
    assert code == 0, shown
    assert workload not in find_marked("WHOSE", str(typed.directory))


async def test_a_blocked_failover_says_which_agents_it_stopped_and_a_rollback_releases_them(tmp_path: Path) -> None:
    world, keeper, book = World(tmp_path, "shop", "web"), MemoryKeeper(), runbook("shop", "web")
    world.sources["web"].cut_off()
    record, snapshot = await carry_out(world, keeper, Mode.FAILOVER, book)
    assert (record.state, record.outcome) == (RunState.STOPPED, Outcome.BLOCKED)
    assert world.sources["shop"].fenced
    assert measure(snapshot).left_fenced == ("shop",), "the other one's agent was not told"
    keeper.request(record.id, RequestKind.ROLLBACK, "", "ann")
    record = await executor(world, keeper, book).execute(record.id)
    assert record.outcome is Outcome.ROLLED_BACK
    assert (world.sources["shop"].serving, world.sources["shop"].fenced) == (True, False)
    assert measure(seen(keeper, record.id)).left_fenced == ()


@pytest.mark.parametrize("reachable", [True, False])
async def test_an_agent_that_only_watches_its_disks_is_named_when_its_failover_is_blocked(
    tmp_path: Path, reachable: bool
) -> None:
    """It has stopped shipping, which is no evidence; and it must not be forgotten when it can't be reached later."""
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook()
    source = world.sources["shop"]
    source.cuts_clients = False
    record, snapshot = await carry_out(world, keeper, Mode.FAILOVER, book)
    assert record.outcome is Outcome.BLOCKED
    assert measure(snapshot).left_fenced == ("shop",)
    source.reachable = reachable
    keeper.request(record.id, RequestKind.ROLLBACK, "", "ann")
    record = await executor(world, keeper, book).execute(record.id)
    if reachable:
        assert (record.outcome, source.fenced) == (Outcome.ROLLED_BACK, False)
    else:
        assert record.state is RunState.STOPPED, "it was fenced: nobody may say that it never was"
        assert "drengine-agent release" in seen(keeper, record.id).state("undo.release:shop").message


async def test_an_aborted_failover_names_whom_it_left_fenced(tmp_path: Path) -> None:
    world, keeper = World(tmp_path, "shop", "web"), MemoryKeeper()
    book = runbook("shop", "web")
    world.sources["web"].cut_off()
    record, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    keeper.request(record.id, RequestKind.ABORT, "", "ann")
    record = await executor(world, keeper, book).execute(record.id)
    assert record.outcome is Outcome.ABORTED
    assert measure(seen(keeper, record.id)).left_fenced == ("shop",)


async def test_a_failover_that_promoted_leaves_nobody_wrongly_fenced(tmp_path: Path) -> None:
    world, keeper = World(tmp_path), MemoryKeeper()
    record, snapshot = await carry_out(world, keeper, Mode.FAILOVER, runbook())
    assert (record.outcome, measure(snapshot).left_fenced) == (Outcome.COMPLETED, ())


CHECK = Step(actions={"command": ["true"]}, modes=(Mode.FAILBACK,))
GATE = Step(actions={"command": ["true"]}, modes=(Mode.FAILBACK,))


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({"start": []}, Outcome.HANDED_BACK),
        ({"start": [], "before": [GATE]}, Outcome.HANDED_BACK),
        ({"start": ["true"]}, Outcome.COMPLETED),
        ({"start": [], "then": [CHECK]}, Outcome.COMPLETED),
    ],
    ids=["nothing starts it", "a check before the switch proves nothing", "started", "a check behind it proves it"],
)
async def test_a_failback_without_a_start_is_handed_back_and_not_completed(
    tmp_path: Path, given: dict[str, Any], outcome: Outcome
) -> None:
    world, keeper, book = World(tmp_path), MemoryKeeper(), runbook(**given)
    failover, _ = await carry_out(world, keeper, Mode.FAILOVER, book)
    record, snapshot = await carry_out(world, keeper, Mode.FAILBACK, book, **way_home(world, failover.id))
    assert (record.state, record.outcome) == (RunState.FINISHED, outcome)
    measures, idle = measure(snapshot), outcome is Outcome.HANDED_BACK
    assert measures.not_started == (("shop",) if idle else ())
    assert (measures.outage_seconds is None) is idle
    assert world.sources["shop"].commands[-1] is Verb.RELEASE


def test_every_kind_that_proves_a_start_ends_the_outage() -> None:
    assert {"http", "tcp", "sql", "command"} <= {name for name, kind in step_kinds().items() if kind.ends_outage}
