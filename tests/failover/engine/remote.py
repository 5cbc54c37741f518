"""The world from another process: agents and workloads that outlive an orchestrator that is killed."""

from __future__ import annotations

import asyncio
import pickle
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from drengine.control.messages import AgentReport, Answer, Verb
from drengine.failover.drivers.driver import Instance, LaunchRequest
from drengine.model.errors import DrengineError, error_kinds
from tests.failover.engine.world import World

LENGTH = struct.Struct("<I")


class WorldServer:
    """Answers calls for a world's agents and driver, each on a connection of its own."""

    def __init__(self, world: World, path: Path) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                place, method, arguments = _receive(self.rfile)
                try:
                    answer = (True, _call(world, place, method, arguments))
                except DrengineError as error:
                    answer = (False, (error.kind.id, error.message))
                except Exception as error:  # noqa: BLE001 - the caller raises it
                    answer = (False, error)
                _send(self.wfile, answer)

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class RemoteAgents:
    """See steps.step.Agents."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def reports(self) -> Mapping[str, AgentReport]:
        found: Mapping[str, AgentReport] = call(self._path, "agents", "reports")
        return found

    def is_online(self, name: str) -> bool:
        return bool(call(self._path, "agents", "is_online", name))

    def is_away(self, name: str) -> bool:
        return not self.is_online(name)

    def report_age_seconds(self, name: str) -> float | None:
        return 0.0

    async def command(
        self,
        name: str,
        verb: Verb,
        arguments: Mapping[str, Any],
        *,
        generation: int,
        id: str,
        timeout_seconds: float,
        progress: Callable[[Answer], None] = lambda _: None,
        run: str = "",
        approver: str = "",
    ) -> Answer:
        answer: Answer = await asyncio.to_thread(
            call, self._path, "sources", name, id, verb, dict(arguments), generation
        )
        return answer


class RemoteDriver:
    """See LaunchDriver."""

    name: ClassVar[str] = "simulated"

    def __init__(self, path: Path) -> None:
        self._path = path

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        call(self._path, "driver", "check_settings", dict(settings))

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        found: Instance = call(self._path, "driver", "launch", _sendable(request), str)
        return found

    def inspect(self, request: LaunchRequest) -> Instance:
        found: Instance = call(self._path, "driver", "inspect", _sendable(request))
        return found

    def quiesce(self, request: LaunchRequest) -> None:
        call(self._path, "driver", "quiesce", _sendable(request))

    def stop(self, request: LaunchRequest) -> None:
        call(self._path, "driver", "stop", _sendable(request))


def _sendable(request: LaunchRequest) -> LaunchRequest:
    """With what it would look up later."""
    return replace(request, servers=dict(request.servers))


def call(path: Path, place: str, method: str, *arguments: Any) -> Any:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        with connection.makefile("rwb") as file:
            _send(file, (place, method, arguments))
            fine, answer = _receive(file)
    if fine:
        return answer
    if isinstance(answer, tuple):
        kind, message = answer
        answer = DrengineError(next(each for each in error_kinds() if each.id == kind), message)
    raise answer


def _call(world: World, place: str, method: str, arguments: tuple[Any, ...]) -> Any:
    if place == "sources":
        return world.agents.sources[method].obey(*arguments)
    return getattr({"agents": world.agents, "driver": world.driver}[place], method)(*arguments)


def _send(file: Any, value: Any) -> None:
    data = pickle.dumps(value)
    file.write(LENGTH.pack(len(data)) + data)
    file.flush()


def _receive(file: Any) -> Any:
    (length,) = LENGTH.unpack(file.read(LENGTH.size))
    return pickle.loads(file.read(length))
