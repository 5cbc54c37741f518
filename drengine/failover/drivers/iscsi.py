"""The `iscsi` driver: serves the promoted disks as iSCSI LUNs, for a machine that boots from a SAN.

Where that machine is and who switches it on is not known here: `start`, `stop` and `health` are commands that may do it
and ask it. Without `health` an instance is healthy when initiators can log in and find every disk.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from drengine.config import parse_duration
from drengine.failover.drivers.driver import Disk, Instance, KnowsNeeds, LaunchDriver, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.failover.drivers.hydrated import hydration_details, hydration_place
from drengine.failover.drivers.settings import read_settings
from drengine.failover.needs import Need, PortalAddress, ReadableFile, programs
from drengine.iscsi.names import check_iscsi_name, target_name
from drengine.iscsi.portals import Portal
from drengine.iscsi.serving import Account, IscsiInstance, IscsiTarget, LunDisk
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.client import CERTIFICATE_NAMES
from drengine.nbd.hydrators import end_hydrators, is_hydrating, start_hydrators
from drengine.process import Finished, run_command
from drengine.process.given import references, with_given
from drengine.transport.networks import DataNetworks

LOOK_SECONDS = 0.1
ASK_SECONDS = 5.0
SHOWN_CHARACTERS_MAX = 4000
_STARTED = "started"


class IscsiSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of this driver in a runbook.

    Attributes:
        portal: address of this host, inside its `data_networks`, with a port or without.
        target: the target's name; default: one made from the source's, and another in drills.
        initiators: names of those that may log in; default: whoever has the secret.
        user, secret: with which they log in (CHAP); `secret` is a reference, never the secret itself.
        mutual_user, mutual_secret: with which the target shows them who it is.
        boot: volume that is LUN 1; default: the first declared.
        start, stop: commands that switch the machine on and off, and return; both bear being run twice.
        health: exit status 0 when it works; asked until it does.
        tls_directory: credentials (ca-cert.pem, client-cert.pem, client-key.pem) for exports beyond this host.
        details: told to later steps as ${SOURCE.KEY}.
        grace: how long `stop` may take.
    """

    portal: str
    target: str = ""
    initiators: list[str] = []
    user: str = ""
    secret: str = ""
    mutual_user: str = ""
    mutual_secret: str = ""
    boot: str = ""
    start: list[str] = []
    stop: list[str] = []
    health: list[str] = []
    tls_directory: str = ""
    details: dict[str, str] = {}
    grace: str = "60s"


