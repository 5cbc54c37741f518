"""Promoted disks as LUNs of this host, for the drivers whose machines reach them over iSCSI: `iscsi` and `standby`.

    initiator  --iSCSI-->  tgtd and nbdfuse (drengine.iscsi)  --NBD-->  hydrator  --NBD, TLS-->  target

The hydrator outlasts the target daemon's death and speaks TLS; nbdfuse does neither. A process beside them, the keeper
(keeper.py), starts again whichever of them dies, with the same portal, names and numbers: initiators come back by
themselves.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from drengine.durable import replace_durably
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.drivers.hydrated import hydration_place
from drengine.failover.needs import Need, PortalAddress, ReadableFile, programs
from drengine.iscsi.names import check_iscsi_name, target_name
from drengine.iscsi.portals import Portal
from drengine.iscsi.serving import Account, IscsiInstance, IscsiTarget, LunDisk, ServedTarget
from drengine.model.errors import DrengineError
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.client import CERTIFICATE_NAMES, with_certificates
from drengine.nbd.hydrators import end_hydrators, hydrator_processes, is_hydrating, start_hydrators
from drengine.ownership import make_directory
from drengine.process import end_marked, find_marked, start_marked
from drengine.process.given import references, with_given
from drengine.transport.networks import DataNetworks

KEEPER, KEEPER_MARK = "drengine.failover.drivers.keeper", "DRENGINE_LUNS"
KEEPER_SECONDS = 5.0
PLAN = "luns.json"
_LOCK, _KEEPER_OUTPUT = "luns.lock", "keeper.log"


class LunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How LUNs are served, in a runbook.

    Attributes:
        portal: address of this host, inside its `data_networks`, with a port or without.
        target: the target's name; default: one made from the source's, and another in drills.
        initiators: names of those that may log in; default: whoever has the secret.
        user, secret: with which they log in (CHAP); `secret` is a reference, never the secret itself.
        mutual_user, mutual_secret: with which the target shows them who it is.
        tls_directory: credentials (ca-cert.pem, client-cert.pem, client-key.pem) for exports beyond this host.
    """

    portal: str
    target: str = ""
    initiators: list[str] = []
    user: str = ""
    secret: str = ""
    mutual_user: str = ""
    mutual_secret: str = ""
    tls_directory: str = ""

    def check(self) -> None:
        """Whether they make sense, before anything is served.

        Raises:
            ValueError: they do not.
        """
        Portal.parse(self.portal)
        for name in (self.target, *self.initiators):
            if name:
                check_iscsi_name(name)
        for prefix, user, secret in (
            ("", self.user, self.secret),
            ("mutual_", self.mutual_user, self.mutual_secret),
        ):
            if bool(user) != bool(secret):
                raise ValueError(f"{prefix}user and {prefix}secret belong together")
            if secret and not any(references(secret)):
                raise ValueError(f"{prefix}secret: name where the secret is, such as ${{file:/etc/drengine/chap}}")
        if self.mutual_user and not self.user:
            raise ValueError("mutual_user needs user: targets show themselves only to those that have logged in")

    def needs(self) -> tuple[Need, ...]:
        """What this host needs for it."""
        secrets = (self.secret, self.mutual_secret)
        files = [what for each in secrets for way, what in references(each) if way == "file"]
        files += [f"{self.tls_directory}/{name}" for name in CERTIFICATE_NAMES] if self.tls_directory else []
        ours = programs(["tgtd"], ["nbdfuse"], ["fusermount3"])
        return (*ours, *map(ReadableFile, files), PortalAddress(Portal.parse(self.portal).address))


class LunPlan(msgspec.Struct, frozen=True):
    """What is served: noted for the keeper. Secrets are not in it, only where they are.

    Attributes:
        instance, target: names.
        directory: the instance's own.
        disks: in the order of their LUNs.
        hydrate: the disks become local to this host.
        data_networks: from where initiators may come.
        settings: of the driver.
    """

    instance: str
    target: str
    directory: str
    disks: tuple[Disk, ...]
    hydrate: bool
    data_networks: tuple[str, ...]
    settings: LunSettings

    @staticmethod
    def of(request: LaunchRequest, settings: LunSettings, *, boot: str = "") -> LunPlan:
        """Of a launch. `boot`: the volume that comes first; default: the first declared."""
        first = boot or (request.disks[0].volume if request.disks else "")
        return LunPlan(
            instance=request.instance,
            target=settings.target or target_name(request.source, drill=request.isolated),
            directory=str(request.directory.absolute()),
            disks=tuple(sorted(request.disks, key=lambda disk: disk.volume != first)),
            hydrate=request.hydrate,
            data_networks=request.data_networks,
            settings=LunSettings(**{name: getattr(settings, name) for name in LunSettings.__struct_fields__}),
        )

    def accounts(self) -> list[Account | None]:
        """With which initiators log in, and the target shows itself.

        Raises:
            DrengineError: LAUNCH_FAILED, a secret is not there.
        """
        settings = self.settings
        try:
            return [
                Account(user, with_given(secret)) if user else None
                for user, secret in (
                    (settings.user, settings.secret),
                    (settings.mutual_user, settings.mutual_secret),
                )
            ]
        except ValueError as error:
            raise DrengineError(LAUNCH_FAILED, f"iSCSI: {error}") from error

    def target_for(self, account: Account | None, mutual: Account | None) -> IscsiTarget:
        """What is served, with these accounts."""
        settings = self.settings
        return IscsiTarget(
            name=self.target,
            portal=Portal.parse(settings.portal),
            networks=DataNetworks.parse(self.data_networks),
            initiators=tuple(settings.initiators),
            account=account,
            mutual=mutual,
        )


