"""What a recovery host is told: one definition of each option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drengine.config import ADDRESS, NETWORKS, PATH, TEXT, Address, choice, load, option, parse, section
from drengine.control.config import BrokerOptions
from drengine.control.topics import check_party_name
from drengine_agent.config import TlsOptions
from drengine_agent.standby.allow import AllowOptions


@dataclass(frozen=True)
class StandbyBrokerOptions(BrokerOptions):
    """[control]"""

    address: Address = option(ADDRESS, help="The MQTT broker's HOST:PORT.", example=Address("127.0.0.1", 1883))


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
    log_level: str = option(choice("debug", "info", "warning", "error"), default="info", help="What is logged.")
    log_form: str = option(choice("auto", "json", "text"), default="auto", help="How it is logged.")
    tls: TlsOptions = section(TlsOptions, help="TLS 1.3 for attaching disks over the network, as it is for agents.")
    allow: AllowOptions = section(AllowOptions, help="What orders may do on this host; others are refused.")
    control: StandbyBrokerOptions = section(StandbyBrokerOptions, help="The MQTT broker over which it gets its orders.")


def load_standby_config(path: Path) -> StandbyConfig:
    """Read and check a configuration file.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    return _checked(load(StandbyConfig, path), f"{path}: ")


def parse_standby_config(values: dict[str, Any]) -> StandbyConfig:
    """Check a configuration's values.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    return _checked(parse(StandbyConfig, values), "")


def _checked(config: StandbyConfig, where: str) -> StandbyConfig:
    config.tls.files(f"{where}[tls]")
    config.control.check(f"{where}[control]")
    return config
