"""Replacing our own program when an orchestrator orders it: fetched from the authority, tried, then installed.

The order is signed and names the file's SHA-256, so nobody between can change what is run. The new file tries itself
first (its doctor, on this host), and installs itself as a person would have it: `drengine-agent upgrade`. That
replaces the program whole and restarts the service, so whoever is killed at any moment leaves the old program or the
new one, and the kernel goes on tracking. Where the new one does not start, the old one installs itself again.

The installer outlives the agent that began it. Its standard input is a file that is locked before `upgrade.json` says
`installing`, so there is one installer at a time, and whoever comes after us knows whether it is at work still. What it
says goes to a file: a pipe would break when we are killed, and the installer would fail because of that.

| killed | left is | the next start says |
|---|---|---|
| before `upgrade.json` says `installing` | the old program, perhaps a file fetched | nothing |
| after it, before the installer begins | the old program | `failed`: it was interrupted |
| while the installer is at work | the old program, or the new one | `installing`, until that is through |
| after that | the new program | `installed` |
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from drengine.durable import replace_durably
from drengine.enrolment.client import fetch_agent
from drengine.enrolment.messages import AgentAnswer
from drengine.enrolment.place import Place
from drengine.model.errors import DrengineError
from drengine_agent.errors import UPGRADE_REFUSED
from drengine_agent.program import PACKAGED, PROGRAM, started_from

log = logging.getLogger("drengine.agent")

FOLDER, FILE, BEFORE_FILE, SAID_FILE = "upgrade", "drengine-agent", "before", "said"
STATE_FILE, LOCK_FILE = "upgrade.json", "upgrade.lock"
INSTALL_OR_GO_BACK = """\
"$0" -IS "$1" upgrade --yes --json < /dev/null && exit
code=$?
"$0" -IS "$2" upgrade --yes --json < /dev/null
exit $code
"""
"""A shell's, which alone holds the lock. Python, the new file and the old one are its arguments."""
INTERRUPTED = "it was interrupted, or did not start: the program is the one before"
TRY_SECONDS, INSTALL_SECONDS = 120.0, 300.0
SAID_CHARACTERS_MAX = 400
SIZE_BYTES_MAX = 256 << 20
SYSTEMD = Path("/run/systemd/system")
Run = Callable[[list[str], float, Path, int], Awaitable[tuple[int, str]]]


class _Kept(msgspec.Struct, frozen=True):
    """Contents of upgrade.json: the newest upgrade, how far it is (`installing`, `installed` or `failed`), and its
    number here, which tells a failure from an earlier one.
    """

    state: str = ""
    version: str = ""
    sha256: str = ""
    message: str = ""
    number: int = 0


