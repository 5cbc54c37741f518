"""Mosquitto's files, written from who is enrolled: each party kept to its own topics, and nobody else let in.

A broker knows a client by the common name of its certificate, and certificates have no other word for a role there. So
a name that several roles bear opens nothing: the broker could not tell them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from drengine.durable import replace_durably
from drengine.enrolment.client import identities
from drengine.enrolment.keeper import keeping
from drengine.enrolment.messages import EnrolledParty
from drengine.enrolment.place import CA_FILE, CERTIFICATE_FILE, KEY_FILE, Place
from drengine.identity.errors import BROKER_FILES
from drengine.identity.names import Role
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.process.command import run_command
from drengine.transport.files import CRL_FILE
from drengine.transport.x509 import read_revocations

log = logging.getLogger("drengine.enrolment")

ACL_FILE, CONFIGURATION_FILE = "drengine.acl", "drengine.conf"
DEFAULT_FOLDER = Path("/etc/mosquitto/drengine")
COMMAND_SECONDS = 30.0
AGAIN_SECONDS = 5.0
LEAVES = {"write": ("presence", "report", "answer"), "read": ("presence", "report", "command")}
"""What a party may say and hear of its own topics."""
_ORCHESTRATOR = (
    "read drengine/{site}/#",
    "write drengine/{site}/+/+/command",
    "write drengine/{site}/orchestrator/+/presence",
)
CONFIGURATION = """\
# Mosquitto (2.0 or later) for drengine: TLS 1.3, every client known by its certificate, each kept to its own topics.
# Written by `drengine broker config`, which docs/control.md explains.

listener {port}
tls_version tlsv1.3
cafile {ca}
certfile {certificate}
keyfile {key}
{crlfile}
# The certificate's CN is the client's name; nobody comes in without one.
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {acl}

# A message that was acknowledged is not dropped because a client is slow: the default of 1000 does.
max_queued_messages 0
# But no party may fill the broker: so much waits for one client, who needs no more than every party's report at once;
# a session that nobody comes back to (ours are never kept) is forgotten; and there is a limit for all of it.
max_queued_bytes 33554432
persistent_client_expiration 1h
memory_limit 536870912
# Control messages are small; block data has no business here.
max_packet_size 135168
set_tcp_nodelay true

{persistence}autosave_interval 30
sys_interval 0
log_type error
log_type warning
log_type notice
log_type information
"""
_PERSISTENCE = """\
# Reports outlive a restart, so that the last word of a source that is gone is not lost.
persistence true
persistence_location /var/lib/mosquitto/
"""
_PATTERNS = """\
# Who may say and hear what, for certificates of a CA that no drengine authority serves. %u is the CN of the client's
# certificate, which is the party's name. Written by `drengine broker config`.
# To shut a party out at once, also while it is connected, add these two lines and reload; then revoke its certificate:
#   user NAME
#   topic deny drengine/#
"""


def configuration(place: Path = DEFAULT_FOLDER, *, port: int = 8883, has_crl: bool = True, main: str = "") -> str:
    """Mosquitto's configuration, for a broker whose certificate and ACL lie in this folder.

    Args:
        place: the folder.
        port: where it listens.
        has_crl: a CRL lies there as well; Mosquitto does not start when it names one that is missing.
        main: the file that includes this one: what it says already may not be said twice.
    """
    persists = any(line.split()[:1] == ["persistence_location"] for line in main.splitlines())
    return CONFIGURATION.format(
        port=port,
        ca=place / CA_FILE,
        certificate=place / CERTIFICATE_FILE,
        key=place / KEY_FILE,
        crlfile=f"crlfile {place / CRL_FILE}\n" if has_crl else "",
        acl=place / ACL_FILE,
        persistence="" if persists else _PERSISTENCE,
    )


def pattern_list(site: str, orchestrators: Iterable[str]) -> str:
    """Mosquitto's ACL where nobody says who there is: names open their own topics, and some of them command."""
    lines = [_PATTERNS.rstrip("\n")]
    for name in orchestrators:
        lines += ["", f"user {name}", *(f"topic {each}" for each in _topics(site, Role.ORCHESTRATOR, name))]
    for role in (Role.AGENT, Role.HOST):
        lines += ["", *(f"pattern {each}" for each in _topics(site, role, "%u"))]
    return "\n".join(lines) + "\n"


