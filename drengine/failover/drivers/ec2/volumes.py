"""EBS volumes of the disks: made beside the helper, filled by it, handed to the instance.

A volume's tag `drengine:state` says what it holds: `empty` (being filled), `filled` (its branch at the launch, and then
whatever the instance writes) or `returned` (what it held was brought back onto the branch). Only `empty` and `returned`
are filled: a `filled` one may hold writes that are nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from drengine.control.attach import HydrateDisk, HydrateOrder
from drengine.control.messages import Verb
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.errors import EC2_SETUP, TOKEN_SPENT, Ec2Error
from drengine.failover.drivers.ec2.helper import find_helper, order_helper
from drengine.failover.drivers.ec2.made import (
    APPEAR_SECONDS,
    STATE,
    Resource,
    disk_role,
    first_free,
    look_at_instance,
    look_at_volume,
    mapped,
    specification,
    tags_for,
    tags_of,
    token_of,
    wait_until,
)
from drengine.failover.drivers.ec2.settings import Ec2Settings, VolumeSettings
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.model.errors import DrengineError

GIB = 1 << 30
ATTACH_SECONDS = 120.0
TRIES_MAX = 8
EMPTY, FILLED, RETURNED = "empty", "filled", "returned"
_GONE = ("deleting", "deleted", "error")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where instance, volumes and helper have to be together."""

    zone: str
    outpost: str = ""

    def __str__(self) -> str:
        return f"{self.outpost or 'no Outpost'} in {self.zone}"


