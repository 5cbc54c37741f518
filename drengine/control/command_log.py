"""What a party remembers of the commands that it was given: so that none is carried out twice (faults 49 and 50).

An append-only file of JSON lines; the last line of an id holds. A torn last line, as a crash leaves it, was never
acted or answered upon and is dropped when the file is rewritten at the next start.

Invariants:
- A command that is not forgotten is found by its id, also after a restart at any moment, once `begin` or `finish`
  has returned.
- A command that was forgotten is known to be old: `is_forgotten` holds for its expiry, whatever the wall clock does.
- The log is bounded: at most `capacity` commands, each bounded in size; only those whose time is over are forgotten.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from drengine.control.messages import Answer, Command
from drengine.durable import replace_durably

CAPACITY = 2048
LINES_PER_COMMAND = 3
ANSWER_BYTES_MAX = 8 << 10
FILE_BYTES_MAX = 64 << 20
"""More than all lines together can have."""


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file: a command, begun or answered; or, without an id, what was forgotten."""

    id: str = ""
    expires_ns: int = 0
    """Of the command; without an id: of the newest that was forgotten."""
    answer: Answer | None = None
    verb: str = ""


class CommandLog:
    """Commands by id, from a file that is read once."""

    def __init__(self, path: Path, *, capacity: int = CAPACITY) -> None:
        """`path`: the file; its directory is there. Call `load` before anything else."""
        self._path = path
        self._capacity = capacity
        self._known: dict[str, Remembered] = {}
        self._forgotten_ns = 0
        self._lines = 0
        self._torn = False
        self._writing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._known)

    async def load(self) -> None:
        """Read the file, if there is one, and rewrite it without what is superseded.

        Raises:
            OSError: it can't be read or written.
        """
        try:
            text = await asyncio.to_thread(self._read)
        except FileNotFoundError:
            text = b""
        for line in text.split(b"\n"):
            try:
                entry = msgspec.json.decode(line, type=Remembered)
            except msgspec.MsgspecError:  # torn by a crash, or the empty end
                continue
            if entry.id:
                self._known[entry.id] = entry
            else:
                self._forgotten_ns = max(self._forgotten_ns, entry.expires_ns)
        async with self._writing:
            await self._rewrite()

    def find(self, id: str) -> Remembered | None:
        """What is known of a command."""
        return self._known.get(id)

    def is_forgotten(self, expires_ns: int) -> bool:
        """Whether a command of this expiry may be one that was carried out and forgotten."""
        return expires_ns <= self._forgotten_ns

    def make_room(self, now_ns: int) -> bool:
        """Forget commands whose time is over, oldest first, where there is no room; False when there is none."""
        if len(self._known) < self._capacity:
            return True
        over = [entry for entry in self._known.values() if entry.answer and entry.expires_ns < now_ns]
        over.sort(key=lambda entry: entry.expires_ns)
        for entry in over[: len(self._known) - self._capacity + max(1, self._capacity // 8)]:
            del self._known[entry.id]
            self._forgotten_ns = max(self._forgotten_ns, entry.expires_ns)
        return len(self._known) < self._capacity

    async def begin(self, command: Command) -> None:
        """Remember, durably, that it is about to be carried out.

        Raises:
            OSError: it could not be made durable; nothing is known of it.
        """
        await self._keep(Remembered(id=command.id, expires_ns=command.expires_ns, verb=command.verb))

    async def finish(self, command: Command, answer: Answer) -> None:
        """Remember, durably, how it was answered.

        Raises:
            OSError: it could not be made durable; this process knows it all the same.
        """
        entry = Remembered(id=command.id, expires_ns=command.expires_ns, answer=answer, verb=command.verb)
        try:
            await self._keep(entry)
        finally:
            self._known[entry.id] = entry

    async def _keep(self, entry: Remembered) -> None:
        line = msgspec.json.encode(entry) + b"\n"
        async with self._writing:
            if self._torn or self._lines >= self._capacity * LINES_PER_COMMAND:
                await self._rewrite()
            self._torn = True  # until it is known to be whole: what follows a torn line would be lost with it
            await asyncio.to_thread(self._append, line)
            self._torn = False
            self._lines += 1
        self._known[entry.id] = entry

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(FILE_BYTES_MAX)

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line)
            file.flush()
            os.fdatasync(file.fileno())

    async def _rewrite(self) -> None:
        """Replace the file whole: old or new after any crash."""
        entries = [Remembered(expires_ns=self._forgotten_ns), *self._known.values()]
        lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
        await asyncio.to_thread(replace_durably, self._path, lines)
        self._lines, self._torn = len(entries), False
