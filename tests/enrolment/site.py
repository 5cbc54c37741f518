"""An authority that serves, and hosts that come to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drengine.config import Address
from drengine.enrolment.client import enrol
from drengine.enrolment.place import Place
from drengine.enrolment.serving import AuthorityDaemon, ServeOptions
from drengine.identity.authority import CERTIFICATE_SECONDS, Authority
from drengine.identity.names import Identity, Role
from drengine.identity.tokens import Invitation
from drengine.model.clock import Clock


@dataclass
class Site:
    """A CA that serves."""

    authority: Authority
    address: Address
    folder: Path

    def invitation(self, role: Role = Role.AGENT, name: str = "*", **options: Any) -> Invitation:
        """A token; by default for one agent of any name, for an hour."""
        made, secret = self.authority.create_token(role, name, **{"seconds": 3600, **options})
        return Invitation(self.address, self.authority.issuing.fingerprint, made.id, secret)

    def place(self, name: str) -> Place:
        """A host's folder."""
        return Place(self.folder / name)

    async def joined(self, name: str, role: Role = Role.AGENT, **options: Any) -> Place:
        """A host that has enrolled."""
        place = self.place(name)
        await enrol(self.invitation(role, name, **options), name, place)
        return place

    def revoke(self, name: str, role: Role = Role.AGENT) -> None:
        """As `drengine ca revoke`, in another process."""
        Authority(self.authority.folder).revoke(identity=Identity("main", role, name))


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    clock: Clock | None = None,
    seconds: float = CERTIFICATE_SECONDS,
    port: int = 0,
    agent: Path = Path("/nonexistent"),
) -> AsyncIterator[Site]:
    """An authority in `folder`, made where it is missing; its certificates are valid for so long."""
    ca = folder / "ca"
    authority = Authority(ca, clock=clock) if ca.exists() else Authority.create(ca, "main", clock=clock)
    options = ServeOptions(Address("127.0.0.1", port), ("127.0.0.1",), seconds, agent=agent)
    daemon = AuthorityDaemon(authority, options, clock=clock)
    try:
        yield Site(authority, await daemon.start(), folder)
    finally:
        await daemon.stop()


async def until(ready: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something that other tasks do."""
    async with asyncio.timeout(seconds):
        while not ready():  # noqa: ASYNC110 - it is the test that looks
            await asyncio.sleep(0.01)
