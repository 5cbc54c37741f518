"""Alerts about sources: they copy, compare, write more than the link carries, are of another version, can't freeze."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

from drengine_agent.capture.ebpf.watch import Watch
from tests.agent.capture.ebpf.rig import fresh_source
from tests.field.ground import Ground
from tests.field.load import scatter
from tests.field.trial import trial
from tests.monitoring.rig import Watched

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
JOURNAL, WRITES, WRITE_BYTES = "64MiB", 232, 256 << 10
"""The writes fill nine tenths of it; within the ten seconds that figures may take to arrive, 4 % of it is shipped."""
SLOW, FAST = "256KiB/s", "unlimited"
OTHER_VERSION = "0.0.9"
WRITER = 'while :; do echo x >> "$0"; sync "$0"; sleep 0.1; done'
HOOK_SECONDS = 150.0
RINGS = frozenset(
    {
        "DrengineForcedCutsFail",
        "DrengineJournalFilling",
        "DrengineNothingToRecover",
        "DrengineRescan",
        "DrengineVersionsDiffer",
    }
)
"""What rings and ends here."""


@trial(seconds_max=420)
def alerts_of_sources_ring_and_end(ground: Ground) -> None:
    """Slow links, lost state, a full journal, an older agent, a hook that fails: each alert rings, and ends."""
    ground.needs_kernel()
    ground.needs("prometheus", "mkfs.ext4")
    site = Watched(ground, size=128 * MIB)
    _link(site, FAST)
    site.start()
    site.start_prometheus()
    site.until_value('up{job="drengine-agent",source="shop"}', 1)
    rung = [*_first_copy(site), *_versions(site), *_journal(site), *_comparison(site), *_hook(site)]
    assert set(rung) == RINGS
    ground.measured["alerts that rang and ended"] = len(rung)


def _link(site: Watched, bandwidth: str) -> None:
    """What the source's configuration says of its link."""
    nbd = {"listen": f"unix:{site.pair.tap}", "journal": JOURNAL}
    site.pair.write_agent_file("nbd", {"bandwidth": bandwidth, "nbd": nbd})


def _tune(site: Watched, bandwidth: str) -> None:
    """Another link for the running agent, from now on."""
    log = site.ground.folder / "agent.log"
    seen = log.stat().st_size
    _link(site, bandwidth)
    site.pair.process.send_signal(signal.SIGHUP)
    site.ground.until("the agent has read it", lambda: f"bandwidth {bandwidth}".encode() in log.read_bytes()[seen:])


def _first_copy(site: Watched) -> list[str]:
    disk = site.ground.image("till-disk", 8 * MIB, filled=8 * MIB)
    with site.rings("DrengineNothingToRecover"):
        site.start_agent("till", disk=disk, bandwidth=SLOW)
    site.write_agent("till", disk=disk)
    site.agents["till"].send_signal(signal.SIGHUP)
    return site.ended("DrengineNothingToRecover")


def _versions(site: Watched) -> list[str]:
    """An agent of another version, until it is upgraded."""
    ground, old = site.ground, site.ground.folder / "old"
    for package in (ROOT / "drengine", ROOT / "agents/drengine_agent"):
        shutil.copytree(package, old / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    said = old / "drengine/__init__.py"
    said.write_text(said.read_text().replace('__version__ = "', f'__version__ = "{OTHER_VERSION}+'))
    ground.site.stop(site.agents["till"])
    disk = ground.folder / "till-disk.img"
    with site.rings("DrengineVersionsDiffer"):
        site.start_agent("till", disk=disk, prefix=("env", f"PYTHONPATH={old}"))
    ground.site.stop(site.agents["till"])
    site.start_agent("till", disk=disk)
    return site.ended("DrengineVersionsDiffer")


def _journal(site: Watched) -> list[str]:
    _tune(site, SLOW)
    with site.rings("DrengineJournalFilling"):
        scatter(site.ground, site.pair, "data", WRITES, length=WRITE_BYTES)
    _tune(site, FAST)
    return site.ended("DrengineJournalFilling")


def _comparison(site: Watched) -> list[str]:
    """The agent's state is lost, and the disk is another one than before: what differs goes over a slow link."""
    pair = site.pair
    pair.until_equal()
    pair.stop_agent()
    shutil.rmtree(pair.state)
    with pair.volumes["data"].open("r+b") as disk:
        disk.write(site.ground.rng.randbytes(4 * MIB))
    _link(site, SLOW)
    with site.rings("DrengineRescan"):
        pair.start_agent()
    _tune(site, FAST)
    return site.ended("DrengineRescan")


def _hook(site: Watched) -> list[str]:
    """What quiesces the application before a cut fails, until somebody mends it."""
    ground = site.ground
    disk = ground.disk("database", 64 * MIB)
    ground.run("mkfs.ext4", "-q", "-F", disk)
    place = ground.enter(ground.mounted(disk, "mounted"))
    writer = subprocess.Popen(["sh", "-c", WRITER, str(place / "log")])
    ground.at_end(writer.wait)
    ground.at_end(writer.kill)
    hook = ground.folder / "hook"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    cuts = {"kinds": "quiet, application", "application_interval": "500ms", "hook_before": [str(hook)]}
    source = fresh_source()
    ground.at_end(Watch.detach, source)
    site.start_agent(source, disk=disk, tracker="ebpf", cuts=cuts)
    site.until_firing("DrengineForcedCutsFail", rings=True, seconds=HOOK_SECONDS)
    hook.write_text("#!/bin/sh\nexit 0\n")
    site.until_firing("DrengineForcedCutsFail", rings=False, seconds=HOOK_SECONDS)
    ground.site.stop(site.agents[source])
    return ["DrengineForcedCutsFail"]
