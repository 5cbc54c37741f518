"""Why a party refuses an order: a code in its answer, in metrics and in docs/errors.md, with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason.

    Attributes:
        code: a word for answers, metrics and scripts.
        meaning: what is wrong with the order.
        hint: what to do.
    """

    code: str
    meaning: str
    hint: str


REFUSALS: dict[str, Refusal] = {
    each.code: each
    for each in (
        Refusal(
            "order-unsigned",
            "the order has no signature, and this party takes signed ones only",
            "Name certificate, key and ca in the orchestrator's `[broker]`; or set `orders = \"any\"` in the party's "
            "`[control]`, knowing that whoever can publish at the broker commands it then.",
        ),
        Refusal(
            "order-signature",
            "the signature is not of this order by the key of the certificate that came with it",
            "Something between orchestrator and party has changed it: look at the broker and at who may publish there.",
        ),
        Refusal(
            "order-certificate",
            "the order's certificate is not of the party's CA, not valid now, or names nobody",
            "The message says which. Compare `ca` and the clocks of both sides, and renew what has expired.",
        ),
        Refusal(
            "order-revoked",
            "the order's certificate was revoked",
            "Give the orchestrator a new certificate if it is still trusted.",
        ),
        Refusal(
            "order-role",
            "the order is signed by somebody who is not an orchestrator",
            "Only a certificate of the role `orchestrator` commands. If nobody gave a party the wrong files, that host "
            "was taken over.",
        ),
        Refusal(
            "order-site",
            "the order is signed by an orchestrator of another site",
            "Compare `site` and the certificates of both sides.",
        ),
        Refusal(
            "order-addressee",
            "the order is for another party",
            "Somebody at the broker has sent it on: look at who may publish there.",
        ),
        Refusal(
            "order-expired",
            "the order's time is over by the party's clock",
            "Compare the clocks of the orchestrator and the party: expiries are absolute.",
        ),
        Refusal(
            "order-reused",
            "the order's id was used for another verb before",
            "Give a new order; ids of runs are not reused.",
        ),
        Refusal(
            "order-unapproved",
            "a forced reversal, which gives up what the disks hold, names nobody who approved it",
            "Put an approval step before it in the runbook; or let the host decide alone, by `forced_reverse` in "
            "its `[control]`.",
        ),
        Refusal(
            "order-not-allowed",
            "the order is outside of what the host's own configuration allows",
            "The message says what. The host's owner may add it to the lists in that host's configuration file.",
        ),
    )
}


class OrderRefusedError(Exception):
    """An order that is not carried out. `code` is a key of REFUSALS, `id` the order's where it is known."""

    def __init__(self, code: str, message: str = "", *, id: str = "") -> None:
        refusal = REFUSALS[code]
        super().__init__(f"{refusal.meaning}: {message}" if message else refusal.meaning)
        self.code = code
        self.id = id
