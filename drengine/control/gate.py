"""Which orders a party listens to: whose, for whom, and what its own configuration allows.

The broker is a courier: what it delivers is believed for the signature that it bears, and not for the way it came.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from drengine.control.foreign import decode
from drengine.control.messages import Command, Verb
from drengine.control.refusals import OrderRefusedError
from drengine.control.seals import BadSealError, Purpose, Sealed, Seals, unsealed
from drengine.identity.names import Identity, Role

ORDER_BYTES_MAX = 64 << 10
SEAL_BYTES_MAX = 24 << 10
"""What a signature with its certificates adds at most."""
ID_LENGTH_MAX = 200
ALWAYS_SIGNED = frozenset({Verb.UPGRADE})
"""What is taken only under an orchestrator's signature, even where `orders` is "any": it replaces the program."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """An order that may be looked at.

    Attributes:
        command: what it says.
        order: names its bytes, see Answer.
        by: who has signed it; None: nobody was asked to.
    """

    command: Command
    order: str
    by: Identity | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What a party lets itself be told.

    Attributes:
        verbs: others are refused.
        approved_force: a forced reversal names who approved it, where orders are signed.
    """

    verbs: tuple[str, ...] = tuple(Verb)
    approved_force: bool = True


EVERYTHING = Policy()


class Gate:
    """One party's."""

    def __init__(
        self,
        own: Identity | None = None,
        seals: Seals | None = None,
        *,
        orders: str = "any",
        policy: Policy = EVERYTHING,
    ) -> None:
        """
        Args:
            own: who we are; None: orders for anybody are for us.
            seals: verifies signatures.
            orders: see the option of that name.
            policy: what this party lets itself be told.
        """
        self._own = own
        self._seals = seals
        self._orders = orders
        self._policy = policy

    @property
    def wants_signed(self) -> bool:
        """Whether only signed orders count."""
        return wants_signed(self._orders, self._seals)

    def admit(self, payload: bytes) -> Admitted:
        """Read what arrived.

        Raises:
            ValueError: it is no order.
            OrderRefusedError: it is one that this party does not take.
        """
        if len(payload) > ORDER_BYTES_MAX + SEAL_BYTES_MAX:
            raise ValueError(f"{len(payload)} bytes")
        sealed = unsealed(payload)
        content = bytes(sealed.signed) if sealed else payload
        if len(content) > ORDER_BYTES_MAX:
            raise ValueError(f"{len(content)} bytes")
        command = decode(content, Command)
        if not 0 < len(command.id) <= ID_LENGTH_MAX or not command.id.isprintable():
            raise ValueError("its id is none")
        try:
            must = self.wants_signed or command.verb in ALWAYS_SIGNED
            by = self._signer(sealed) if must else None
            self._judge(command, by)
        except OrderRefusedError as refused:
            refused.id = command.id
            raise
        return Admitted(command, digest(payload), by)

    def _signer(self, sealed: Sealed | None) -> Identity:
        """The orchestrator that has signed an order.

        Raises:
            OrderRefusedError: nobody has, or somebody else.
        """
        if sealed is None or self._seals is None or self._own is None:
            raise OrderRefusedError("order-unsigned")
        try:
            by = self._seals.verify(Purpose.ORDER, sealed)
        except BadSealError as error:
            raise OrderRefusedError(f"order-{error.code}", str(error)) from error
        if by.role is not Role.ORCHESTRATOR:
            raise OrderRefusedError("order-role", str(by))
        if by.site != self._own.site:
            raise OrderRefusedError("order-site", f"{by}, and we are {self._own}")
        return by

    def _judge(self, command: Command, by: Identity | None) -> None:
        if self._own is not None and command.to != str(self._own) and (by is not None or command.to):
            raise OrderRefusedError("order-addressee", f"{command.to[:120]!r}, and we are {self._own}")
        if command.verb not in self._policy.verbs:
            raise OrderRefusedError("order-not-allowed", f"the verb {command.verb}")
        forced = command.verb is Verb.REVERSE and command.arguments.get("force") is True
        if by is not None and forced and self._policy.approved_force and not command.approver:
            raise OrderRefusedError("order-unapproved")


def digest(payload: bytes) -> str:
    """Names a message by its bytes."""
    return hashlib.sha256(payload).hexdigest()


def wants_signed(orders: str, seals: Seals | None) -> bool:
    """What the option `orders` means for a party with this key, or none."""
    return orders == "signed" or (orders == "auto" and seals is not None and seals.identity is not None)
