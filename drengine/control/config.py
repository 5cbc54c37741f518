"""The broker's options, shared by all parties."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from drengine.config import ADDRESS, BAD_CONFIG, DURATION, FLAG, PATH, TEXT, Address, option
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.transport.files import TlsFiles


def _keepalive(seconds: float) -> None:
    if not 1 <= seconds <= 1200:
        raise ValueError("1s to 20m are possible")


@dataclass(frozen=True)
class BrokerOptions:
    """How to reach the broker. Without an address nothing is connected, and all that needs no remote party works."""

    address: Address | None = option(
        ADDRESS, default=None, help="The MQTT broker's HOST:PORT; absent: no control messages."
    )
    site: str = option(
        TEXT,
        default="main",
        help="The site's name; parties of one site see each other.",
        check=lambda text: check_name(text, what="site"),
    )
    certificate: Path | None = option(PATH, default=None, help="PEM file with our certificate; its CN is our name.")
    key: Path | None = option(PATH, default=None, help="PEM file with its key.")
    ca: Path | None = option(PATH, default=None, help="PEM file with the CA that signs the broker.")
    allow_plain: bool = option(FLAG, default=False, help="Allow a connection without TLS beyond loopback.")
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
        self.tls_files(where)
        if self.address is None:
            return
        if not self.address.host:
            raise DrengineError(BAD_CONFIG, f"{where}: the broker's address is a host and a port")
        if not (self.certificate or self.allow_plain or _is_local(self.address.host)):
            raise DrengineError(BAD_CONFIG, f"{where}: a broker beyond loopback needs certificate, key and ca")

    def tls_files(self, where: str = "the broker's section") -> TlsFiles | None:
        """The certificate files; None for a plain connection.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        return TlsFiles.together(self.certificate, self.key, self.ca, where=where)


@dataclass(frozen=True)
class OrchestratorBrokerOptions(BrokerOptions):
    """The orchestrator's section: it may bring the broker with it."""

    embedded: bool = option(
        FLAG,
        default=False,
        help="`drengine orchestrator run` starts a broker of its own at this address, which must be on loopback: for "
        "one machine. It keeps nobody apart; use Mosquitto for more (docs/control.md).",
    )

    def check(self, where: str) -> None:
        super().check(where)
        if self.embedded and (self.address is None or not _is_local(self.address.host)):
            raise DrengineError(BAD_CONFIG, f"{where}: the embedded broker needs an address on loopback")


def _is_local(host: str) -> bool:
    """Whether it is loopback by its looks; a name that only resolves to it does not count."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