class IscsiDriver(LaunchDriver, KnowsNeeds):
    """See the module and LaunchDriver."""

    name = "iscsi"

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        read = read_settings(IscsiSettings, settings, self.name)
        try:
            Portal.parse(read.portal)
            parse_duration(read.grace)
            for name in (read.target, *read.initiators):
                if name:
                    check_iscsi_name(name)
            _check_accounts(read)
        except ValueError as error:
            raise DrengineError(LAUNCH_SETTINGS, f"settings of driver iscsi: {error}") from error

    def needs(
        self, settings: Mapping[str, Any], inventory: Inventory | None, *, isolated: bool = False
    ) -> tuple[Need, ...]:
        read = read_settings(IscsiSettings, settings, self.name)
        files = [what for each in (read.secret, read.mutual_secret) for way, what in references(each) if way == "file"]
        files += [f"{read.tls_directory}/{name}" for name in CERTIFICATE_NAMES] if read.tls_directory else []
        ours = programs(["tgtd"], ["nbdfuse"], ["fusermount3"], read.start, read.stop, read.health)
        return (*ours, *map(ReadableFile, files), PortalAddress(Portal.parse(read.portal).address))

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        settings = read_settings(IscsiSettings, request.settings, self.name)
        deadline = time.monotonic() + request.timeout_seconds
        if not request.disks:
            raise DrengineError(LAUNCH_SETTINGS, "driver iscsi: there is no disk to serve")
        served = self._instance(request, settings).start(_target(request, settings), self._disks(request, settings))
        progress(f"{served.target} is served at {served.portal}")
        if settings.start and not (request.directory / _STARTED).exists():
            self._must(request, settings, settings.start, deadline - time.monotonic())
            (request.directory / _STARTED).touch()
            progress("the machine is switched on")
        while not (finished := self._health(request, settings, deadline - time.monotonic())).ok:
            if time.monotonic() > deadline:
                raise DrengineError(
                    LAUNCH_FAILED, f"not healthy within {request.timeout_seconds:g} s: {finished.output}"
                )
            time.sleep(LOOK_SECONDS)
        return self._found(request, settings, healthy=True, said=finished.output)

    def inspect(self, request: LaunchRequest) -> Instance:
        settings = read_settings(IscsiSettings, request.settings, self.name)
        return self._found(request, settings, healthy=self._health(request, settings, ASK_SECONDS).ok)

    def quiesce(self, request: LaunchRequest) -> None:
        """Switch the machine off, then let nobody log in; a machine that runs on sees its disk vanish."""
        settings = read_settings(IscsiSettings, request.settings, self.name)
        if settings.stop and (request.directory / _STARTED).exists():
            self._must(request, settings, settings.stop, parse_duration(settings.grace))
        (request.directory / _STARTED).unlink(missing_ok=True)
        self._instance(request, settings).stop()
        end_hydrators(request.instance, hydration_place(request))

    def stop(self, request: LaunchRequest) -> None:
        self.quiesce(request)
        shutil.rmtree(request.directory, ignore_errors=True)

    def _instance(self, request: LaunchRequest, settings: IscsiSettings) -> IscsiInstance:
        volumes = [disk.volume for disk in _in_order(request, settings)]
        return IscsiInstance(request.instance, request.directory, volumes)

    def _disks(self, request: LaunchRequest, settings: IscsiSettings) -> list[LunDisk]:
        """Each through a server of ours, which outlasts the target's death and speaks TLS; nbdfuse does neither."""
        disks = _in_order(request, settings)
        uris = {disk.volume: _with_tls(disk.uri, settings.tls_directory) for disk in disks}
        if not self._has_servers(request):  # whatever is served yet is cut off: nbdfuse connects once
            with contextlib.suppress(DrengineError):
                self._instance(request, settings).stop()
        local = start_hydrators(request.instance, hydration_place(request), uris, copied=request.hydrate)
        return [LunDisk(each.volume, local[each.volume], max(SECTOR_BYTES, each.sector_bytes)) for each in disks]

    def _has_servers(self, request: LaunchRequest) -> bool:
        place = hydration_place(request)
        return all(is_hydrating(request.instance, place, disk.volume) for disk in request.disks)

    def _health(self, request: LaunchRequest, settings: IscsiSettings, seconds: float) -> Finished:
        if self._instance(request, settings).served() is None or not self._has_servers(request):
            return Finished(1, "the disks are not all served")
        if not settings.health:
            return Finished(0, "")
        return self._run(request, settings, settings.health, seconds)

    def _must(self, request: LaunchRequest, settings: IscsiSettings, argv: list[str], seconds: float) -> None:
        finished = self._run(request, settings, argv, seconds)
        if not finished.ok:
            raise DrengineError(LAUNCH_FAILED, f"{argv[0]} ended with {finished.code}: {finished.output}")

    def _run(self, request: LaunchRequest, settings: IscsiSettings, argv: Sequence[str], seconds: float) -> Finished:
        told = self._instance(request, settings).details()
        environment = {
            "DRENGINE_RUN": request.run,
            "DRENGINE_SOURCE": request.source,
            "DRENGINE_ISOLATED": "1" if request.isolated else "",
            **{f"DRENGINE_{key.upper()}": str(told.get(key, "")) for key in ("portal", "target", "root_path")},
        }
        return run_command(argv, timeout_seconds=max(0.1, seconds), environment=environment)

    def _found(self, request: LaunchRequest, settings: IscsiSettings, *, healthy: bool, said: str = "") -> Instance:
        details = {**settings.details, **self._instance(request, settings).details(), **hydration_details(request)}
        if said:
            details["health"] = said[-SHOWN_CHARACTERS_MAX:]
        running = bool(details["pids"])
        return Instance(request.instance, running, running and healthy, details)


def _in_order(request: LaunchRequest, settings: IscsiSettings) -> list[Disk]:
    first = settings.boot or (request.disks[0].volume if request.disks else "")
    return sorted(request.disks, key=lambda disk: disk.volume != first)


def _with_tls(uri: str, directory: str) -> str:
    if not directory or not uri.startswith("nbd://"):
        return uri
    return f"nbds://{uri.removeprefix('nbd://')}?tls-certificates={quote(directory)}"


def _check_accounts(settings: IscsiSettings) -> None:
    """
    Raises:
        ValueError: half of one, or a secret that stands in the runbook.
    """
    for prefix, user, secret in (
        ("", settings.user, settings.secret),
        ("mutual_", settings.mutual_user, settings.mutual_secret),
    ):
        if bool(user) != bool(secret):
            raise ValueError(f"{prefix}user and {prefix}secret belong together")
        if secret and not any(references(secret)):
            raise ValueError(f"{prefix}secret: name where the secret is, such as ${{file:/etc/drengine/chap}}")
    if settings.mutual_user and not settings.user:
        raise ValueError("mutual_user needs user: targets show themselves only to those that have logged in")


def _target(request: LaunchRequest, settings: IscsiSettings) -> IscsiTarget:
    try:
        secrets = [with_given(each) for each in (settings.secret, settings.mutual_secret)]
    except ValueError as error:
        raise DrengineError(LAUNCH_FAILED, f"settings of driver iscsi: {error}") from error
    account, mutual = (
        Account(user, secret) if user else None
        for user, secret in zip((settings.user, settings.mutual_user), secrets, strict=True)
    )
    return IscsiTarget(
        name=settings.target or target_name(request.source, drill=request.isolated),
        portal=Portal.parse(settings.portal),
        networks=DataNetworks.parse(request.data_networks),
        initiators=tuple(settings.initiators),
        account=account,
        mutual=mutual,
    )
