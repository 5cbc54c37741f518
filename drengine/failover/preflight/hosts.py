"""Recovery hosts: whether they are there, and what they say when they are asked whether they could do it."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from drengine.control.attach import HostAnswer
from drengine.control.errors import BROKER_UNREACHABLE, NO_ANSWER
from drengine.control.messages import Answer
from drengine.failover.addresses import cards
from drengine.failover.drivers.driver import AsksHost, Disk, HostOrder, LaunchRequest
from drengine.failover.preflight.check import Check, Look, Scene, all_of, apart
from drengine.failover.preflight.control import PATIENCE_SECONDS, soon
from drengine.failover.preflight.here import EXPORT_CERTIFICATE, EXPORT_REACHABLE
from drengine.failover.readiness import Checked, Severity
from drengine.failover.runbook.values import Mode
from drengine.failover.steps.agents import while_there
from drengine.failover.steps.launch import LAUNCH
from drengine.failover.steps.step import PlannedStep
from drengine.failover.steps.workloads import (
    LateServers,
    WorkloadSettings,
    inventories_of,
    inventory_of,
    looked_at,
    mode_of,
    servers_of,
)
from drengine.model.errors import DrengineError

ASK_SECONDS = 12.0
CLOCK_SECONDS_MAX = 2.0
NS = 1_000_000_000

HOST_CONNECTED = Check(
    "host-connected",
    "each recovery host is named in the runbook and connected with the broker",
    "Switch it on; `drengine-agent standby run` (the service drengine-standby) has to run there, with that name.",
)
HOST_ANSWERS = Check(
    "host-answers",
    "each recovery host answers what it has; one that is too old for the question only warns",
    "Look at its log; upgrade it where it is older than this orchestrator.",
)
HOST_PROGRAMS = Check(
    "host-programs",
    "the programs of the launch are on that host and can be executed: its own (nbdfuse, mount), and the runbook's",
    "Install them there, mend their permissions, or mend their names in the runbook.",
)
HOST_ATTACHES = Check(
    "host-attaches",
    "that host can attach the disks so that what the workload writes reaches the branch at once; it says in which way",
    "Install nbd-client and load the kernel's module nbd, or install nbdfuse and fuse3; docs/drivers.md compares the "
    "ways, and a runbook may ask for a copy.",
)
HOST_ALLOWS = Check(
    "host-allows",
    "that host lets orders do what the launch needs: commands, places, users, data networks",
    "Let it, in [allow] and `data_networks` of that host's file, or change the runbook.",
)
HOST_PLACES = Check(
    "host-places",
    "nothing else is mounted where that host would mount the disks",
    "Unmount it there, or name another place in the runbook's `mounts`.",
)
HOST_NETWORK = Check(
    "host-network",
    "that host can make a drill's bubble (`network: bubble`), or has the `interface` that takes over addresses",
    "Install dnsmasq-base there, name another `interface`, or choose another `network` in `drill`.",
)
HOST_ROOM = Check(
    "host-room",
    "that host's disk has room for its notes, and with `hydrate: true` for copies of the disks",
    "Make room there, or launch without `hydrate`.",
)
HOST_CERTIFICATE = Check(
    "host-certificate",
    "the certificate with which that host attaches disks is a host's, of its own name, and valid for a week",
    "Renew or issue it: `drengine ca issue host/NAME`, for [tls] of that host's file.",
)
HOST_CLOCK = Check(
    "host-clock",
    "that host's clock is within 2 s of ours: orders expire by it",
    "Synchronise the clocks of both (chrony, systemd-timesyncd).",
    Severity.WARNS,
)
HOSTS_OWN = (HOST_PROGRAMS, HOST_ATTACHES, HOST_ALLOWS, HOST_PLACES, HOST_NETWORK, HOST_ROOM, HOST_CERTIFICATE)
TOLD = {check.id: check for check in (*HOSTS_OWN, EXPORT_REACHABLE, EXPORT_CERTIFICATE)}
"""What a host may speak of."""
OF_HOST = frozenset({HOST_CERTIFICATE.id, EXPORT_REACHABLE.id, EXPORT_CERTIFICATE.id})
"""What is the same for all that is launched there."""

Launch = PlannedStep[WorkloadSettings]


async def look_at_hosts(scene: Scene) -> list[Checked]:
    """Each host, with all that would be launched or stopped there."""
    by_host: dict[str, list[Launch]] = defaultdict(list)
    needed = [step for step in scene.steps if step.critical and not step.cleanup]
    for step in needed:
        settings = step.settings
        if isinstance(settings, WorkloadSettings) and isinstance(scene.site.drivers.get(settings.driver), AsksHost):
            by_host[settings.host].append(step)
    found = await all_of(_look(scene, host, steps) for host, steps in by_host.items())
    worst: dict[str, Checked] = {}
    for each in found:
        if each.id not in worst or not each.ok:
            worst[each.id] = each
    return list(worst.values())


async def _look(scene: Scene, host: str, steps: list[Launch]) -> list[Checked]:
    if not host:
        sources = ", ".join(step.source for step in steps)
        return [HOST_CONNECTED.found(fault=f"the launch of {sources} names no recovery host", hint="Give it a `host`.")]
    agents, launches = scene.site.agents, [step for step in steps if step.kind is LAUNCH]
    if not await soon(scene.site.clock, lambda: agents.is_online(host)):
        if not agents.is_away(host):
            fault = f"the broker is not there, so nobody knows whether {host} is"
        else:
            known = host in agents.reports()
            fault = (
                f"{host} is not connected with the broker" if known else f"no recovery host {host} was ever heard of"
            )
        return [HOST_CONNECTED.found(host, fault=fault)]
    return [HOST_CONNECTED.found(host, seen="connected"), *await all_of(_ask(scene, host, step) for step in launches)]


async def _ask(scene: Scene, host: str, step: Launch) -> list[Checked]:
    driver, clock = scene.site.drivers[step.settings.driver], scene.site.clock
    assert isinstance(driver, AsksHost)
    order, sent_ns = _order(scene, host, asyncio.get_running_loop()), clock.now_ns()
    try:
        answer = await apart(lambda: driver.ask_host(request_as(scene, step, order)))
    except DrengineError as error:
        silent = error.kind in (NO_ANSWER, BROKER_UNREACHABLE)
        return [HOST_ANSWERS.found(host, fault=error.message, warns=not silent)]
    found = [HOST_ANSWERS.found(host, seen="it says what it has"), _clock(host, answer, sent_ns, clock.now_ns())]
    for each in answer.findings:
        if check := TOLD.get(each.check):
            about = host if each.check in OF_HOST else f"{host}/{step.source}"
            fault = f"{host}: {each.fault}" if each.fault else ""
            found.append(check.found(about, seen=each.seen, fault=fault, warns=each.warns))
    return found


def _clock(host: str, answer: HostAnswer, sent_ns: int, came_ns: int) -> Checked:
    """How far its clock is from ours, at least: it was read between our question and its answer."""
    apart_ns = max(sent_ns - answer.now_ns, answer.now_ns - came_ns, 0)
    seen = f"{apart_ns / NS:.1f} s apart at least" if apart_ns else "no difference can be seen"
    return HOST_CLOCK.found(host, seen=seen, fault=seen if apart_ns > CLOCK_SECONDS_MAX * NS else "")


def _order(scene: Scene, host: str, loop: asyncio.AbstractEventLoop) -> HostOrder:
    """Asks a host, from the driver's thread. STATUS is not remembered, so the id need not be new each time."""
    name = f"preflight.{scene.case.runbook.name}.{scene.site.clock.now_ns()}"

    def order(verb, arguments, seconds, progress) -> Answer:  # type: ignore[no-untyped-def]
        agents, clock = scene.site.agents, scene.site.clock
        asking = agents.command(host, verb, arguments, generation=0, id=name, timeout_seconds=seconds)
        waiting = while_there(asking, host, agents, clock, away_seconds=PATIENCE_SECONDS)
        return asyncio.run_coroutine_threadsafe(waiting, loop).result()

    return order


