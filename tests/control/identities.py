"""Parties with certificates of a CA of ours, and what they sign."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from drengine.config import Address
from drengine.control.config import BrokerOptions
from drengine.control.messages import Command, Verb
from drengine.control.seals import Purpose, Seals
from drengine.identity.authority import Authority
from drengine.identity.keys import new_key, write_key
from drengine.identity.names import Identity, Role
from drengine.model.clock import Clock, SystemClock
from drengine.transport.files import TlsFiles
from tests.clock import ManualClock

SHOP = Identity("main", Role.AGENT, "shop")
BOSS = Identity("main", Role.ORCHESTRATOR, "orchestrator")


@dataclass
class Site:
    """A CA and the files of whom it has named."""

    folder: Path
    authority: Authority

    @staticmethod
    def make(folder: Path, site: str = "main") -> Site:
        hour_ago = ManualClock(time.time_ns() - 3600 * 10**9)  # so that hosts whose clocks are behind believe it too
        made = Site(folder, Authority.create(folder / "ca", site, clock=hour_ago))
        made.authority.write_crl()
        return made

    def files(self, identity: Identity = BOSS, *, file: str = "", crl: bool = True) -> TlsFiles:
        key = new_key()
        hosts = ("127.0.0.1",) if identity.role in (Role.BROKER, Role.TARGET) else ()
        issued = self.authority.issue(identity, key.public_key(), hosts=hosts)
        path = self.folder / f"{file or f'{identity.role}-{identity.name}'}.pem"
        path.write_bytes(issued.certificate)
        path.with_suffix(".key").write_bytes(write_key(key))
        ca = self.authority.folder
        return TlsFiles(path, path.with_suffix(".key"), ca / "ca.pem", ca / "crl.pem" if crl else None)

    def seals(self, identity: Identity = BOSS, clock: Clock | None = None) -> Seals:
        return Seals(self.files(identity), clock or SystemClock())

    def revoke(self, identity: Identity) -> None:
        self.authority.revoke(identity=identity)

    def options(self, port: int, identity: Identity, **more: Any) -> BrokerOptions:
        files = self.files(identity)
        return BrokerOptions(
            address=Address("127.0.0.1", port),
            certificate=files.certificate,
            key=files.key,
            ca=files.ca,
            crl=files.crl,
            **more,
        )


def command(**more: Any) -> Command:
    """An order that nothing is wrong with."""
    values: Mapping[str, Any] = {
        "id": "run.fence:shop.1", "verb": Verb.FENCE, "generation": 3, "expires_ns": time.time_ns() + 30 * 10**9,
        "arguments": {"generation": 3}, "run": "run", "to": str(SHOP), "nonce": "0" * 32, **more,
    }  # fmt: skip
    return Command(**values)


def order(seals: Seals, **more: Any) -> bytes:
    """A signed order, as it travels."""
    return seals.seal(Purpose.ORDER, msgspec.json.encode(command(**more)))
