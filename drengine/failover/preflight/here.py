"""What the orchestrator's own host has: programs, libraries, files, memory, and the way to the disks."""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from drengine.bubble import bubble_faults
from drengine.failover.drivers.driver import AsksHost, KnowsNeeds
from drengine.failover.needs import Library, MachineNetwork, Memory, Need, PortalAddress, Program, ReadableFile
from drengine.failover.preflight.check import Check, Look, Scene, all_of, apart
from drengine.failover.readiness import Checked, Severity
from drengine.failover.runbook.values import Mode, OnFailure
from drengine.failover.steps.launch import LAUNCH
from drengine.failover.steps.step import PlannedStep
from drengine.failover.steps.workloads import WorkloadSettings, inventory_of, looked_at
from drengine.iscsi.portals import Portal
from drengine.linux.memory import available_memory
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient, with_certificates
from drengine.nbd.fuse import fuse_fault
from drengine.process.programs import program_fault
from drengine.terminal import human_bytes
from drengine.transport.causes import cause_of, details_of
from drengine.transport.networks import DataNetworks

GREET_SECONDS = 5.0
HERE = "here"
_Single = Program | Library | ReadableFile | MachineNetwork | PortalAddress
"""Needs that are met or not, each by itself."""

LAUNCH_SETTINGS_FIT = Check(
    "launch-settings",
    "each source's launch driver is installed, takes its settings, and workloads would find their disks",
    "docs/drivers.md lists the settings; `export` names the target's NBD address.",
    vital=True,
)
PROGRAM = Check(
    "program",
    "each program that this host would start is there and can be executed: commands of steps, fences and launches",
    "Install it, mend its permissions, or mend its name in the runbook.",
)
LIBRARY = Check(
    "library",
    "the Python libraries that the runbook's checks load can be loaded (psycopg for PostgreSQL)",
    "Install the package that the message names, beside drengine.",
)
FILE = Check(
    "file", "each file that a step or a driver reads can be read (keys, kernels, certificates)", "Put it there."
)
MEMORY = Check(
    "memory",
    "the memory of this host is enough for the virtual machines that would be launched here",
    "Launch elsewhere, give the machines less, or end what else uses memory here.",
    Severity.WARNS,
)
MACHINE_NETWORK = Check(
    "machine-network",
    "what virtual machines are plugged into on this host is there: bridges, or what a drill's bubble takes",
    "Make the bridge, or mend its name in the runbook; a bubble takes root and the Debian package dnsmasq-base.",
)
PORTAL = Check(
    "portal",
    "each address at which this host would serve disks over iSCSI is its own and lies in its `data_networks`, and the "
    "orchestrator may show disks as files (FUSE)",
    "Name one in the runbook that is, or put its network into `data_networks` of the orchestrator's file. "
    "Have the orchestrator run as root where its unit keeps others from mounting.",
)
EXPORT_REACHABLE = Check(
    "export-reachable",
    "the target serves NBD to whoever would attach the disks: this host, or the recovery host",
    "Look whether the target runs with that address, and at the firewalls between.",
)
EXPORT_CERTIFICATE = Check(
    "export-certificate",
    "the target's certificate is believed there: its name, its CA, its role, its time",
    "Issue one whose names hold the address in `export` (`drengine ca issue target/NAME --host ADDRESS`).",
)


def driver_settings(scene: Scene, step: PlannedStep[WorkloadSettings]) -> tuple[Any, dict[str, Any]]:
    """The driver of a launch, None if it is not installed, and its settings."""
    return scene.site.drivers.get(step.settings.driver), step.settings.settings


async def look_at_launches(scene: Scene) -> list[Checked]:
    """Whether drivers take what they are given."""

    def look(source: str) -> Checked:
        case = scene.case
        launch = case.runbook.sources[source].launch
        driver, settings = launch.driver, launch.settings_in(case.mode)
        earlier = case.options.launches.get(source)
        if earlier and case.mode.is_way_home:
            driver, settings = earlier.driver, earlier.settings
        known = scene.site.drivers.get(driver)
        if known is None:
            there = ", ".join(sorted(scene.site.drivers))
            return LAUNCH_SETTINGS_FIT.found(source, fault=f"there is no launch driver {driver!r}; there are {there}")
        try:
            known.check_settings(settings)
            scene.site.exporting()
        except DrengineError as error:
            return LAUNCH_SETTINGS_FIT.found(source, fault=error.message, hint=error.hint)
        return LAUNCH_SETTINGS_FIT.found(source, seen=f"driver {driver} takes them")

    return await apart(lambda: [look(source) for source in scene.sources])


