"""What Prometheus learns from the authority, and from each party of how it keeps up with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drengine.enrolment.messages import EnrolledParty
from drengine.identity.errors import REASONS
from drengine.model.clock import Clock
from drengine.telemetry.metrics import Family, Kind, Metrics, Sample

if TYPE_CHECKING:
    from drengine.enrolment.keeper import Keeper

_ASKED = frozenset({"agent", "/agent", "ca", "enrol", "renew", "updates", "identities"})
REQUESTS = Family(
    "authority_requests_total",
    Kind.COUNTER,
    "Requests by what was asked (ca, enrol, renew, updates, identities, other) and outcome (done, or why it was "
    "refused: docs/errors.md).",
    ("what", "outcome"),
)
TURNED_AWAY = Family(
    "authority_connections_turned_away", Kind.GAUGE, "Connections that were closed to make room, since the start."
)
PARTIES = Family("authority_parties", Kind.GAUGE, "Parties that have a certificate which is valid.", ("role",))
OWN_EXPIRY = Family(
    "authority_certificate_expiry_seconds",
    Kind.GAUGE,
    "Seconds until the authority's own certificate expires, and the CA's.",
    ("file",),
)
FAMILIES = (REQUESTS, TURNED_AWAY, PARTIES, OWN_EXPIRY)


class AuthorityMetrics(Metrics):
    """The authority's. Its service and server tell it what there is."""

    def __init__(self, clock: Clock) -> None:
        self.certificate_ends_at = 0.0
        self.ca_ends_at = 0.0
        self.turned_away: Callable[[], int] = lambda: 0
        self._clock = clock
        self._parties: Counter[str] = Counter()
        super().__init__(FAMILIES, self._ask)

    def count_request(self, what: str, outcome: str) -> None:
        """Somebody was answered."""
        assert outcome == "done" or outcome in REASONS
        self.count(REQUESTS, 1, (what if what in _ASKED else "other", outcome))

    def show(self, parties: Sequence[EnrolledParty]) -> None:
        """So many there are."""
        self._parties = Counter(each.role.value for each in parties)

    def _ask(self) -> Iterable[Sample]:
        now = self._clock.now_ns() / 1e9
        yield Sample(TURNED_AWAY, self.turned_away())
        yield Sample(OWN_EXPIRY, self.certificate_ends_at - now, ("certificate",))
        yield Sample(OWN_EXPIRY, self.ca_ends_at - now, ("ca",))
        for role, count in self._parties.items():
            yield Sample(PARTIES, count, (role,))


@dataclass(frozen=True)
class KeepingFamilies:
    """The metrics of how a program keeps its certificate fresh."""

    silent: Family
    overdue: Family

    @staticmethod
    def of(program: str, labels: tuple[str, ...] = ()) -> KeepingFamilies:
        """`program` is `target`, `agent` or `orchestrator`; `labels` stand before the folder."""
        return KeepingFamilies(
            Family(
                f"{program}_authority_silent_seconds",
                Kind.GAUGE,
                "Seconds since the authority last said who is revoked; the list of that time goes on.",
                (*labels, "folder"),
            ),
            Family(
                f"{program}_renewal_overdue_seconds",
                Kind.GAUGE,
                "For how long the certificate should have been renewed; 0 while it needs not.",
                (*labels, "folder"),
            ),
        )

    @property
    def both(self) -> tuple[Family, Family]:
        """To be registered."""
        return self.silent, self.overdue

    def samples(self, keepers: Iterable[Keeper], labels: tuple[str, ...] = ()) -> Iterable[Sample]:
        """How they stand now."""
        for each in keepers:
            folder = (*labels, str(each.place.folder))
            yield Sample(self.silent, each.silent_seconds, folder)
            yield Sample(self.overdue, each.overdue_seconds, folder)
