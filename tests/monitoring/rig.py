"""A site that a real Prometheus watches: target, orchestrator and agents as processes, all on loopback."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.story import free_port
from tests.field.engine import Engine
from tests.field.ground import AGENT, DRENGINE, WAIT_SECONDS, Ground, Pair, write_toml
from tests.monitoring.haste import hastened

MIB = 1 << 20
LISTENS = "0A"
"""The state of a listening socket in /proc/net/tcp."""


class Watched:
    """The site. Prometheus asks and judges each second, and the rules' times are shorter, so that a test need not wait.

    `agent` and `target` are options of their configuration files, the others those of the orchestrator's.
    """

    def __init__(
        self,
        ground: Ground,
        *,
        broker: int = 0,
        agent: Mapping[str, Any] | None = None,
        target: Mapping[str, Any] | None = None,
        size: int = 4 * MIB,
        store: Path | None = None,
        **orchestrator: Any,
    ) -> None:
        self.ground, self._broker = ground, broker
        self.ports = {name: free_port() for name in ("target", "orchestrator", "rest", "prometheus")}
        self.target_options = {"metrics": f"127.0.0.1:{self.ports['target']}", **(target or {})}
        self.pair = Pair(ground, {"data": ground.image("data", size)}, target=self.target_options, agent=agent)
        if store:
            self.pair.move_store(store)
        self.engine = Engine(
            ground,
            self.pair,
            broker=broker,
            rest=f"127.0.0.1:{self.ports['rest']}",
            metrics=f"127.0.0.1:{self.ports['orchestrator']}",
            monitoring={"targets": [f"127.0.0.1:{self.ports['target']}"]},
            **orchestrator,
        )
        self.folder = ground.folder / "monitoring"
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> Watched:
        """All but Prometheus; `monitoring init` has then written its files."""
        self.pair.start()
        self.agents[self.pair.source] = self.pair.process
        self.start_orchestrator()
        self.init()
        return self

    def start_orchestrator(self) -> None:
        words = (DRENGINE, "orchestrator", "run", "--config", str(self.engine.file))
        self.orchestrator = self.ground.site.start("orchestrator", *words)
        self.ground.until("the orchestrator serves", lambda: self.page("orchestrator"))

    def init(self) -> dict[str, Any]:
        said = self.ground.drengine(
            "monitoring", "init", self.folder, "--config", self.engine.file, "--runbook", self.engine.runbook, "--json"
        )
        told: dict[str, Any] = said.json()
        return told

    def restart_target(self, **more: Any) -> None:
        """With these options beside the site's."""
        self.pair.stop_target()
        self.pair.restart_with({**self.target_options, **more})

    def write_agent(self, source: str, *, disk: Path | None = None, **options: Any) -> Path:
        """The configuration of another source of the same target."""
        file = self.ground.folder / f"{source}.toml"
        values = {
            "source": source,
            "target": f"127.0.0.1:{self.pair.port}",
            "state_directory": str(self.ground.folder / f"state-{source}"),
            "tracker": "scan",
            **options,
            "volume": [{"name": "data", "path": str(disk or self.ground.image(source, MIB))}],
        }
        write_toml(file, values)
        return file

    def start_agent(self, source: str, *, disk: Path | None = None, prefix: Sequence[str] = (), **options: Any) -> None:
        """Another source of the same target; `prefix` is a command that runs its agent."""
        file = self.write_agent(source, disk=disk, **options)
        self.agents[source] = self.ground.site.start(source, AGENT, "run", "--config", str(file), prefix=prefix)

    def start_host(self, name: str) -> None:
        """A recovery host at the same broker."""
        file = self.ground.folder / f"{name}.toml"
        control = {"address": f"127.0.0.1:{self._broker}"}
        write_toml(file, {"name": name, "state_directory": str(self.ground.folder / name), "control": control})
        self.host = self.ground.site.start(name, AGENT, "standby", "run", "--config", str(file))

    def start_prometheus(self) -> None:
        """As `monitoring init` has it, but quicker."""
        main = self.folder / "prometheus.yml"
        main.write_text(re.sub(r"(interval: )\d+s", r"\g<1>1s", main.read_text()))
        for path in self.folder.glob("rules/*.yml"):
            path.write_text(hastened(path.read_text()))
        command = (
            "prometheus",
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.ground.folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}",
        )
        with (self.ground.folder / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.ground.at_end(process.wait)
        self.ground.at_end(process.kill)
        self.ground.until("Prometheus serves", lambda: self.ask("vector(1)"))

    # ---- asking ----------------------------------------------------------------------------------------------

    def page(self, part: str, path: str = "/metrics") -> str:
        """What a part serves."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[part]}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def ask(self, query: str) -> list[dict[str, Any]]:
        """What Prometheus answers: labels and value of each series."""
        found = json.loads(self.page("prometheus", f"/api/v1/query?query={urllib.parse.quote(query)}"))
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def value(self, query: str) -> float | None:
        """Of the only series; None where there is none."""
        found = self.ask(query)
        assert len(found) < 2, found
        return float(found[0]["value"][1]) if found else None

    def until_value(self, query: str, wanted: float | None) -> None:
        """Wait until Prometheus answers that."""
        self.ground.until(f"{query} is {wanted}", lambda: self.value(query) == wanted)

    def firing(self, alert: str) -> list[dict[str, str]]:
        """Labels of each such alert that rings."""
        found = self.ask(f'ALERTS{{alertname="{alert}",alertstate="firing"}}')
        return [each["metric"] for each in found]

    def until_firing(self, alert: str, rings: bool, *, seconds: float = WAIT_SECONDS) -> None:
        """Wait until it does, or no longer does."""
        what = f"{alert} {'rings' if rings else 'has ended'}"
        self.ground.until(what, lambda: bool(self.firing(alert)) is rings, seconds=seconds)

    @contextlib.contextmanager
    def rings(self, *alerts: str) -> Iterator[None]:
        """Quiet before, ringing once what happens in here has happened; `ended` sees to the rest."""
        for alert in alerts:
            assert not self.firing(alert), alert
        yield
        for alert in alerts:
            self.until_firing(alert, rings=True)

    def ended(self, *alerts: str) -> list[str]:
        """Wait until none of them rings any more; they have then rung and ended."""
        for alert in alerts:
            self.until_firing(alert, rings=False)
        return list(alerts)


def listening_ports(pid: int) -> list[int]:
    """TCP and UDP ports on which a process and its children listen."""
    inodes = set[str]()
    for process in (pid, *_children(pid)):
        for link in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                inodes.add(str(link.readlink()))
    found = []
    for table, state in (("tcp", LISTENS), ("tcp6", LISTENS), ("udp", ""), ("udp6", "")):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == (state or words[3]) and f"socket:[{words[9]}]" in inodes:
                found.append(int(words[1].rpartition(":")[2], 16))
    return found


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    direct = [int(word) for word in text.split()]
    return [*direct, *(each for child in direct for each in _children(child))]
