"""What a recovery host is told: one definition of each option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drengine.config import BAD_CONFIG, NETWORKS, PATH, TEXT, choice, load, option, section
from drengine.control.config import BrokerOptions
from drengine.control.topics import check_party_name
from drengine.model.errors import DrengineError
from drengine_agent.standby.allow import AllowOptions


@dataclass(frozen=True)
class StandbyConfig:
    """A recovery host's configuration file."""

    name: str = option(
        TEXT, help="This host's name, as runbooks call it.", example="recovery-1", check=check_party_name
    )
    state_directory: Path = option(
        PATH,
        default=Path("/var/lib/drengine-standby"),
        help="Where workloads are noted and hydrated copies lie.",
    )
    data_networks: tuple[str, ...] = option(
        NETWORKS, default=(), help="Networks from which disks may be attached, checked on the address; and loopback."
    )
    tls_directory: Path | None = option(
        PATH,
        default=None,
        help="ca-cert.pem, client-cert.pem and client-key.pem for attaching disks over the network; absent: no TLS.",
    )
    log_level: str = option(choice("debug", "info", "warning", "error"), default="info", help="What is logged.")
    log_form: str = option(choice("auto", "json", "text"), default="auto", help="How it is logged.")
    allow: AllowOptions = section(AllowOptions, help="What orders may do on this host; others are refused.")
    control: BrokerOptions = section(BrokerOptions, help="The MQTT broker over which it gets its orders.")


def load_standby_config(path: Path) -> StandbyConfig:
    """Read and check a configuration file.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    config = load(StandbyConfig, path)
    config.control.check("[control]")
    if config.control.address is None:
        raise DrengineError(BAD_CONFIG, f"{path}: option control.address is missing: orders come over the broker")
    return config
