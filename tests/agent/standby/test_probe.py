"""A drill's workload is asked from inside its own network, where nobody outside reaches it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.control.attach import StandbySettings
from drengine.control.messages import Verb
from drengine.control.refusals import OrderRefusedError
from drengine.linux.namespaces import in_network
from drengine.model.errors import DrengineError
from drengine_agent.standby.allow import AllowOptions
from drengine_agent.standby.config import StandbyConfig
from drengine_agent.standby.host import StandbyHost
from drengine_agent.standby.workload import Workload
from tests.agent.standby.test_standby import command, host, needs_root, order, served

__all__ = ["served"]
PORT = 18080
SERVER = """
import http.server, sys, threading
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ready: 42 password=hunter2")
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page)
open(sys.argv[2], "w").close()
server.serve_forever()
"""


@pytest.fixture
def drilled(served: str, tmp_path: Path) -> Iterator[tuple[StandbyHost, Workload, str]]:
    """A host with a workload that serves in a network of its own."""
    (tmp_path / "server.py").write_text(SERVER)
    began = tmp_path / "began"
    start = f"{sys.executable} {tmp_path}/server.py {PORT} {began} >/dev/null 2>&1 &"
    wanted = order(
        served,
        network="none",
        start=["sh", "-c", start],
        stop=["true"],
        health=["sh", "-c", f"echo the shop is well; test -e {began}"],
    )
    made = host(tmp_path / "state")
    workload = Workload(wanted, tmp_path / "state/instances" / wanted.instance)
    try:
        assert workload.start(lambda _: None)["health"] == "the shop is well"
        yield made, workload, wanted.instance
    finally:
        workload.stop()


async def asked(made: StandbyHost, instance: str, **how: Any) -> Any:
    return await made.check(command(Verb.CHECK, {"instance": instance, "seconds": 5.0, **how}), lambda _: None)


@needs_root
async def test_what_nobody_outside_reaches_is_asked_inside(drilled: tuple[StandbyHost, Workload, str]) -> None:
    made, _, instance = drilled
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", PORT), timeout=2):
        pass
    page = {"url": f"http://127.0.0.1:{PORT}/", "contains": "ready"}
    told = await asked(made, instance, http=page)
    assert (told["seen"], told["output"][:9]) == (f"http://127.0.0.1:{PORT}/ answered 200", "ready: 42")
    assert "accepts" in (await asked(made, instance, tcp={"host": "127.0.0.1", "port": PORT}))["seen"]
    told = await asked(made, instance, command=["sh", "-c", "ls /sys/class/net; ip -o link | wc -l"])
    assert "1" in told["output"].split(), "only loopback is there"


@needs_root
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"http": {"url": f"http://127.0.0.1:{PORT}/", "contains": "gone"}}, "without 'gone'"),
        ({"http": {"url": f"http://127.0.0.1:{PORT}/", "status": 204}}, "answered 200, not 204"),
        ({"tcp": {"host": "127.0.0.1", "port": PORT + 1}}, "refused"),
        ({"command": ["sh", "-c", "echo no such table; exit 3"]}, "ended with 3: no such table"),
        ({}, "neither a command nor http nor tcp"),
    ],
)
async def test_what_does_not_pass_says_why(
    drilled: tuple[StandbyHost, Workload, str], how: dict[str, Any], why: str
) -> None:
    made, _, instance = drilled
    with pytest.raises(DrengineError, match=why):
        await asked(made, instance, **how)


async def test_an_instance_that_is_not_there_is_asked_nothing(tmp_path: Path) -> None:
    with pytest.raises(DrengineError, match="no instance 'never'"):
        await asked(host(tmp_path), "never", command=["true"])


@needs_root
async def test_a_command_inside_is_one_of_the_hosts_list(drilled: tuple[StandbyHost, Workload, str]) -> None:
    made, _, instance = drilled
    config = StandbyConfig(
        name="recovery-1",
        state_directory=made._config.state_directory,
        control=made._config.control,
        allow=AllowOptions(commands=("curl ...",)),
    )
    with pytest.raises(OrderRefusedError):
        await asked(StandbyHost(config), instance, command=["sh", "-c", "true"])


def test_our_own_network_is_left_as_it_was() -> None:
    assert in_network("", lambda: 7) == 7
    with pytest.raises(FileNotFoundError):
        in_network("no-such-network", lambda: 7)
    assert StandbySettings().network == "none"
