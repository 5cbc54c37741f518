"""The agent's configuration, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drengine_agent.bandwidth import BandwidthSchedule


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """A volume to protect: what people call it, and where it lies now."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything an agent is told. See docs/agent.md for each option's meaning and default."""

    source: str
    target_host: str
    target_port: int
    state_directory: Path
    volumes: tuple[VolumeConfig, ...]
    tracker: str = "nbd"
    data_networks: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    allow_plain: bool = False
    nbd_listen: str = ""
    nbd_protocol: str = "async"
    nbd_sync_fallback_seconds: float = 10.0
    journal_bytes: int = 1 << 30
    scan_interval_seconds: float = 3600.0
    assume_quiescent: bool = False
    point_interval_seconds: float = 0.05
    workers: int = 2
    compression: str = "adaptive"
    bandwidth: BandwidthSchedule = field(default_factory=BandwidthSchedule)
    drain_seconds: float = 20.0
    metrics_listen: str = ""
