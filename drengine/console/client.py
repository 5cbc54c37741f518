"""A client of the REST API: the same orders, given to an orchestrator that runs, here or elsewhere.

Its orders answer as those of `drengine.failover.orders` do, so that a command need not know which it has.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from drengine.console.errors import BAD_REQUEST, ORCHESTRATOR_UNREACHABLE
from drengine.console.places import PREFIX
from drengine.failover.answers import Plan, Run, RunDetail
from drengine.failover.decide import Action, Decision, Reason
from drengine.failover.executor import Watcher
from drengine.failover.orders import Orders
from drengine.failover.readiness import Readiness
from drengine.failover.reading.reader import read_runbook, read_runbook_text
from drengine.failover.run import Request, RunRecord, RunState
from drengine.failover.runbook.errors import UNKNOWN_RUNBOOK
from drengine.failover.runbook.values import Mode
from drengine.failover.snapshot import Snapshot, StepState
from drengine.failover.steps.step import PlannedStep
from drengine.linux.loopback import local_user_ids, user_of
from drengine.model.errors import DrengineError, ErrorKind, error_kinds
from drengine.transport.networks import is_loopback

SECONDS = 60.0
LOOK_SECONDS = 0.25
ACCEPT_SECONDS = 5.0
SERVICE_USERS = ("drengine",)
UNIX = "unix:"


class Client:
    """Asks one orchestrator; a connection for each request, so threads may share it."""

    def __init__(self, address: str, *, token: str = "", cacert: Path | None = None) -> None:
        """`address`: https://HOST:PORT, unix:PATH, or on loopback http://HOST:PORT.

        Raises:
            DrengineError: BAD_REQUEST.
        """
        self.address = address.rstrip("/")
        self._token, self._cacert = token, cacert
        if not address.startswith(UNIX):
            parts = urlsplit(address)
            plain = parts.scheme == "http" and is_loopback(parts.hostname or "")
            if not parts.hostname or not (plain or parts.scheme == "https"):
                message = f"{address!r} is no address of an orchestrator"
                raise DrengineError(BAD_REQUEST, message, hint="Write https://HOST:PORT, or unix:PATH of its socket.")

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One request; gives what it answers.

        Raises:
            DrengineError: what it is refused with; ORCHESTRATOR_UNREACHABLE.
        """
        wanted = {key: value for key, value in query.items() if value not in (None, "", [])}
        place = quote(PREFIX + path) + (f"?{urlencode(wanted, doseq=True)}" if wanted else "")
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        sent = None if body is None and method == "GET" else json.dumps(body or {})
        try:
            connection = self._connection()
            try:
                connection.request(method, place, sent, {**headers, "Content-Type": "application/json"})
                answer = connection.getresponse()
                said = json.loads(answer.read())
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DrengineError(ORCHESTRATOR_UNREACHABLE, f"{self.address}: {error}") from error
        if answer.status >= 400:
            raise DrengineError(_kind(said), said["message"], hint=said["hint"])
        return said

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.startswith(UNIX):
            return _UnixConnection(self.address.removeprefix(UNIX))
        parts = urlsplit(self.address)
        host, port = str(parts.hostname), parts.port or 7443
        if parts.scheme == "http":
            return _LoopbackConnection(host, port, timeout=SECONDS)
        context = ssl.create_default_context(cafile=str(self._cacert) if self._cacert else None)
        return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=context)


class _LoopbackConnection(http.client.HTTPConnection):
    """Shows a token or a password only to a process of root, of our own user, or of the service's: any user of the
    machine may listen on its port while it is down.
    """

    def connect(self) -> None:
        super().connect()
        own, peer = self.sock.getsockname()[:2], self.sock.getpeername()[:2]
        end = time.monotonic() + ACCEPT_SECONDS
        while (user := user_of(peer, own)) is None and time.monotonic() < end:
            time.sleep(0.01)  # nobody has accepted the connection yet
        if user not in local_user_ids(SERVICE_USERS):
            self.close()
            raise OSError(f"a process of user {user} answers there; use the orchestrator's socket, or TLS")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = Path(path)

    def connect(self) -> None:
        self.sock = connect_unix(self._path)
        self.sock.settimeout(SECONDS)


def connect_unix(path: Path) -> socket.socket:
    """Connect to a socket, however long its path is.

    Raises:
        OSError: nobody listens there.
    """
    made, folder = socket.socket(socket.AF_UNIX), -1
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        made.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        made.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return made


