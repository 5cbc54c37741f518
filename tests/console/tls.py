"""A certificate for REST, from our own CA, as a site gets one."""

from __future__ import annotations

from pathlib import Path

from drengine.failover.config import RestTlsOptions
from drengine.identity.authority import Authority
from drengine.identity.keys import new_key, write_key
from drengine.identity.names import Identity


def issue(ca: Path, to: Path, *, authority: Authority | None = None) -> RestTlsOptions:
    """Files of a fresh certificate in a folder, and `ca.pem`; the CA is made if it is missing."""
    authority = authority or Authority.create(ca, "main")
    to.mkdir(exist_ok=True)
    key = new_key()
    identity = Identity.parse("drengine://main/orchestrator/rest")
    issued = authority.issue(identity, key.public_key(), hosts=["localhost", "127.0.0.1"], both_ways=True)
    (to / "key.pem").write_bytes(write_key(key))
    (to / "certificate.pem").write_bytes(issued.certificate)
    (to / "ca.pem").write_bytes((ca / "ca.pem").read_bytes())
    return RestTlsOptions(to / "certificate.pem", to / "key.pem")
