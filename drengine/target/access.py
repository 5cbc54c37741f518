"""Who may open which export of the store, and how: decided when it is opened, and held to as long as it is open.

| who comes | may open |
|---|---|
| host H, by its certificate | what a living grant names H for, in the grant's mode |
| orchestrator, by its certificate | open branches of drills |
| agent, target, broker, by its certificate | nothing, whatever else they show |
| anyone else with a capability | what its grant is for, in the grant's mode |
| root and the target's own user, on the unix socket | everything: the store's files are theirs anyway |
| a certificate without a name, plain loopback | everything, unless `exports = "granted"` or identities are required |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drengine.identity.names import Identity, Role
from drengine.model.errors import DrengineError
from drengine.model.grants import Access, Grant
from drengine.nbd.export import Peer
from drengine.process.local import own_users
from drengine.store.store import Store
from drengine.target.errors import GRANT_MISSING
from drengine.transport.peers import PeerRules, refused_role

_USES = frozenset((Access.READ, Access.WRITE))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a name means: a branch, or with `sequence` a point of it."""

    source: str
    branch: int
    sequence: int = 0

    def __str__(self) -> str:
        place = f"point {self.branch}-{self.sequence}" if self.sequence else f"branch {self.branch}"
        return f"{place} of {self.source!r}"


@dataclass(frozen=True, slots=True)
class Permit:
    """What an open export rests on.

    Attributes:
        writable: a branch may be written.
        grant: id of the grant; empty where it needs none.
    """

    writable: bool = True
    grant: str = ""


@dataclass(frozen=True, slots=True)
class Visitor:
    """A peer that came for an export.

    Attributes:
        shown: who it is, for the log and for its refusal.
        sees_all: it may open everything.
        holder: as which its grants name it; empty: by a secret.
        secret: that it showed.
        drills: it may open what drills write.
    """

    shown: str
    sees_all: bool = False
    holder: str = ""
    secret: str = ""
    drills: bool = False

    def holds(self, grant: Grant) -> bool:
        """Whether a grant is this peer's, to read or write."""
        if grant.access not in _USES:
            return False
        return grant.holder == self.holder if self.holder else grant.is_opened_by(self.secret)


@dataclass(frozen=True, slots=True)
class ExportRules:
    """The rules of a target's exports.

    Attributes:
        store: whose grants count.
        peers: whether a certificate is to be believed.
        only_granted: who has no name must show a capability.
    """

    store: Store
    peers: PeerRules
    only_granted: bool = False

    def visitor(self, peer: Peer, secret: str) -> Visitor:
        """Who comes.

        Raises:
            TransportError: TLS_FAILED: a party of this role may not use exports, or its certificate counts nothing.
        """
        identity = self.peers.identify(peer.certificate) if peer.certificate else None
        shown = shown_peer(peer, identity)
        if identity is not None:
            if identity.role not in (Role.HOST, Role.ORCHESTRATOR):
                raise refused_role(identity, "may not use exports")
            holder = "" if secret else f"{identity.role}/{identity.name}"
            drills = identity.role is Role.ORCHESTRATOR
            return Visitor(shown, holder=holder, secret=secret, drills=drills)
        if secret:
            return Visitor(shown, secret=secret)
        if peer.uid is not None:
            return Visitor(shown, sees_all=peer.uid in own_users())
        return Visitor(shown, sees_all=not self.only_granted)

    def permit(self, visitor: Visitor, wanted: Wanted) -> Permit:
        """On what this visitor may open it.

        Raises:
            DrengineError: GRANT_MISSING.
        """
        if visitor.sees_all:
            return Permit()
        if visitor.drills and not wanted.sequence and self._is_drill(wanted):
            return Permit()
        place = (wanted.source, wanted.branch, wanted.sequence)
        held = [each for each in self._held(visitor) if (each.source, each.branch, each.sequence) == place]
        if not held:
            raise missing(visitor, str(wanted))
        best = max(held, key=lambda grant: grant.access is Access.WRITE)
        return Permit(best.access is Access.WRITE, best.id)

    def shows(self, visitor: Visitor, source: str, branch: int) -> bool:
        """Whether LIST shows this visitor a branch; 0: the source's newest point."""
        if visitor.sees_all or (branch and visitor.drills and self._is_drill(Wanted(source, branch))):
            return True
        held = ((each.source, each.branch) for each in self._held(visitor) if not each.sequence)
        return bool(branch) and (source, branch) in held

    def _held(self, visitor: Visitor) -> Iterator[Grant]:
        return (grant for grant in self.store.grants.living() if visitor.holds(grant))

    def _is_drill(self, wanted: Wanted) -> bool:
        branches = self.store.branches(wanted.source)
        return any(each.number == wanted.branch and each.role == "drill" and not each.closed for each in branches)


def missing(visitor: Visitor, what: str) -> DrengineError:
    """GRANT_MISSING, which says who was seen and what was asked for."""
    return DrengineError(GRANT_MISSING, f"{visitor.shown} has no grant for {what[:200]}")


def shown_peer(peer: Peer, identity: Identity | None = None) -> str:
    """Who is seen at the other end of an NBD connection, as far as it is proved."""
    if identity is not None:
        return str(identity)
    if peer.certificate:
        return f"a certificate without a name (common name {peer.subject[:80]!r})"
    return f"local:{peer.uid}" if peer.uid is not None else f"a plain connection from {peer.address}"