def request_as(scene: Scene, step: Launch, order: HostOrder | None) -> LaunchRequest:
    """As the launch would ask; the branch is one that is there. Without an order no host can be asked."""
    store, settings, book = scene.site.store, step.settings, scene.case.runbook
    branch = store.source(step.source).active_branch
    uri = scene.site.exporting()
    with store.head_view(step.source, branch) as head:
        disks = tuple(
            Disk(each.name, each.size_bytes, uri(step.source, each.name, branch, "")) for each in head.geometry.values()
        )
    isolated = scene.case.mode is Mode.DRILL
    inventory, run = inventory_of(store, step.source), scene.case.run
    return LaunchRequest(
        instance="preflight",
        run=scene.case.run,
        source=step.source,
        disks=disks,
        isolated=isolated,
        settings=settings.settings,
        directory=scene.site.directory / "preflight",
        host=settings.host,
        hydrate=settings.hydrate,
        timeout_seconds=ASK_SECONDS,
        order=order,
        inventory=inventory or looked_at(store, step.source, branch),
        cards=cards(book, step.source, inventory, mode_of(settings)),
        servers=LateServers(lambda: servers_of(book, inventories_of(store, book), run, isolated=isolated)),
    )


LOOKS = (Look((HOST_CONNECTED, HOST_ANSWERS, HOST_CLOCK, *HOSTS_OWN), look_at_hosts),)
