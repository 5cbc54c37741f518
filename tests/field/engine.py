"""An orchestrator's files for a pair, with a runbook whose workload is a program that reads its disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.control.site import Mosquitto
from tests.field.ground import Ground, Pair, Said, write_toml


def mosquitto_of(ground: Ground) -> Mosquitto:
    """A broker that runs until the trial ends."""
    ground.needs("mosquitto")
    broker = Mosquitto(ground.folder)
    broker.start()
    ground.at_end(broker.kill)
    return broker


class Engine:
    """What `drengine drill`, `failover` and the like need; they are run by `say`."""

    def __init__(self, ground: Ground, pair: Pair, *, broker: int = 0, **options: Any) -> None:
        self.ground = ground
        self.file = ground.folder / "orchestrator.toml"
        self.runbook = ground.folder / "runbook.yaml"
        self.started = ground.folder / "started"
        values: dict[str, Any] = {
            "store": str(pair.store),
            "state": str(ground.folder / "orchestrator"),
            "export": f"unix:{pair.recovery}",
            **options,
        }
        if broker:
            values["broker"] = {"address": f"127.0.0.1:{broker}"}
        write_toml(self.file, values)
        self.write_runbook(pair)

    def write_runbook(self, pair: Pair, *, seconds: float = 0.0, **source: Any) -> None:
        """Its workload notes that it was started, takes so long about it, and is healthy."""
        start = ["sh", "-c", f"echo started >> {self.started}; sleep {seconds}"]
        book: Mapping[str, Any] = {
            "version": 1,
            "name": "shop",
            "sources": {
                pair.source: {
                    "fence": {"command": ["true"]},
                    "launch": {
                        "driver": "command",
                        "timeout": "60s",
                        "settings": {"start": start, "stop": ["true"], "health": ["true"]},
                    },
                    **source,
                }
            },
            "waves": [{"name": "all", "sources": [pair.source], "then": [{"name": "it runs", "command": ["true"]}]}],
        }
        self.runbook.write_text(json.dumps(book))  # JSON is YAML

    def say(self, *arguments: str, ok: bool = True) -> Said:
        """A command, with the orchestrator's file, as JSON."""
        return self.ground.drengine(*arguments, "--config", self.file, "--json", ok=ok)

    def starts(self) -> int:
        """How often the workload was started."""
        return len(self.started.read_text().splitlines()) if self.started.exists() else 0
