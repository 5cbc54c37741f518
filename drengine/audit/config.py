"""Options of an audit log, for the target and the orchestrator."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from drengine.audit.log import Keep
from drengine.config import ADDRESS, COUNT, DURATION, PATH, SIZE, TEXT, Address, choice, option


def _webhook(url: str) -> None:
    parts = urlsplit(url)
    try:
        is_ours = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        is_ours = False
    if url and (
        not parts.hostname or parts.username or not (parts.scheme == "https" or (parts.scheme == "http" and is_ours))
    ):
        raise ValueError("write https://HOST/PATH, without a user in it; http:// only to this host's own address")


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError("more than 0 is needed")


@dataclass(frozen=True)
class AuditOptions:
    """How much of the log is kept, and where its newest hash is sent."""

    keep: float = option(DURATION, default=400 * 86400.0, help="For how long entries are kept.", check=_positive)
    keep_size: int = option(SIZE, default=256 << 20, help="The oldest entries go when all take more.", check=_positive)
    syslog: Address | None = option(
        ADDRESS,
        default=None,
        help="Syslog (RFC 5424) that is sent number and hash of the newest entry: unix:/dev/log or HOST:PORT.",
    )
    syslog_over: str = option(choice("tcp", "udp"), default="tcp", help="How syslog at HOST:PORT is reached.")
    webhook: str = option(TEXT, default="", help="URL to which the same is posted as JSON: https://...", check=_webhook)
    webhook_ca: Path | None = option(
        PATH, default=None, help="CA of the webhook's certificate, in PEM; absent: those that the system trusts."
    )
    webhook_token: Path | None = option(
        PATH, default=None, help="File with a token for the webhook, sent as `Authorization: Bearer`."
    )
    anchor_interval: float = option(
        DURATION, default=60.0, help="How often they are sent, if there are new entries.", check=_positive
    )
    anchor_entries: int = option(
        COUNT, default=100, help="They are sent after so many new entries, too.", check=_positive
    )

    def kept(self) -> Keep:
        """How much of the log is kept."""
        return Keep(bytes_max=self.keep_size, seconds=self.keep)