def size_gib(disk: Disk, settings: Ec2Settings) -> int:
    """Of the EBS volume of a disk.

    Raises:
        DrengineError: EC2_SETUP, `size_gib` is smaller than the disk.
    """
    needed = -(-disk.size_bytes // GIB)
    wanted = settings.volumes.get(disk.volume, VolumeSettings()).size_gib
    if wanted and wanted < needed:
        raise DrengineError(
            EC2_SETUP,
            f"`size_gib: {wanted}` of {disk.volume} is {disk.size_bytes - wanted * GIB} bytes smaller than the disk",
        )
    return max(wanted, needed, 1)


def volume_type(disk: Disk, settings: Ec2Settings) -> str:
    """Of the EBS volume of a disk."""
    return settings.volumes.get(disk.volume, VolumeSettings()).type or settings.volume_type


def create_parameters(disk: Disk, request: LaunchRequest, settings: Ec2Settings, place: Place) -> dict[str, Any]:
    """CreateVolume's, but for its token.

    Raises:
        DrengineError: EC2_SETUP.
    """
    tags = tags_for(request, settings, disk_role(disk.volume), state=EMPTY)
    return {
        "AvailabilityZone": place.zone,
        "Size": size_gib(disk, settings),
        "VolumeType": volume_type(disk, settings),
        "TagSpecifications": [specification("volume", tags)],
        **({"OutpostArn": place.outpost} if place.outpost else {}),
        **({"Encrypted": True} if settings.encrypted or settings.kms_key else {}),
        **({"KmsKeyId": settings.kms_key} if settings.kms_key else {}),
    }


class Volumes:
    """The volumes of one instance."""

    def __init__(self, calls: Calls, request: LaunchRequest, settings: Ec2Settings, say: Say) -> None:
        self._calls = calls
        self._request = request
        self._settings = settings
        self._say = say

    def make(self, known: Mapping[str, Resource], place: Place) -> dict[str, Resource]:
        """One for each disk, those that are known among them.

        Raises:
            DrengineError: EC2's refusals.
        """
        return {
            disk.volume: known.get(disk.volume) or self._create(disk, place)
            for disk in sorted(self._request.disks, key=lambda disk: disk.volume)
        }

    def fill(self, volumes: Mapping[str, Resource], server: str) -> None:
        """Have the helper make each equal to its branch, but those that the instance has had since.

        Args:
            volumes: of the disks, by volume.
            server: the instance, which keeps what it has attached.

        Raises:
            DrengineError: EC2's refusals; LAUNCH_FAILED with the helper's words.
        """
        due = {name: each for name, each in volumes.items() if tags_of(each).get(STATE) != FILLED}
        if due:
            self._at_helper(due, "fill")
            self._note(due.values(), FILLED)
        self._release(volumes, server)

    def bring_back(self, volumes: Mapping[str, Resource]) -> None:
        """Have the helper make each branch equal to what the instance has written, and let go of the volumes.

        Raises:
            DrengineError: as `fill`.
        """
        due = {name: each for name, each in volumes.items() if tags_of(each).get(STATE) == FILLED}
        if due:
            self._at_helper(due, "return")
            self._note(due.values(), RETURNED)
        self._release(volumes, "")

    def attach(self, volume: str, instance: str, device: str) -> None:
        """Attach one that is attached nowhere, or there already.

        Raises:
            DrengineError: EC2's refusals; LAUNCH_FAILED.
        """
        calls = self._calls
        self._calls("AttachVolume", VolumeId=volume, InstanceId=instance, Device=device, tolerate=("VolumeInUse",))
        wait_until(
            calls,
            f"attaching {volume} to {instance}",
            ATTACH_SECONDS,
            lambda: _attached(look_at_volume(calls, volume), instance),
            at_once=True,
        )

    def detach(self, volume: str, *, by_force: bool = False) -> None:
        """Let go of one, wherever it is attached; no error if it is not, or is gone. One that EC2 does not know is gone
        only when it does not come into sight either.

        Args:
            volume: its id.
            by_force: when its instance does not let go in time, take it all the same: nobody wants what it holds.

        Raises:
            DrengineError: EC2's refusals; LAUNCH_FAILED.
        """
        calls = self._calls
        try:
            wait_until(calls, f"seeing {volume}", APPEAR_SECONDS, lambda: look_at_volume(calls, volume), at_once=True)
        except DrengineError as error:
            if error.kind is not LAUNCH_FAILED:
                raise
            return
        self._let_go(volume, by_force=False)
        try:
            self._until_free(volume)
        except DrengineError as error:
            if error.kind is not LAUNCH_FAILED or not by_force:
                raise
            self._let_go(volume, by_force=True)
            self._until_free(volume)

    def _let_go(self, volume: str, *, by_force: bool) -> None:
        tolerate = ("IncorrectState", "InvalidAttachment.NotFound", "InvalidVolume.NotFound")
        force = {"Force": True} if by_force else {}
        for each in (look_at_volume(self._calls, volume) or {}).get("Attachments", ()):
            if by_force or each["State"] != "detaching":
                self._calls("DetachVolume", VolumeId=volume, InstanceId=each["InstanceId"], tolerate=tolerate, **force)

    def _until_free(self, volume: str) -> None:
        calls = self._calls
        wait_until(
            calls, f"detaching {volume}", ATTACH_SECONDS, lambda: _free(look_at_volume(calls, volume)), at_once=True
        )

    def delete(self, volume: str) -> None:
        """Delete one that is attached nowhere.

        Raises:
            DrengineError: EC2's refusals.
        """
        self._calls("DeleteVolume", VolumeId=volume, tolerate=("InvalidVolume.NotFound",))

    def _release(self, volumes: Mapping[str, Resource], server: str) -> None:
        for each in volumes.values():
            now = look_at_volume(self._calls, each["VolumeId"])
            if _free(now) is None and not (server and _attached(now, server)):
                self.detach(each["VolumeId"])

    def _create(self, disk: Disk, place: Place) -> Resource:
        """A token is spent whose volume was deleted, for EC2 would name it for ever, or that had other parameters."""
        calls, parameters = self._calls, create_parameters(disk, self._request, self._settings, place)
        for number in range(TRIES_MAX):
            token = token_of(self._request.instance, disk.volume, place, number)
            answer = calls("CreateVolume", ClientToken=token, tolerate=(TOKEN_SPENT,), **parameters)
            if not answer:
                continue
            id = answer["VolumeId"]

            def available(id: str = id) -> Resource | None:
                found = look_at_volume(calls, id)
                return found if found and found["State"] in ("available", "in-use", *_GONE) else None

            try:
                made = wait_until(calls, f"making {id} for {disk.volume}", APPEAR_SECONDS, available, at_once=True)
            except DrengineError as error:
                if error.kind is not LAUNCH_FAILED:
                    raise
                continue
            if made["State"] not in _GONE:
                self._say(f"volume {id} of {made['Size']} GiB made for {disk.volume}")
                return made
        raise DrengineError(LAUNCH_FAILED, f"EC2 made no volume for {disk.volume}: its tokens are spent")

    def _at_helper(self, volumes: Mapping[str, Resource], direction: str) -> None:
        request = self._request
        helper = str(find_helper(self._calls, self._settings, request.host)["InstanceId"])
        disks = {disk.volume: disk for disk in request.disks}
        for each in volumes.values():
            self._hand_to(each, helper)
        order = HydrateOrder(
            instance=request.instance,
            direction=direction,
            disks={
                name: HydrateDisk(
                    uri=disks[name].uri, serial=serial_of(each["VolumeId"]), size_bytes=disks[name].size_bytes
                )
                for name, each in volumes.items()
            },
        )
        answer = order_helper(request, Verb.HYDRATE, msgspec.to_builtins(order), self._say)
        done = answer.result.get("done", {})
        if wrong := [name for name, each in order.disks.items() if done.get(name) != each.serial]:
            raise DrengineError(LAUNCH_FAILED, f"{request.host} answered for other volumes than {', '.join(wrong)}")

    def _hand_to(self, volume: Resource, instance: str) -> None:
        """Attach it to the helper, from wherever it is."""
        id = volume["VolumeId"]
        now = look_at_volume(self._calls, id)
        if _attached(now, instance):
            return
        if _free(now) is None:
            self.detach(id)
        for _ in range(TRIES_MAX):
            there = look_at_instance(self._calls, instance) or {}
            try:
                return self.attach(id, instance, first_free(mapped(there)))
            except Ec2Error as error:  # another run has just taken that name
                if error.code != "InvalidParameterValue" or "in use" not in error.message:
                    raise
        raise DrengineError(LAUNCH_FAILED, f"{instance} has no free name to attach {id}")

    def _note(self, volumes: Collection[Resource], state: str) -> None:
        ids = [each["VolumeId"] for each in volumes]
        self._calls("CreateTags", Resources=ids, Tags=[{"Key": STATE, "Value": state}])


def serial_of(volume: str) -> str:
    """What the guest sees as the serial number of the NVMe disk of an EBS volume."""
    return volume.replace("-", "")


def _attached(volume: Resource | None, instance: str) -> Resource | None:
    for each in (volume or {}).get("Attachments", ()):
        if each["InstanceId"] == instance and each["State"] == "attached":
            return volume
    return None


def _free(volume: Resource | None) -> Resource | None:
    """A volume that is attached nowhere; one that is gone is it too."""
    if volume is None or volume["State"] in (*_GONE, "available"):
        return volume or {"State": "deleted"}
    return None
