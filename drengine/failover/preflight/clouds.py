"""Clouds: whether their API answers, and what it says of a launch there. Nothing is made."""

from __future__ import annotations

from drengine.failover.drivers.driver import AsksCloud, CloudFinding
from drengine.failover.preflight.check import Check, Look, Scene, all_of, apart
from drengine.failover.preflight.hosts import Launch, request_as
from drengine.failover.readiness import Checked, Severity
from drengine.failover.steps.launch import LAUNCH
from drengine.model.errors import DrengineError

CLOUD_REACHABLE = Check(
    "cloud-reachable",
    "the cloud's API answers: a launch there needs the region from the first call to the last",
    "Look at the way to the region. Without it only a recovery host that runs already helps (driver standby).",
)
CLOUD_PERMITTED = Check(
    "cloud-permitted",
    "the orchestrator's credentials count, and permit the calls of the launch, asked as dry runs",
    "Renew the credentials; `drengine launch-policy ec2` prints the permissions.",
)
CLOUD_FITS = Check(
    "cloud-fits",
    "what the runbook names is there and fits: subnets, Outpost, image, types, helper, addresses, sizes of volumes",
    "Mend the launch's settings; docs/drivers.md lists them.",
)
CLOUD_ROOM = Check(
    "cloud-room",
    "quotas and subnets have room for the launch; capacity itself is known to nobody before",
    "Have the quota raised, or name a larger subnet or smaller types.",
    Severity.WARNS,
)
TOLD = {check.id: check for check in (CLOUD_REACHABLE, CLOUD_PERMITTED, CLOUD_FITS, CLOUD_ROOM)}


async def look_at_clouds(scene: Scene) -> list[Checked]:
    """Each launch of a driver that asks a cloud."""
    return await all_of(_look(scene, step) for step in scene.steps if step.kind is LAUNCH)


async def _look(scene: Scene, step: Launch) -> list[Checked]:
    driver = scene.site.drivers.get(step.settings.driver)
    if not isinstance(driver, AsksCloud):
        return []

    def ask() -> list[CloudFinding]:
        return driver.ask_cloud(request_as(scene, step, None))

    try:
        found = await apart(ask)
    except DrengineError as error:
        return [CLOUD_FITS.found(step.source, fault=error.message, hint=error.hint)]
    return [_checked(check, step.source, found) for check in TOLD.values()]


def _checked(check: Check, source: str, found: list[CloudFinding]) -> Checked:
    """All that was found of a check, as one: what blocks before what warns."""
    ours = [each for each in found if each.check == check.id]
    faults = [each for each in ours if each.fault]
    blocking = [each for each in faults if not each.warns] or faults
    return check.found(
        source,
        seen="; ".join(each.seen for each in ours if each.seen) or "it was not asked",
        fault="; ".join(each.fault for each in blocking),
        hint=next((each.hint for each in blocking if each.hint), ""),
        warns=bool(blocking) and all(each.warns for each in blocking),
    )


LOOKS = (Look(tuple(TOLD.values()), look_at_clouds),)
