"""One CA replaces another while everybody goes on: three steps, each taken when all are ready for it.

1. The new CA is made. Parties that follow the authority trust both within seconds.
2. The new one issues, once all living parties are known to trust it. Each gets a certificate of it when it renews.
3. The old one is trusted no more, once no certificate of it is valid.
"""

from __future__ import annotations

from dataclasses import dataclass

from drengine.enrolment.messages import version_of
from drengine.enrolment.seen import read_seen
from drengine.identity.authority import CRL_FILE, Authority
from drengine.identity.errors import CA_REFUSED
from drengine.identity.index import Index
from drengine.identity.names import SCHEME, Role
from drengine.model.errors import DrengineError

_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Step:
    """What was done.

    Attributes:
        name: `begun`, `switched` or `retired`.
        told: the same for people.
        then: what comes next.
        not_ready: identities that were not ready; it was forced.
    """

    name: str
    told: str
    then: str
    not_ready: tuple[str, ...] = ()


def take_step(authority: Authority, *, now: float, force: bool, seconds: float) -> Step:
    """Take the next step.

    Raises:
        DrengineError: CA_REFUSED: parties are not ready, and it is not forced. CA_UNUSABLE.
    """
    index = authority.index()
    if len(index.trusted) == 1:
        made = authority.begin_rollover(seconds=seconds)
        return Step(
            "begun",
            f"made the next CA, {made.fingerprint.hex()}; {index.issuing} issues until the next step",
            "When all have heard of it (a minute, while `drengine ca serve` runs), call `drengine ca rollover` again.",
        )
    if index.issuing == index.trusted[0]:
        behind = _not_informed(authority, index, now)
        _require(behind, "have not heard of the next CA, and would not believe who has a certificate of it", force)
        made = authority.switch()
        return Step(
            "switched",
            f"{made.fingerprint.hex()} issues from now on; tokens that were printed before no longer work",
            "When all have renewed, call `drengine ca rollover` again.",
            behind,
        )
    behind = tuple(
        sorted({each.identity for each in index.entries if each.issuer != index.issuing and each.state(now) == "valid"})
    )
    _require(behind, "have certificates of the old CA that are valid", force)
    authority.retire()
    return Step("retired", "only the new CA is trusted from now on", "The rollover is through.", behind)


def _not_informed(authority: Authority, index: Index, now: float) -> tuple[str, ...]:
    """Who has a certificate that is valid, and was not seen with the CAs of now."""
    crl = (authority.folder / CRL_FILE).read_text(encoding="ascii")
    current, seen = version_of(authority.certificate.decode(), crl), read_seen(authority.folder)
    ourselves = f"{SCHEME}://{index.site}/{Role.AUTHORITY}/"
    living = {each.identity for each in index.entries if each.state(now) == "valid"}
    return tuple(
        sorted(
            each
            for each in living
            if not each.startswith(ourselves) and (each not in seen or seen[each].has != current)
        )
    )


def _require(behind: tuple[str, ...], why: str, force: bool) -> None:
    if behind and not force:
        more = f" and {len(behind) - _SHOWN_MAX} more" if len(behind) > _SHOWN_MAX else ""
        raise DrengineError(
            CA_REFUSED,
            f"{', '.join(behind[:_SHOWN_MAX])}{more} {why}",
            hint="Wait for them, or revoke those that are gone; --force goes on without them.",
        )