class Upgrade:
    """One agent's."""

    def __init__(
        self,
        state_directory: Path,
        place: Place | None,
        *,
        restart: Callable[[], object],
        program: Path | None = None,
        run: Run | None = None,
    ) -> None:
        """
        Args:
            state_directory: the agent's.
            place: its certificates, beside which the authority's address is known; None without certificates.
            restart: starts this process anew from PROGRAM, where no systemd does.
            program: the one file that runs; by default, the one that this process was started from.
            run: runs a command for so many seconds at most, its output in a file, its standard input given; tells its
                exit code and its output.
        """
        self._folder = state_directory / FOLDER
        self._path = state_directory / STATE_FILE
        self._lock_path = state_directory / LOCK_FILE
        self._place = place
        self._restart = restart
        self._program = program or started_from()
        self._run = run or _run
        self._sha256 = _digest_of(self._program) if self._program else ""
        self._installing: asyncio.Task[None] | None = None
        self._ordered = asyncio.Lock()
        self._kept = self._after_start(self._load())

    def told(self) -> dict[str, str]:
        """For reports: which file runs, and how the newest upgrade is."""
        self._settle()
        kept = self._kept
        shown = {"state": kept.state, "to": kept.sha256, "version": kept.version, "message": kept.message}
        shown["number"] = str(kept.number or "")
        return {"sha256": self._sha256, **{name: value for name, value in shown.items() if value}}

    async def order(self, wanted: AgentAnswer) -> dict[str, str]:
        """Begin; answers when it was fetched and has tried itself, before anything is replaced.

        Raises:
            DrengineError: UPGRADE_REFUSED, nothing was changed.
        """
        async with self._ordered:  # an order that is given again waits for the first one's trial
            self._settle()
            if wanted.sha256 in (self._sha256, self._under_way):
                return self.told()
            if self._under_way:
                raise DrengineError(UPGRADE_REFUSED, f"an upgrade to {self._kept.version} is under way")
            place = self._require_possible()
            if not 0 < wanted.size_bytes <= SIZE_BYTES_MAX:
                raise DrengineError(UPGRADE_REFUSED, f"{wanted.size_bytes} bytes are no agent")
            lock = self._lock()
            try:
                staged = await self._stage(place, wanted)
                self._keep(_Kept("installing", wanted.version, wanted.sha256, number=self._kept.number + 1))
            except BaseException:
                os.close(lock)
                raise
            self._installing = asyncio.create_task(self._install(staged, lock))
        return self.told()

    @property
    def _under_way(self) -> str:
        """SHA-256 of what is being installed; empty: nothing."""
        return self._kept.sha256 if self._kept.state == "installing" else ""

    async def _stage(self, place: Place, wanted: AgentAnswer) -> Path:
        """The new file, fetched and tried.

        Raises:
            DrengineError: UPGRADE_REFUSED.
        """
        staged = self._folder / FILE
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            await asyncio.to_thread(shutil.copyfile, PROGRAM, self._folder / BEFORE_FILE)
            await fetch_agent(place, wanted, staged)
        except OSError as error:
            raise DrengineError(UPGRADE_REFUSED, f"{staged}: {error.strerror}") from error
        trial = [sys.executable, "-IS", str(staged), "upgrade", "--yes", "--json", "--dry-run"]
        code, said = await self._run(_outside(trial), TRY_SECONDS, self._folder / SAID_FILE, subprocess.DEVNULL)
        if code:
            raise DrengineError(UPGRADE_REFUSED, f"{wanted.version} does not want to run here: {_reason(said)}")
        return staged

    def _require_possible(self) -> Place:
        """
        Raises:
            DrengineError: UPGRADE_REFUSED.
        """
        if self._program == PACKAGED:
            raise DrengineError(UPGRADE_REFUSED, "the package manager keeps this agent: upgrade its package")
        if self._program != PROGRAM:
            runs_from = self._program or sys.executable
            raise DrengineError(UPGRADE_REFUSED, f"this agent was not installed by itself: it runs from {runs_from}")
        if self._place is None or self._place.authority is None:
            raise DrengineError(
                UPGRADE_REFUSED, "no authority is known that hands out agents: this one is not enrolled"
            )
        return self._place

    async def _install(self, staged: Path, lock: int) -> None:
        """Under systemd it restarts us in between: the next process tells the end."""
        before = self._folder / BEFORE_FILE
        words = ["sh", "-c", INSTALL_OR_GO_BACK, sys.executable, str(staged), str(before)]
        try:
            code, said = await self._run(_outside(words), INSTALL_SECONDS, self._folder / SAID_FILE, lock)
        finally:
            os.close(lock)
        if code:
            self._fail(_reason(said))
        elif not _has_systemd():
            self._go_on_as_new()

    def _after_start(self, kept: _Kept) -> _Kept:
        """What is known of an upgrade that was under way when the process before us ended."""
        if kept.state in ("installing", "failed") and kept.sha256 == self._sha256:
            return self._keep(msgspec.structs.replace(kept, state="installed", message=""))
        if kept.state != "installing" and not self._is_locked():
            shutil.rmtree(self._folder, ignore_errors=True)
        return kept

    def _settle(self) -> None:
        """What became of an upgrade whose installer has outlived the process that began it, once that is through."""
        is_ours = self._installing is not None and not self._installing.done()
        if not self._under_way or is_ours or self._is_locked():
            return
        if self._program and _digest_of(self._program) == self._kept.sha256:
            self._go_on_as_new()
            return
        said = _text(self._folder / SAID_FILE)
        self._fail(f"{INTERRUPTED}; {_reason(said)}" if said.strip() else INTERRUPTED)

    def _is_locked(self) -> bool:
        try:
            os.close(self._lock())
        except DrengineError:
            return True
        return False

    def _fail(self, why: str) -> None:
        self._keep(msgspec.structs.replace(self._kept, state="failed", message=why))
        log.error("the upgrade to %s failed: %s", self._kept.version, why)

    def _go_on_as_new(self) -> None:
        self._keep(msgspec.structs.replace(self._kept, state="installed"))
        log.info("starting anew from %s, version %s", PROGRAM, self._kept.version)
        self._restart()

    def _lock(self) -> int:
        """What the installer gets as its standard input: an open file, locked as long as somebody has it open.

        Raises:
            DrengineError: UPGRADE_REFUSED, an installer is at work.
        """
        lock = -1
        try:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if lock >= 0:
                os.close(lock)
            why = "an installer is at work" if lock >= 0 else f"{self._lock_path}: {error.strerror}"
            raise DrengineError(UPGRADE_REFUSED, why) from error
        return lock

    def _keep(self, kept: _Kept) -> _Kept:
        self._kept = kept
        try:
            replace_durably(self._path, msgspec.json.encode(kept))
        except OSError as error:
            log.warning("%s: %s", self._path, error)
        return kept

    def _load(self) -> _Kept:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return _Kept()


def _outside(words: list[str]) -> list[str]:
    """A command as it runs outside the service's sandbox, which hides what an installation has to write."""
    if not _has_systemd():
        return words
    return ["systemd-run", "--quiet", "--collect", "--wait", "--pipe", "--property=UMask=0022", *words]


def _has_systemd() -> bool:
    return SYSTEMD.is_dir()


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _reason(said: str) -> str:
    """Why the new file's `upgrade --json` failed."""
    for line in reversed(said.splitlines()):
        try:
            found: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "message" in found:
            return f"{found['message']} [{found.get('error', '')}]"[:SAID_CHARACTERS_MAX]
    return (" ".join(said.split()) or "it said nothing")[-SAID_CHARACTERS_MAX:]


async def _run(words: list[str], seconds: float, output: Path, stdin: int) -> tuple[int, str]:
    """It outlives us: the installer restarts the agent that has started it."""
    try:
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=stdin,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
            )
    except OSError as error:
        return 127, f"{error.filename or words[0]}: {error.strerror}"
    try:
        code = await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        return 124, f"it did not end within {seconds:g} s"
    return code, _text(output)