class ServedLuns:
    """The LUNs of an instance. Calls block; each looks first what is there, so all can be repeated."""

    def __init__(self, plan: LunPlan) -> None:
        self._plan = plan
        self._directory = Path(plan.directory)
        self._hydration = hydration_place(self._directory)
        self._target = IscsiInstance(plan.instance, self._directory, [disk.volume for disk in plan.disks])

    @property
    def is_noted(self) -> bool:
        """They were served once, and not stopped since."""
        return (self._directory / PLAN).exists()

    def start(self) -> ServedTarget:
        """Serve them, and have them kept served.

        Raises:
            DrengineError: LAUNCH_FAILED, HYDRATION_FAILED, and as IscsiInstance.start.
        """
        accounts = self._plan.accounts()
        make_directory(self._directory)
        replace_durably(self._directory / PLAN, msgspec.json.encode(self._plan))
        served = self.serve(*accounts)
        if not find_marked(KEEPER_MARK, self._plan.instance, self._directory):
            self._start_keeper(accounts)
        return served

    def serve(self, account: Account | None, mutual: Account | None) -> ServedTarget:
        """Serve whatever is not, once.

        Raises:
            DrengineError: as `start`.
        """
        with self._alone():
            uris, certificates = {disk.volume: disk.uri for disk in self._plan.disks}, self._plan.settings.tls_directory
            if certificates:
                uris = {volume: with_certificates(uri, certificates) for volume, uri in uris.items()}
            if not self._has_servers():  # whatever is served yet is cut off: nbdfuse connects once
                with contextlib.suppress(DrengineError):
                    self._target.stop()
            local = start_hydrators(self._plan.instance, self._hydration, uris, copied=self._plan.hydrate)
            disks = [
                LunDisk(each.volume, local[each.volume], max(SECTOR_BYTES, each.sector_bytes))
                for each in self._plan.disks
            ]
            return self._target.start(self._plan.target_for(account, mutual), disks)

    def served(self) -> ServedTarget | None:
        """What initiators may use now; None: not all of it is there."""
        return self._target.served() if self._has_servers() else None

    def processes(self) -> list[int]:
        """All without which they are not served."""
        return [
            *self._target.processes(),
            *self._target.file_processes(),
            *hydrator_processes(self._plan.instance, self._hydration),
        ]

    def stop(self) -> None:
        """Serve no more; what was written is flushed.

        Raises:
            DrengineError: ISCSI_FAILED, a disk could not be flushed.
        """
        end_marked(KEEPER_MARK, self._plan.instance, self._directory, grace_seconds=KEEPER_SECONDS)
        self._target.stop()
        end_hydrators(self._plan.instance, self._hydration)
        (self._directory / PLAN).unlink(missing_ok=True)

    def details(self) -> dict[str, Any]:
        """For reports."""
        return self._target.details()

    def _has_servers(self) -> bool:
        return all(is_hydrating(self._plan.instance, self._hydration, disk.volume) for disk in self._plan.disks)

    def _start_keeper(self, accounts: list[Account | None]) -> None:
        """It gets the secrets by a pipe: where they were may be gone when it needs them.

        Raises:
            DrengineError: LAUNCH_FAILED.
        """
        given, ours = os.pipe()
        try:
            with os.fdopen(ours, "wb") as secrets:
                secrets.write(msgspec.json.encode(accounts))
            start_marked(
                [sys.executable, "-m", KEEPER, PLAN, str(given)],
                KEEPER_MARK,
                self._plan.instance,
                output=self._directory / _KEEPER_OUTPUT,
                directory=self._directory,
                environment={"PYTHONPATH": os.pathsep.join(sys.path)},
                descriptors=[given],
            )
        except OSError as error:
            raise DrengineError(LAUNCH_FAILED, f"the keeper of the LUNs can't be started: {error}") from error
        finally:
            os.close(given)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeper and driver start nothing at the same time."""
        with (self._directory / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
