"""An operator's commands to a running agent: JSON lines over a unix socket that only its owner can reach.

A request is ``{"command": NAME, ...}``, an answer ``{"ok": true, "result": ...}`` or
``{"ok": false, "error": ID, "message": TEXT, "hint": TEXT}``. One line each way per request.
"""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Annotated

import msgspec

from drengine.model.errors import DrengineError
from drengine.model.points import check_new_label
from drengine.nbd.errors import LOCAL_USER_REFUSED
from drengine.process.local import own_users, peer_uid, require_safe_folder
from drengine_agent.daemon.client import ANSWER_SECONDS, short_name
from drengine_agent.daemon.service import Agent
from drengine_agent.errors import COMMAND_REFUSED, STATE_DAMAGED

LINE_BYTES_MAX = 64 << 10
CONNECTIONS_MAX = 16


def _told(refused: DrengineError) -> dict[str, object]:
    return {"ok": False, "error": refused.kind.id, "message": refused.message, "hint": refused.hint}


def _line(answer: dict[str, object]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


class Command(msgspec.Struct, frozen=True):
    """A request."""

    command: str
    label: str = ""
    seconds: float = ANSWER_SECONDS
    generation: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] = 0
    branch: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    force: bool = False


class OperatorSocket:
    """Serves one agent's operators."""

    def __init__(self, agent: Agent, path: Path) -> None:
        self._agent = agent
        self._path = path
        self._open = 0

    async def start(self) -> None:
        """Listen; a socket left by a killed agent is replaced (the state directory is locked by us).

        Raises:
            DrengineError: STATE_DAMAGED.
        """
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            require_safe_folder(self._path)
            self._path.unlink(missing_ok=True)
            with short_name(self._path) as name:
                listening.bind(name)
            self._path.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=LINE_BYTES_MAX)
        except OSError as error:
            listening.close()
            raise DrengineError(STATE_DAMAGED, f"{self._path}: {error}") from error

    async def close(self) -> None:
        """Stop listening."""
        self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        uid = peer_uid(writer.get_extra_info("socket"))
        try:
            if uid not in own_users():
                refused = DrengineError(LOCAL_USER_REFUSED, f"user {uid} may not command this agent")
                writer.write(_line(_told(refused)))
                return
            while self._open <= CONNECTIONS_MAX and (line := await reader.readline()):
                writer.write(_line(await self._answer(line)))
                await writer.drain()
        except (OSError, ValueError):
            pass  # the other side went away, or sent a line that is too long
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            command = msgspec.json.decode(line, type=Command)
            return {"ok": True, "result": await self._do(command)}
        except msgspec.MsgspecError as error:
            refused = DrengineError(COMMAND_REFUSED, f"the request can't be read: {error}")
        except DrengineError as error:
            refused = error
        except TimeoutError:
            refused = DrengineError(COMMAND_REFUSED, "it was not done in time; it may still happen")
        return _told(refused)

    async def _do(self, command: Command) -> object:
        agent = self._agent
        match command.command:
            case "status":
                return agent.status()
            case "pause":
                agent.pause()
            case "resume":
                agent.resume()
            case "sync":
                agent.sync()
            case "cut":
                sequence = await asyncio.wait_for(agent.cut(check_new_label(command.label)), command.seconds)
                return {"sequence": sequence}
            case "fence":
                await agent.fence(agent.generation)
            case "release":
                await agent.release(command.generation or agent.generation, command.branch, force=command.force)
            case other:
                raise DrengineError(COMMAND_REFUSED, f"there is no command {other[:40]!r}")
        return agent.status()