async def look_at_needs(scene: Scene) -> list[Checked]:
    """What the steps need on this host."""
    needs: dict[_Single, bool] = {}
    memory_bytes = 0
    for step in scene.steps:
        tolerated = not step.critical or step.on_failure is OnFailure.CONTINUE
        for need in _needs_of(scene, step):
            if isinstance(need, Memory):
                memory_bytes += need.size_bytes
            else:
                needs[need] = needs.get(need, True) and tolerated
    networks = scene.site.data_networks
    found = await asyncio.gather(*(apart(partial(_met, need, warns, networks)) for need, warns in needs.items()))
    return [*found, _memory(memory_bytes)] if memory_bytes else found


def _needs_of(scene: Scene, step: PlannedStep[Any]) -> Iterator[Need]:
    if not step.inside:  # else its recovery host does it
        yield from step.kind.needs(step.settings)
    if step.kind is LAUNCH:
        driver, settings = driver_settings(scene, step)
        isolated = scene.case.mode is Mode.DRILL
        if isinstance(driver, KnowsNeeds):
            store = scene.site.store
            try:
                known = inventory_of(store, step.source) or looked_at(store, step.source)
                yield from driver.needs(settings, known, isolated=isolated)
            except DrengineError:
                return  # its settings are a check of their own


def _met(need: _Single, warns: bool, networks: tuple[str, ...]) -> Checked:
    match need:
        case Program(name, user):
            about = f"{name}@{user}" if user else name
            return PROGRAM.found(about, seen="it can be executed", fault=program_fault(name, user=user), warns=warns)
        case Library(module, package):
            return LIBRARY.found(module, seen="it can be loaded", fault=_library_fault(module, package), warns=warns)
        case ReadableFile(path):
            return FILE.found(path, seen="it can be read", fault=_file_fault(path), warns=warns)
        case MachineNetwork(bridge):
            return MACHINE_NETWORK.found(bridge or "bubble", fault=_network_fault(bridge), warns=warns)
        case PortalAddress(address):
            return PORTAL.found(address, seen="it is ours", fault=_portal_fault(address, networks), warns=warns)


def _library_fault(module: str, package: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - code from elsewhere may raise anything while it is loaded
        return f"{module} can't be loaded ({type(error).__name__}: {error}); the package {package} brings it"
    return ""


def _file_fault(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return ""


def _network_fault(bridge: str) -> str:
    if not bridge:
        return "; ".join(bubble_faults(taps=True))
    return "" if Path("/sys/class/net", bridge, "bridge").is_dir() else f"there is no bridge {bridge} on this host"


def _portal_fault(address: str, networks: tuple[str, ...]) -> str:
    portal = Portal(address)
    try:
        portal.require_inside(DataNetworks.parse(networks))
        portal.require_here()
    except DrengineError as error:
        return error.message
    return fuse_fault()


def _memory(needed: int) -> Checked:
    there = available_memory()
    seen = f"{human_bytes(needed)} of {human_bytes(there)} that are available"
    return MEMORY.found(seen=seen, fault=f"it would take {seen}" if needed > there else "")


async def look_at_export(scene: Scene) -> list[Checked]:
    """Whether what is launched here would reach its disks. All launches here come the same way but for their TLS."""
    launches = [step for step in scene.steps if step.kind is LAUNCH]
    local = [(step, *driver_settings(scene, step)) for step in launches]
    ways = {
        str(settings.get("tls_directory") or "")
        for _, driver, settings in local
        if driver is not None and not isinstance(driver, AsksHost)
    }
    if not scene.config.export:
        return []
    return await all_of(apart(partial(_greeted, scene, way)) for way in ways)


def _greeted(scene: Scene, tls_directory: str) -> list[Checked]:
    uri = scene.site.exporting()(scene.sources[0], "any", 1, "")
    if tls_directory:
        uri = with_certificates(uri, tls_directory)
    where = ", ".join(map(str, scene.config.export))
    try:
        NbdClient.greet(uri, timeout_seconds=GREET_SECONDS)
    except ssl.SSLError as error:
        cause = cause_of(error)
        return [
            EXPORT_CERTIFICATE.found(HERE, fault=f"{where}: {cause.meaning} ({details_of(error)})", hint=cause.hint)
        ]
    except (OSError, DrengineError) as error:
        fault = error.message if isinstance(error, DrengineError) else error.strerror or str(error)
        return [EXPORT_REACHABLE.found(HERE, fault=f"{where}: {fault}")]
    return [EXPORT_REACHABLE.found(HERE, seen=f"{where} answers")]


LOOKS = (
    Look((LAUNCH_SETTINGS_FIT,), look_at_launches),
    Look((PROGRAM, LIBRARY, FILE, MEMORY, MACHINE_NETWORK, PORTAL), look_at_needs),
    Look((EXPORT_REACHABLE, EXPORT_CERTIFICATE), look_at_export),
)
