"""Commands, notifications, approvals and waits of a runbook."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from drengine.failover.run import Request, RequestKind
from drengine.failover.steps.approval import ApprovalStep, Approved
from drengine.failover.steps.command import CommandStep
from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.kinds import step_kinds
from drengine.failover.steps.notify import NotifyStep
from drengine.failover.steps.wait import WaitStep
from drengine.process import find_marked, run_command
from drengine.redaction import without_secrets
from tests.failover.steps.context import HastyClock, context, planned

KINDS = step_kinds()


def command(*argv: str, **more: object) -> object:
    return CommandStep().act(planned(KINDS["command"], {"command": list(argv)}, **more), context())  # type: ignore[arg-type]


async def test_a_command_learns_which_run_it_belongs_to() -> None:
    step = planned(KINDS["command"], {"command": ["printenv", "DRENGINE_RUN", "DRENGINE_MODE"]}, source="shop")
    result = await CommandStep().act(step, context())
    assert (result.ok, result.output.split()) == (True, ["run-1", "drill"])


@pytest.mark.fault(54)
async def test_shell_metacharacters_are_plain_arguments(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    result = await CommandStep().act(
        planned(KINDS["command"], {"command": ["echo", f"; rm {victim}", "$(rm x)", "`id`", "| cat"]}), context()
    )
    assert result.output == f"; rm {victim} $(rm x) `id` | cat"
    assert victim.exists()


async def test_a_failing_command_tells_its_status_and_last_words() -> None:
    result = await command(sys.executable, "-c", "print('why'); raise SystemExit(7)")  # type: ignore[misc]
    assert (result.ok, result.code, result.data.exit, result.output) == (False, COMMAND_FAILED.id, 7, "why")


async def test_a_missing_program_and_a_nul_byte_are_failures_not_tracebacks() -> None:
    for argv in (["/no/such/program"], ["echo", "a\0b"]):
        result = await command(*argv)  # type: ignore[misc]
        assert (result.ok, result.data.exit) == (False, 127)


@pytest.mark.fault(56)
def test_a_hanging_command_ends_with_its_children_when_its_time_is_up() -> None:
    mark = f"{os.getpid()}-{threading.get_ident()}"
    script = "import subprocess, sys, signal, time; signal.signal(15, signal.SIG_IGN)\n"
    script += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); print('up', flush=True)\n"
    script += "time.sleep(600)"
    finished = run_command([sys.executable, "-c", script], timeout_seconds=1.0, environment={"DRENGINE_TEST": mark})
    assert finished.timed_out
    assert not finished.ok
    assert not find_marked("DRENGINE_TEST", mark)


@pytest.mark.fault(56)
async def test_cancelling_a_step_ends_its_command() -> None:
    mark = f"c{os.getpid()}"
    argv = ["env", f"DRENGINE_TEST={mark}", "sleep", "600"]
    running = asyncio.ensure_future(command(*argv, timeout_seconds=600))  # type: ignore[arg-type]
    await asyncio.to_thread(_until_there, mark)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not find_marked("DRENGINE_TEST", mark)


def _until_there(mark: str) -> None:
    while not find_marked("DRENGINE_TEST", mark):
        time.sleep(0.01)


async def test_output_without_end_is_kept_bounded() -> None:
    result = await command(sys.executable, "-c", "print('x' * 10_000_000); print('end')")  # type: ignore[misc]
    assert result.output.endswith("end")
    assert len(result.output) < 20_000


@pytest.mark.fault(59)
@pytest.mark.parametrize(
    "text",
    [
        "postgresql://app:s3cr3t@db/x",
        "connect password=s3cr3t failed",
        "Authorization: Bearer s3cr3t",
        "authorization: Basic s3cr3t",
        "token='s3cr3t'",
        "PASSWORD: s3cr3t",
    ],
)
def test_secrets_are_masked_wherever_people_read(text: str) -> None:
    assert "s3cr3t" not in without_secrets(text)


def test_text_without_secrets_stays_as_it_is() -> None:
    assert without_secrets("http://host:80/a@b answered 200 for tokens") == "http://host:80/a@b answered 200 for tokens"


async def test_an_approval_waits_until_somebody_gave_it() -> None:
    step = planned(KINDS["approval"], {"approval": {"prompt": "sure?", "by": ["ada"]}})
    waiting = await ApprovalStep().act(step, context())
    assert (waiting.ok, waiting.waiting) == (False, True)
    assert "ada" in waiting.message
    assert await ApprovalStep().check(step, context()) is None
    given = await ApprovalStep().check(
        step, context(approvals={step.id: Request("r", RequestKind.APPROVE, step.id, "ada", "", 1)})
    )
    assert given is not None
    assert (given.ok, given.data) == (True, Approved("ada"))


async def test_a_wait_takes_its_time_of_the_runs_clock() -> None:
    clock = HastyClock()
    assert (await WaitStep().act(planned(KINDS["wait"], {"wait": "90s"}), context(clock=clock))).ok
    assert clock.slept == 90


async def test_a_notification_carries_the_run_as_json(tmp_path: Path) -> None:
    told: list[bytes] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hook"
        result = await NotifyStep().act(planned(KINDS["notify"], {"notify": {"url": url}}), context())
    assert result.ok
    assert json.loads(told[0])["run"] == "run-1"
    file = tmp_path / "told"
    by_command = {"notify": {"command": ["tee", str(file)]}}
    assert (await NotifyStep().act(planned(KINDS["notify"], by_command), context())).ok
    assert json.loads(file.read_text())["runbook"] == "shop"


async def test_a_webhook_that_nobody_serves_fails_without_a_traceback() -> None:
    step = planned(KINDS["notify"], {"notify": {"url": "http://127.0.0.1:9/"}}, timeout_seconds=2)
    assert not (await NotifyStep().act(step, context())).ok
