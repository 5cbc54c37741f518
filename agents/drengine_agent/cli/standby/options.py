"""What the commands of a recovery host share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STANDBY_CONFIG = Path("/etc/drengine/standby.toml")
StandbyConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The recovery host's configuration file.")]