@dataclass(frozen=True, slots=True)
class RemoteOrders:
    """Orders and questions to an orchestrator that runs; see `Orders` for what each does."""

    client: Client

    @property
    def who(self) -> str:
        """Whom the orchestrator takes us for."""
        me = self.client.ask("GET", "/me")
        return f"{me['name']} ({me['proof']})"

    def named(self, id: str) -> str:
        """A run's id; that of the newest run for `last`."""
        return self.show(id).run

    def begin(self, mode: Mode, runbook: Path | str, **given: Any) -> RunRecord:
        """Begin a run; a runbook that is given as a file is kept first."""
        body = {"mode": mode.value, "runbook": self._kept(runbook), **given}
        return _record(self._detail("POST", "/runs", body))

    def approve(self, id: str, *, step: str = "", note: str = "", digest: str = "") -> Request:
        """Approve a step."""
        body = {"step": step, "note": note, "digest": digest or self.show(id).digest}
        return msgspec.convert(self.client.ask("POST", f"/runs/{id}/approve", body), Request)

    def abort(self, id: str, *, note: str = "") -> RunRecord:
        """End a run where it is."""
        return self._order(id, "abort", note=note)

    def resume(
        self, id: str, *, force: bool = False, done: str = "", runbook: Path | str = "", despite: Sequence[str] = ()
    ) -> RunRecord:
        """Go on with a run; a changed runbook that is given as a file is kept first."""
        kept = self._kept(runbook) if runbook else ""
        return self._order(id, "resume", force=force, done=done, runbook=kept, despite=list(despite))

    def rollback(self, id: str, *, yes: bool = False, note: str = "") -> RunRecord:
        """Undo everything that a run did."""
        return self._order(id, "rollback", yes=yes, note=note)

    def commit(self, id: str, *, note: str = "") -> RunDetail:
        """Accept a failover."""
        return self._detail("POST", f"/runs/{id}/commit", {"note": note})

    def giving_up(self, run: RunRecord) -> list[str]:
        """What a rollback leaves behind; the orchestrator's log and the refusal without `yes` tell it."""
        return []

    def show(self, id: str) -> RunDetail:
        """A run with its steps."""
        return self._detail("GET", f"/runs/{id}")

    def runs(self, *, runbook: str | None = None, limit: int = 100) -> list[Run]:
        """Runs, newest first."""
        return msgspec.convert(self.client.ask("GET", "/runs", runbook=runbook, limit=min(limit, 1000)), list[Run])

    def plan(
        self, mode: Mode, runbook: Path | str, *, point: str = "", onto: Sequence[str] = (), disks: Sequence[str] = ()
    ) -> Plan:
        """What a run would do now."""
        wanted = {"mode": mode.value, "point": point, "onto": list(onto), "disks": list(disks)}
        return msgspec.convert(self.client.ask("GET", f"/runbooks/{self._kept(runbook)}/plan", **wanted), Plan)

    def ready(
        self, mode: Mode, runbook: Path | str, *, point: str = "", onto: Sequence[str] = (), disks: Sequence[str] = ()
    ) -> Readiness:
        """Whether a run would go through."""
        body = {"mode": mode.value, "point": point, "onto": list(onto), "disks": list(disks)}
        return msgspec.convert(self.client.ask("POST", f"/runbooks/{self._kept(runbook)}/ready", body), Readiness)

    @staticmethod
    def failure(run: Run) -> DrengineError | None:
        """How a run ended, as an error."""
        return Orders.failure(run)

    async def carry_out(
        self, run: RunRecord, *, wait: bool = True, watch: Watcher, patient: bool = False, leave: bool = False
    ) -> RunDetail | None:
        """Look on until the run ends, stops, or unless `wait` waits for people: the orchestrator carries it out."""
        while True:
            now = await asyncio.to_thread(self.show, run.id)
            watch(_record(now), _snapshot(now), Decision(Action.WAIT, Reason.STEPS_RUNNING))
            ended = now.state in (RunState.FINISHED, RunState.STOPPED) and not now.asked
            if ended or (now.state is RunState.WAITING and not wait):
                return now
            await asyncio.sleep(LOOK_SECONDS)

    def _order(self, id: str, order: str, **body: Any) -> RunRecord:
        return _record(self._detail("POST", f"/runs/{id}/{order}", body))

    def _detail(self, method: str, path: str, body: Any = None) -> RunDetail:
        return msgspec.convert(self.client.ask(method, path, body), RunDetail)

    def _kept(self, runbook: Path | str) -> str:
        """The name of a runbook that the orchestrator keeps; a file is kept there unless it is already."""
        if not isinstance(runbook, Path):
            return runbook
        text = read_runbook_text(runbook)
        name = read_runbook(text, where=str(runbook)).name
        try:
            kept = self.client.ask("GET", f"/runbooks/{name}")["text"]
        except DrengineError as error:
            if error.kind is not UNKNOWN_RUNBOOK:
                raise
            kept = None
        if kept != text:
            self.client.ask("PUT", f"/runbooks/{name}", {"text": text})
        return name


def _kind(said: dict[str, Any]) -> ErrorKind:
    """The kind of a refusal; one of which nothing is loaded here is what the refusal tells of it."""
    known = next((kind for kind in error_kinds() if kind.id == said["id"]), None)
    return known or ErrorKind(said["id"], int(said.get("exit_code", BAD_REQUEST.exit_code)), "", said["hint"])


def _record(run: RunDetail) -> RunRecord:
    names = ("mode", "runbook", "version", "started_by", "created_ns", "state", "outcome", "reason", "finished_ns")
    return RunRecord(id=run.run, sources=tuple(run.sources), **{name: getattr(run, name) for name in names})


def _snapshot(run: RunDetail) -> Snapshot:
    """As far as people are shown it."""
    nothing: Any = None  # settings stay where they are, and with them what they hold
    return Snapshot(
        tuple(
            StepState(
                PlannedStep(each.id, nothing, each.title, nothing, wave=each.wave),
                each.status,
                attempt=each.attempt,
                message=each.message,
                began_ns=each.began_ns,
                ended_ns=each.ended_ns,
            )
            for each in run.steps
        ),
        digest=run.digest,
    )
