"""The `ec2` driver: each step looks first at what is there, so that any of it may be asked again after any crash.

Order of a launch: the instance first, since room for it is what an Outpost runs short of; then the volumes, filled by
the helper while the instance waits; then the instance is stopped, gets the volumes, and is started on them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drengine.control.attach import HYDRATED, AttachOrder, HostAnswer, HostQuestion, StandbySettings
from drengine.control.messages import Verb
from drengine.failover.drivers.driver import (
    AsksCloud,
    AsksHost,
    CloudFinding,
    Instance,
    KnowsMachine,
    KnowsNeeds,
    LaunchDriver,
    LaunchRequest,
    SeesAddresses,
)
from drengine.failover.drivers.ec2.calls import Calls, Connect, Pace
from drengine.failover.drivers.ec2.choice import (
    boot_mode,
    boot_volume,
    choose_types,
    look_at_image,
)
from drengine.failover.drivers.ec2.helper import order_helper
from drengine.failover.drivers.ec2.isolation import closed_group
from drengine.failover.drivers.ec2.look import LOOK_PATIENCE, Look
from drengine.failover.drivers.ec2.made import Made, Resource, find_made, look_at_instance, mapped, state_of
from drengine.failover.drivers.ec2.network import (
    Subnet,
    addresses_left_out,
    addresses_of,
    fitting_subnets,
    look_at_subnets,
)
from drengine.failover.drivers.ec2.server import Server, described, is_boot
from drengine.failover.drivers.ec2.settings import DRIVER, Ec2Settings, read_ec2_settings
from drengine.failover.drivers.ec2.volumes import Place, Volumes, size_gib
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.needs import Library, Need, programs
from drengine.model.errors import DrengineError
from drengine.model.hardware import Machine
from drengine.model.inventory import Inventory

ASK_SECONDS = 30.0
HEALTH_LOOK_SECONDS = 3.0
SETTLE_SECONDS = 3.0
"""Between two looks: one whose making was asked for just before may come into sight only now, and what was in use is
free a little later."""
ROUNDS_MAX = 8

Say = Callable[[str], None]


class Ec2Driver(LaunchDriver, AsksCloud, AsksHost, KnowsNeeds, KnowsMachine, SeesAddresses):
    """See the package and LaunchDriver."""

    name = DRIVER
    needs_host = True

    def __init__(self, pace: Pace | None = None, connect: Connect | None = None) -> None:
        """
        Args:
            pace: time; the system's by default.
            connect: makes the SDK's clients; its own by default.
        """
        self._pace = pace or Pace()
        self._connect = connect

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        self._calls(read_ec2_settings(settings))

    def needs(
        self, settings: Mapping[str, Any], inventory: Inventory | None, *, isolated: bool = False
    ) -> tuple[Need, ...]:
        return (Library("boto3", "drengine[ec2]"), *programs(read_ec2_settings(settings).health))

    def machine(self, settings: Mapping[str, Any], inventory: Inventory | None) -> Machine:
        mode = boot_mode(read_ec2_settings(settings), inventory)
        return Machine(disk_bus="nvme", card="ena", firmware=mode, console="ttyS0")

    def launch(self, request: LaunchRequest, progress: Say) -> Instance:
        return self._work(request, progress).launch()

    def inspect(self, request: LaunchRequest) -> Instance:
        return self._work(request).inspect()

    def addresses(self, request: LaunchRequest) -> list[str] | None:
        """As EC2 has them; whether the guest answers there is what health is for.

        What the settings leave out counts as there: nobody asked EC2 for it, and `plan` has said so.
        """
        settings = read_ec2_settings(request.settings)
        found = find_made(self._calls(settings), request.instance).server
        return None if found is None else [*addresses_of(found), *addresses_left_out(request, settings)]

    def quiesce(self, request: LaunchRequest) -> None:
        self._work(request).quiesce()

    def stop(self, request: LaunchRequest) -> None:
        self._work(request).stop()
        shutil.rmtree(request.directory, ignore_errors=True)

    def ask_host(self, request: LaunchRequest) -> HostAnswer:
        """Of the helper: whether it reaches the disks, and may be told to."""
        order = AttachOrder(
            instance=request.instance,
            source=request.source,
            disks={disk.volume: disk.uri for disk in request.disks},
            settings=StandbySettings(attach=HYDRATED),
            isolated=False,
        )
        question = {"examine": msgspec.to_builtins(HostQuestion(order=order))}
        answer = order_helper(request, Verb.STATUS, question)
        return msgspec.convert(answer.result, HostAnswer)

    def ask_cloud(self, request: LaunchRequest) -> list[CloudFinding]:
        settings = read_ec2_settings(request.settings)
        return Look(Calls(settings, self._pace, self._connect, patience=LOOK_PATIENCE), request, settings).findings()

    def _work(self, request: LaunchRequest, say: Say = lambda _: None) -> _Work:
        settings = read_ec2_settings(request.settings)
        return _Work(self._calls(settings), request, settings, say)

    def _calls(self, settings: Ec2Settings) -> Calls:
        return Calls(settings, self._pace, self._connect)


class _Work:
    """What is done for one request."""

    def __init__(self, calls: Calls, request: LaunchRequest, settings: Ec2Settings, say: Say) -> None:
        self._calls = calls
        self._request = request
        self._settings = settings
        self._server = Server(calls, request, settings, say)
        self._volumes = Volumes(calls, request, settings, say)

    def launch(self) -> Instance:
        request, settings, server = self._request, self._settings, self._server
        deadline = self._calls.pace.monotonic() + request.timeout_seconds
        boot = boot_volume(request, settings)
        for disk in request.disks:
            size_gib(disk, settings)  # refuses one that is too small before anything is made
        made = find_made(self._calls, request.instance)
        subnets = look_at_subnets(self._calls, settings, isolated=request.isolated)
        types = choose_types(self._calls, request, settings, subnets[0].place)
        instance = self._ready_instance(made, subnets, types)
        disks = self._filled_disks(made, subnets[0].place, instance)
        if not set(disks.values()) <= set(mapped(instance).values()):
            instance = server.stop(instance)
            server.swap_disks(instance, self._volumes, disks, boot)
        self._tidy(instance)
        server.give_address(instance, made.addresses)
        if state_of(instance) == "stopped":
            server.give_user_data(instance)
            instance = server.start(instance, types)
        return self._healthy(instance, disks, deadline)

    def inspect(self) -> Instance:
        request = self._request
        made = find_made(self._calls, request.instance)
        found = made.server
        if found is None:
            return Instance(request.instance, False, False)
        disks = {name: each["VolumeId"] for name, each in made.disks().items()}
        details = described(found, self._settings, disks)
        running = state_of(found) == "running" and bool(disks) and set(disks.values()) <= set(mapped(found).values())
        why = self._server.unwell(found["InstanceId"], _texts(details), ASK_SECONDS) if running else state_of(found)
        return Instance(request.instance, running, running and not why, details | ({"unwell": why} if why else {}))

    def quiesce(self) -> None:
        """Stopped, what it wrote is brought back onto the branches: only those are shipped home."""
        made = find_made(self._calls, self._request.instance)
        if made.server is not None:
            self._server.stop(self._server.settle(made.server))
        if not self._request.isolated:
            self._volumes.bring_back(made.disks())

    def stop(self) -> None:
        """Rounds, until nothing is found: what is attached or associated can't go in the first."""
        settled = False
        for number in range(ROUNDS_MAX):
            if settled or number > 1:
                self._calls.pace.sleep(SETTLE_SECONDS)
            made = find_made(self._calls, self._request.instance)
            if made:
                self._remove(made)
            elif settled:
                return
            settled = not made
        left = find_made(self._calls, self._request.instance)
        if left:
            raise DrengineError(LAUNCH_FAILED, f"of {self._request.instance} something is left in EC2: {_ids(left)}")

    def _ready_instance(self, made: Made, subnets: list[Subnet], types: list[str]) -> Resource:
        """The instance, running or stopped."""
        request, settings = self._request, self._settings
        if made.server is not None:
            return self._server.settle(made.server)
        image = look_at_image(self._calls, request, settings)
        fitting = fitting_subnets(subnets, request, settings)
        groups = settings.groups_for(isolated=request.isolated)
        if not groups:
            groups = [closed_group(self._calls, request, settings, subnets[0].vpc, made.groups)]
        return self._server.run(fitting, types, image, groups)

    def _tidy(self, instance: Resource) -> None:
        """Away with the image's disk, and with an instance that came into sight after a second one was launched."""
        made = find_made(self._calls, self._request.instance)
        self._server.terminate(each for each in made.instances if each["InstanceId"] != instance["InstanceId"])
        for left in filter(is_boot, made.volumes):
            if not left.get("Attachments"):
                self._volumes.delete(left["VolumeId"])

    def _filled_disks(self, made: Made, place: Place, instance: Resource) -> dict[str, str]:
        volumes = self._volumes.make(made.disks(), place)
        self._volumes.fill(volumes, instance["InstanceId"])
        return {name: each["VolumeId"] for name, each in volumes.items()}

    def _healthy(self, instance: Resource, disks: Mapping[str, str], deadline: float) -> Instance:
        id, pace = instance["InstanceId"], self._calls.pace
        details = described(look_at_instance(self._calls, id) or instance, self._settings, disks)
        while why := self._server.unwell(id, _texts(details), deadline - pace.monotonic()):
            if pace.monotonic() >= deadline:
                raise DrengineError(LAUNCH_FAILED, f"not healthy in time: {why}")
            pace.sleep(HEALTH_LOOK_SECONDS)
        return Instance(self._request.instance, True, True, details)

    def _remove(self, made: Made) -> None:
        self._server.terminate(made.instances)
        calls = self._calls
        for volume in find_made(calls, self._request.instance).volumes:
            if volume["State"] in ("deleting", "deleted"):
                continue
            self._volumes.detach(volume["VolumeId"], by_force=True)
            self._volumes.delete(volume["VolumeId"])
        for address in made.addresses:
            if association := address.get("AssociationId"):
                calls("DisassociateAddress", AssociationId=association, tolerate=("InvalidAssociationID.NotFound",))
            calls("ReleaseAddress", AllocationId=address["AllocationId"], tolerate=("InvalidAllocationID.NotFound",))
        for interface in made.interfaces:
            # EC2 has two words for one that is in use: its instance is gone a little later, or comes into sight.
            tolerate = ("InvalidNetworkInterfaceID.NotFound", "InvalidNetworkInterface.InUse", "InvalidParameterValue")
            calls("DeleteNetworkInterface", NetworkInterfaceId=interface["NetworkInterfaceId"], tolerate=tolerate)
        for group in made.groups:
            calls(
                "DeleteSecurityGroup",
                GroupId=group["GroupId"],
                tolerate=("InvalidGroup.NotFound", "DependencyViolation"),
            )


def _texts(details: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in details.items() if isinstance(value, str)}


def _ids(made: Made) -> str:
    kinds = {
        "InstanceId": made.instances,
        "VolumeId": made.volumes,
        "NetworkInterfaceId": made.interfaces,
        "AllocationId": made.addresses,
        "GroupId": made.groups,
    }
    return ", ".join(str(each[key]) for key, found in kinds.items() for each in found)