def access_list(site: str, parties: Iterable[EnrolledParty]) -> str:
    """Mosquitto's ACL: what each may say and hear. Whoever is not in it may nothing."""
    roles: dict[str, set[Role]] = defaultdict(set)
    for each in parties:
        if each.role in (Role.AGENT, Role.HOST, Role.ORCHESTRATOR):
            roles[each.name].add(each.role)
    lines = ["# Who may say and hear what. Written by drengine from who is enrolled; changes by hand are lost."]
    for name, borne in sorted(roles.items()):
        if len(borne) > 1:
            lines += ["", f"# {name} is the name of {' and '.join(sorted(borne))}: it opens nothing."]
            log.error("several parties are called %s; the broker can't tell them apart and lets none in", name)
            continue
        (role,) = borne
        lines += ["", f"user {name}", *(f"topic {each}" for each in _topics(site, role, name))]
    return "\n".join(lines) + "\n"


def _topics(site: str, role: Role, name: str) -> list[str]:
    if role is Role.ORCHESTRATOR:
        return [each.format(site=site) for each in _ORCHESTRATOR]
    return [f"{mode} drengine/{site}/{role}/{name}/{leaf}" for mode, leaves in LEAVES.items() for leaf in leaves]


@dataclass(frozen=True)
class Broker:
    """A Mosquitto on this host.

    Attributes:
        acl: its ACL file.
        pid_file: of its process, which takes changed files on SIGHUP.
        reload: a command that does the same; used where there is one.
        sever: a command that ends all connections, such as a restart, for when somebody was revoked. Without one
            whoever is revoked may stay connected, and may say and hear nothing.
    """

    acl: Path
    pid_file: Path | None = None
    reload: Sequence[str] = ()
    sever: Sequence[str] = ()


class Follower:
    """Brings the broker's files to what the authority says, while it runs."""

    def __init__(self, place: Place, broker: Broker, clock: Clock) -> None:
        self._place = place
        self._broker = broker
        self._clock = clock
        self._revoked = self._serials()
        self._due = asyncio.Event()
        self._due.set()  # whatever it has read before we came

    async def run(self) -> None:
        """Until cancelled."""
        async with keeping([self._place.files], self._clock, self._due.set), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._apply())

    async def _follow(self) -> None:
        version, failed = "", False
        while True:
            try:
                answer = await identities(self._place, version)
                version, failed = answer.version, False
                if write_file(self._broker.acl, access_list(answer.site, answer.identities)):
                    log.info("%s says who is enrolled: %d parties", self._broker.acl, len(answer.identities))
                    self._due.set()
            except DrengineError as error:
                if not failed:
                    log.warning("the authority can't be asked who there is; the ACL goes on: %s; %s", error, error.hint)
                failed = True
                await self._clock.sleep(AGAIN_SECONDS)

    async def _apply(self) -> None:
        """Have the broker read its files, one time after another."""
        while True:
            await self._due.wait()
            self._due.clear()
            now = self._serials()
            severs = bool(self._broker.sever) and not now <= self._revoked
            self._revoked = now
            done = await asyncio.to_thread(self._sever if severs else self._reload)
            if not done:
                await self._clock.sleep(AGAIN_SECONDS)
                self._due.set()

    def _serials(self) -> frozenset[int]:
        try:
            lists = read_revocations(self._place.revocations().encode())
        except ValueError:
            return frozenset()
        return frozenset().union(*(each.serials for each in lists))

    def _reload(self) -> bool:
        if self._broker.reload:
            return _run(self._broker.reload)
        if self._broker.pid_file is None:
            return True
        try:
            os.kill(_pid_in(self._broker.pid_file), signal.SIGHUP)
        except (OSError, ValueError) as error:
            log.error("the broker was not told to read its files again: %s: %s", self._broker.pid_file, error)  # noqa: TRY400
            return False
        log.info("the broker reads its files again")
        return True

    def _sever(self) -> bool:
        log.warning("somebody was revoked: the broker's connections are ended, and come back by themselves")
        return _run(self._broker.sever)


def write_file(path: Path, text: str) -> bool:
    """Replace a file of Mosquitto's; whether it was another one.

    Raises:
        DrengineError: BROKER_FILES: it can't be written.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == text:
                return False
        replace_durably(path, text.encode(), mode=0o644)
    except OSError as error:
        raise DrengineError(BROKER_FILES, f"{path}: {error.strerror or error}") from error
    return True


def _pid_in(file: Path) -> int:
    pid = int(file.read_text(encoding="ascii"))
    if pid <= 1:
        raise ValueError(f"{pid} is no process of a broker")
    return pid


def _run(command: Sequence[str]) -> bool:
    finished = run_command(list(command), timeout_seconds=COMMAND_SECONDS)
    if not finished.ok:
        log.error("%s ended with %d: %s", command[0], finished.code, finished.output)
    return finished.ok
