"""The broker, and our own certificates."""

from __future__ import annotations

from collections.abc import Callable

from drengine.control.agents import BrokerAgents
from drengine.failover.drivers.driver import AsksHost
from drengine.failover.preflight.check import Check, Look, Scene
from drengine.failover.readiness import Checked
from drengine.failover.runbook.values import Mode
from drengine.model.clock import Clock
from drengine.terminal import human_duration

PATIENCE_SECONDS = 3.0
LOOK_SECONDS = 0.1
EXPIRY_SECONDS_MIN = 7 * 86400.0

BROKER = Check(
    "broker",
    "the broker is connected, if one is configured; it blocks where a recovery host or a source has to be told",
    "Look whether the broker runs, and at [broker]: `drengine orchestrator check-config FILE`.",
)
OWN_CERTIFICATE = Check(
    "own-certificate",
    "the orchestrator's own certificates count: over blocks; a week left, or a quarter of a short life, warns",
    "Renew them (docs/security.md#enrolment); `drengine orchestrator check-config FILE` reads the files.",
)


async def look_at_broker(scene: Scene) -> list[Checked]:
    """Whether we see the parties at all."""
    if not isinstance(scene.agents, BrokerAgents):
        return []
    link, mode = scene.agents.link, scene.case.mode
    launches = [scene.case.runbook.sources[source].launch for source in scene.sources]
    hosts = any(isinstance(scene.site.drivers.get(each.driver), AsksHost) for each in launches)
    told = mode.is_way_home or mode is Mode.MIGRATION or hosts
    connected = await soon(scene.site.clock, lambda: link.is_connected)
    where = str(scene.config.broker.address)
    fault = "" if connected else f"no connection with the broker at {where}: {link.detail}"
    return [BROKER.found(seen=f"connected with {where}", fault=fault, warns=not told)]


async def look_at_certificates(scene: Scene) -> list[Checked]:
    """How long our own still count."""
    found = []
    for each in scene.agents.credentials:
        each.refresh()
        lifetime = each.lifetime_seconds()
        for file, left in each.expiry_seconds().items():
            soon_enough = min(EXPIRY_SECONDS_MIN, lifetime.get(file, 4 * EXPIRY_SECONDS_MIN) / 4)
            seen = f"{each.files.certificate.parent}: {file} of {each.role} ends in {human_duration(max(0.0, left))}"
            fault = f"{seen.partition(' ends ')[0]} is over" if left <= 0 else seen if left < soon_enough else ""
            about = f"{each.role}-{file}"
            found.append(OWN_CERTIFICATE.found(about, seen=seen, fault=fault, warns=left > 0))
    return found


async def soon(clock: Clock, holds: Callable[[], bool]) -> bool:
    """Whether it holds now or in a moment: a broker or a party that was restarted is back in seconds."""
    until = clock.monotonic() + PATIENCE_SECONDS
    while not holds():
        if clock.monotonic() >= until:
            return False
        await clock.sleep(LOOK_SECONDS)
    return True


LOOKS = (
    Look((BROKER,), look_at_broker),
    Look((OWN_CERTIFICATE,), look_at_certificates),
)
