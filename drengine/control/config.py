"""The broker's options, shared by all parties."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from drengine.config import ADDRESS, ADDRESSES, BAD_CONFIG, DURATION, FLAG, PATH, TEXT, WORDS, Address, choice, option
from drengine.control.messages import Verb
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.transport.files import TlsFiles

LOCAL_USERS = ("drengine", "mosquitto")
HOST_VERBS = (Verb.ATTACH, Verb.QUIESCE, Verb.DETACH, Verb.HYDRATE, Verb.CHECK, Verb.STATUS)
AGENT_VERBS = tuple(verb for verb in Verb if verb not in (Verb.ATTACH, Verb.DETACH, Verb.HYDRATE, Verb.CHECK))
"""What each kind of party can be told to do."""


def check_verbs(known: Collection[str]) -> Callable[[Sequence[str]], None]:
    """A check for an option that lists some of these verbs."""

    def check(verbs: Sequence[str]) -> None:
        if strange := set(verbs) - set(known):
            raise ValueError(f"{min(strange)[:40]!r} is no verb; there are {', '.join(known)}")

    return check


def _keepalive(seconds: float) -> None:
    if not 1 <= seconds <= 1200:
        raise ValueError("1s to 20m are possible")


@dataclass(frozen=True)
class BrokerOptions:
    """How to reach the broker. Without an address nothing is connected, and all that needs no remote party works."""

    address: Address | None = option(
        ADDRESS, default=None, help="The MQTT broker's HOST:PORT; absent: no control messages."
    )
    more_addresses: tuple[Address, ...] = option(
        ADDRESSES,
        default=(),
        help="Further addresses of the same broker, where it is a cluster or has a standby: when one is not reached, "
        "or a connection is lost, the next is tried, in turn.",
    )
    site: str = option(
        TEXT,
        default="main",
        help="The site's name; parties of one site see each other.",
        check=lambda text: check_name(text, what="site"),
    )
    certificate: Path | None = option(PATH, default=None, help="PEM file with our certificate; its CN is our name.")
    key: Path | None = option(PATH, default=None, help="PEM file with its key.")
    ca: Path | None = option(PATH, default=None, help="PEM file with the CA that signs the broker and the parties.")
    crl: Path | None = option(
        PATH,
        default=None,
        help="PEM file with the newest CRL of each CA in `ca`; absent: nobody is revoked. It counts for the broker "
        "and for who signs orders and answers, and is read again when it changes.",
    )
    orders: str = option(
        choice("auto", "signed", "any"),
        default="auto",
        help="`signed`: orders, and answers to them, count only when they are signed by whose they are "
        "(docs/control.md). `any`: whoever can publish at the broker is believed. `auto`: `signed` where our "
        "certificate has a drengine:// name, else `any`.",
    )
    allow_plain: bool = option(FLAG, default=False, help="Allow a connection without TLS beyond loopback.")
    local_users: tuple[str, ...] = option(
        WORDS,
        default=LOCAL_USERS,
        help="Without TLS on loopback: users whose process the broker may be, besides root and our own user; for the "
        "embedded broker, whose clients too. `allow_plain` lets anybody be it.",
    )
    keepalive: float = option(
        DURATION,
        default=10.0,
        help="How often a quiet connection is proved; after one and a half of it the broker says that we are gone.",
        check=_keepalive,
    )

    def check(self, where: str) -> None:
        """What concerns several options.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        if self.tls_files(where) is None and self.orders == "signed":
            raise DrengineError(BAD_CONFIG, f"{where}: signed orders need certificate, key and ca")
        if self.address is None:
            return
        if not all(each.host for each in self.addresses):
            raise DrengineError(BAD_CONFIG, f"{where}: the broker's address is a host and a port")
        if not (self.certificate or self.allow_plain or all(_is_local(each.host) for each in self.addresses)):
            raise DrengineError(BAD_CONFIG, f"{where}: a broker beyond loopback needs certificate, key and ca")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All addresses, in the order in which they are tried; none without a broker."""
        return () if self.address is None else (self.address, *self.more_addresses)

    def tls_files(self, where: str = "the broker's section") -> TlsFiles | None:
        """The certificate files; None for a plain connection.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        return TlsFiles.together(self.certificate, self.key, self.ca, self.crl, where=where)


@dataclass(frozen=True)
class OrchestratorBrokerOptions(BrokerOptions):
    """The orchestrator's section: it may bring the broker with it."""

    embedded: bool = option(
        FLAG,
        default=False,
        help="`drengine orchestrator run` starts a broker of its own at this address (docs/control.md). Without "
        "certificates it must be on loopback.",
    )
    embedded_certificate: Path | None = option(
        PATH, default=None, help="PEM file with the embedded broker's own certificate, where there are certificates."
    )
    embedded_key: Path | None = option(PATH, default=None, help="PEM file with its key.")

    def check(self, where: str) -> None:
        super().check(where)
        if not self.embedded:
            return
        files = self.embedded_files(where)
        if self.address is None or not (files or _is_local(self.address.host)):
            raise DrengineError(BAD_CONFIG, f"{where}: the embedded broker needs an address, without TLS on loopback")
        if (files is None) != (self.certificate is None):
            raise DrengineError(BAD_CONFIG, f"{where}: the embedded broker needs a certificate where we have one")

    def embedded_files(self, where: str = "the broker's section") -> TlsFiles | None:
        """The embedded broker's certificate files; None: it has no TLS.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        if not (self.embedded_certificate or self.embedded_key):
            return None
        return TlsFiles.together(self.embedded_certificate, self.embedded_key, self.ca, self.crl, where=where)


def _is_local(host: str) -> bool:
    """Whether it is loopback by its looks; a name that only resolves to it does not count."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
