"""Processes that run until a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, sys
from drengine.process.signals import signalled

async def main():
    event = signalled(insist=bool(int(sys.argv[1])))
    print("ready", flush=True)
    await event.wait()
    print("asked", flush=True)
    sys.stdin.readline()
    print("done", flush=True)

asyncio.run(main())
"""
# While the script waits for a line its loop stands still, so this one answers the second signal from the loop.
INSISTING = SCRIPT.replace("sys.stdin.readline()", "await asyncio.Event().wait()")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks(number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT, "0"], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        assert process.communicate("\n", timeout=30)[0] == "done\n"
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_where_it_insists(number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", INSISTING, "1"], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number


def test_a_hang_up_has_a_daemon_read_its_files_again_and_never_ends_it() -> None:
    script = SCRIPT.replace("signalled(", "signalled(reload=lambda: print('again', flush=True), ")
    with subprocess.Popen(["nohup", sys.executable, "-c", script, "1"], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        for _ in range(3):
            process.send_signal(signal.SIGHUP)
            assert process.stdout.readline() == "again\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGHUP)
        assert "done" in process.communicate("\n", timeout=30)[0].splitlines()
        assert process.returncode == 0


def test_a_lost_terminal_is_told_twice_and_insists_on_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT, "1"], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGHUP)
        assert process.communicate("\n", timeout=30)[0] == "done\n"
        assert process.returncode == 0


def test_what_nohup_had_ignored_stays_ignored() -> None:
    with subprocess.Popen(["nohup", sys.executable, "-c", SCRIPT, "0"], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")), 16)
        assert ignored & 1 << signal.SIGHUP - 1
        process.communicate("\n", timeout=30)
