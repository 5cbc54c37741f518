"""The trial of deploy/compose: the file is sound, and its commands, started as processes, are a site that works.

No container is run here: no registry can be reached. What the images bring is replaced by this host's programs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.devices import until
from tests.deploy.compose import FOLDER, ROOT, Trial, document, services, words

TOOLS = ("ip", "setpriv", "mosquitto", "prometheus", "curl", "nbdcopy")
SCRAPED = {
    f"{job['job_name']} {target}"
    for job in yaml.safe_load((FOLDER / "config" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    for each in job["static_configs"]
    for target in each["targets"]
}
MISSING = [name for name in TOOLS if shutil.which(name) is None]


def test_every_image_is_pinned_and_every_file_that_is_mounted_is_there() -> None:
    named = set(document()["volumes"])
    for name, service in services().items():
        assert "build" in service or re.fullmatch(r"docker\.io/[\w/-]+:v?\d[\w.]*", service["image"]), name
        for volume in service.get("volumes", ()):
            outside, inside, *mode = volume.split(":")
            assert inside.startswith("/")
            if outside.startswith("."):
                assert (FOLDER / outside).exists() and mode == ["ro"], volume
            else:
                assert outside in named, volume


def test_all_share_one_network_from_which_only_the_web_pages_are_seen_and_those_on_this_host_alone() -> None:
    (holder,) = [name for name, service in services().items() if "network_mode" not in service]
    for name, service in services().items():
        assert name == holder or service["network_mode"] == f"service:{holder}"
        assert name == holder or "ports" not in service
        for needed in service.get("depends_on", ()):
            assert needed in services()
    assert all(port.startswith("127.0.0.1:") for port in services()[holder]["ports"])


def test_the_image_is_built_from_the_lock() -> None:
    recipe = (FOLDER / "Containerfile").read_text(encoding="utf-8")
    assert "--require-hashes -r /build/runtime.lock" in recipe
    lock = (ROOT / "requirements" / "runtime.lock").read_text(encoding="utf-8")
    assert all(f"\n{name}==" in lock for name in ("boto3", "psycopg", "alembic"))
    for source in re.findall(r"^COPY ([^-].*) ", recipe, re.MULTILINE):
        assert all((ROOT / each).exists() for each in source.split()), source


@pytest.mark.parametrize("name", [name for name, service in services().items() if "build" in service])
def test_each_configuration_is_taken_by_its_own_program(name: str) -> None:
    said = words(services()[name])
    if "--config" not in said:
        return
    config = FOLDER / "config" / Path(said[-1]).name
    group = "drengine_agent.cli.main" if said[0] == "drengine-agent" else "drengine.cli.main"
    check = (
        ["check-config", "--config", str(config)]
        if group.startswith("drengine_agent")
        else [said[1], "check-config", str(config)]
    )
    done = subprocess.run(
        [sys.executable, "-m", group, *check],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'agents'}"},
    )
    assert done.returncode == 0, done.stderr


def test_prometheus_and_grafana_are_given_what_they_read() -> None:
    scraped = yaml.safe_load((FOLDER / "config" / "prometheus.yml").read_text(encoding="utf-8"))
    ports = {
        target for job in scraped["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    }
    told = "".join(path.read_text(encoding="utf-8") for path in (FOLDER / "config").glob("*.toml"))
    assert ports == set(re.findall(r'metrics = "(.*)"', told))
    board = json.loads((ROOT / "deploy" / "grafana" / "drengine.json").read_text(encoding="utf-8"))
    assert board["uid"] == "drengine"
    for path in (FOLDER / "config" / "grafana").rglob("*.yaml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["apiVersion"] == 1


@pytest.fixture
def trial() -> Iterator[Trial]:
    """In a folder that PostgreSQL's user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="drengine-trial-"))
    folder.chmod(0o755)
    made = Trial(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.machine
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, mounts")
@pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")
def test_the_services_commands_are_a_site_that_outlives_one_target(trial: Trial) -> None:
    def newest(seat: str) -> str:
        said = trial.ask("drengine", "points", "--store", f"/var/lib/drengine/{seat}", "--source", "trial", "--json")
        return str(max((point["sequence"] for point in json.loads(said)), default="")) if said else ""

    def connected() -> str:
        pages = {name: trial.get(f"http://127.0.0.1:{port}/metrics") for name, port in (("a", 9440), ("b", 9441))}
        at = [name for name, page in pages.items() if 'drengine_target_agent_connected{source="trial"} 1' in page]
        return at[0] if len(at) == 1 else ""

    for name in ("s3", "postgres", "mosquitto"):
        trial.start(name)
    assert trial.run("prepare") == 0, trial.said("prepare")
    assert trial.run("prepare") == 0, "a second time it changes nothing"
    for name in ("target-a", "target-b", "orchestrator-a", "orchestrator-b", "source", "prometheus"):
        trial.start(name)
    for port in (9440, 9441, 9443, 9444):
        until(lambda port=port: trial.get(f"http://127.0.0.1:{port}/readyz"), f"readiness at {port}")
    first = until(lambda: newest("seat-b"), "a point, seen at the other seat")
    owner = until(connected, "a target that has the source")
    trial.kill(f"target-{owner}")
    other = {"a": "b", "b": "a"}[owner]
    until(lambda: connected() == other, "the other target's taking over")
    disk = trial.folder / "disk"
    disk.write_bytes(os.urandom(1 << 20) + bytes(255 << 20))
    assert trial.ask("nbdcopy", str(disk), "nbd+unix:///data?socket=/var/lib/drengine/source/nbd.sock") == ""
    until(lambda: newest(f"seat-{other}") not in ("", first), "a point of what was written since")
    trial.start(f"target-{owner}")

    def down() -> list[str]:
        told = trial.get("http://127.0.0.1:9090/api/v1/query?query=up==1")
        up = [each["metric"] for each in json.loads(told)["data"]["result"]] if told else []
        return sorted(SCRAPED - {f"{each['job']} {each['instance']}" for each in up})

    try:
        until(lambda: not down(), "Prometheus's seeing all")
    except RuntimeError as error:
        pytest.fail(f"{error}: {down()}\n{trial.said('prometheus')}")
