"""Commands of ours as somebody types them, each in a process of its own, forked from one that has imported its module.

A new interpreter imports for a second before most commands work for some milliseconds. A test that is about the start
of a command, its signals or its terminal begins an interpreter.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

from drengine.cli import main as drengine
from drengine.terminal import Command, Group, main
from drengine_agent.cli import main as agent

ROOT = Path(__file__).parent.parent
DRENGINE, AGENT = "drengine.cli.main", "drengine_agent.cli.main"
APPS = {DRENGINE: drengine.app, AGENT: agent.commands}
TABLES = {DRENGINE: drengine.COMMANDS, AGENT: agent.COMMANDS}
_REQUEST_BYTES_MAX = 1 << 17


def typed(
    program: str, *words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, seconds: float = 90.0
) -> subprocess.CompletedProcess[str]:
    """Type it and wait for its end. `program`: DRENGINE or AGENT.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    argv = [program, *map(str, words)]
    request = {"argv": argv, "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with theirs:
            descriptors = [theirs.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(_server(), [json.dumps(request).encode()], descriptors)
        with ours.makefile("r") as answers:
            pid = int(answers.readline())
            ours.settimeout(seconds)
            try:
                code = int(answers.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(argv, seconds) from None
        return subprocess.CompletedProcess(argv, code, _text(out), _text(err))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@cache
def _server() -> socket.socket:
    """Of this process, until its end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "agents")])}
    with theirs:
        line = [sys.executable, "-m", "tests.typed", str(theirs.fileno())]
        process = subprocess.Popen(line, env=environment, cwd=ROOT, pass_fds=[theirs.fileno()])

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork for each request, until nobody can ask any more."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES_MAX, 3)
        if not data:
            return
        request = json.loads(data)
        _import_module_of(request["argv"][1:], TABLES[request["argv"][0]])
        if not os.fork():
            requests.close()
            _wait_for_one(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _import_module_of(words: list[str], table: Mapping[str, Command | Group]) -> None:
    """Of a command, so that it is there for all that are forked later."""
    match table.get(words[0] if words else ""):
        case Command() as found:
            importlib.import_module(found.module)
        case Group() as found:
            _import_module_of(words[1:], found.commands)
    gc.freeze()


def _wait_for_one(request: Any, answers: int, out: int, err: int) -> NoReturn:
    """In a process between the server and the command's, which tells the command's id, then how it ended."""
    pid = os.fork()
    if not pid:
        os.close(answers)
        _become(request, out, err)
    os.write(answers, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: Any, out: int, err: int) -> NoReturn:
    """The command, as a new interpreter would be it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    program, *words = request["argv"]
    sys.argv = [program, *words]
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    code = 1
    try:
        code = main(APPS[program], words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(socket.socket(fileno=int(sys.argv[1])))
