"""[monitoring]"""

from __future__ import annotations

from dataclasses import dataclass

from drengine.config import ADDRESS, WORDS, Address, option


def _addresses(texts: tuple[str, ...]) -> None:
    for text in texts:
        if ADDRESS.parse(text).path:
            raise ValueError(f"{text}: a host and a port are wanted")


@dataclass(frozen=True)
class MonitoringOptions:
    """What Prometheus is told to ask, as it reaches it."""

    targets: tuple[str, ...] = option(
        WORDS,
        default=("127.0.0.1:9440",),
        check=_addresses,
        help="`metrics` of targets, as Prometheus reaches them: HOST:PORT. The first is the one of this store, which "
        "also shows what its agents tell. Targets that share a store tell their own, and these do not count.",
    )
    others: tuple[str, ...] = option(
        WORDS,
        default=(),
        check=_addresses,
        help="`metrics` of what else is to be asked: the authority, other orchestrators.",
    )
    orchestrator: Address | None = option(
        ADDRESS, default=None, help="`metrics` of this orchestrator, as Prometheus reaches it; absent: as it is there."
    )
