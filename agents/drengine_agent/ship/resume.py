"""How to go on with a target: what its WELCOME says, compared with what is known and declared here."""

from __future__ import annotations

from dataclasses import dataclass

from drengine.model.points import Mark, VolumeGeometry
from drengine.wire.events import Welcome
from drengine_agent.errors import adoption_hint
from drengine_agent.ship.session import SessionEnded


@dataclass(frozen=True, slots=True)
class Resume:
    """How to go on with this target, decided from its WELCOME.

    Attributes:
        since: hand this to the tracker; the null mark where nothing durable can be built on.
        empty: the target has nothing of this source yet.
        declare: the volumes have to be declared before anything else.
        geometry_changed: volumes that the target knows with another size or identity.
    """

    since: Mark
    empty: bool
    declare: bool
    geometry_changed: bool


def decide_resume(welcome: Welcome, volumes: tuple[VolumeGeometry, ...], acknowledged_sequence: int) -> Resume:
    """What may be built upon.

    A target that has never heard of the source is filled. One that knows a mark is continued from it: whether the mark
    still means something is the tracker's to say. A target whose durable position is *before* one that it had
    acknowledged lost data (it was restored, or replaced): nothing that is known locally about it holds.
    """
    known = {volume.volume: volume for volume in welcome.geometry}
    declared = {volume.volume: volume for volume in volumes}
    went_back = welcome.durable_sequence < acknowledged_sequence
    empty = not known
    return Resume(
        since=Mark() if went_back or empty else welcome.durable_mark,
        empty=empty,
        declare=known != declared,
        geometry_changed=bool(known) and known != declared,
    )


def check_declared(welcome: Welcome, volumes: tuple[VolumeGeometry, ...]) -> None:
    """Refuse to ship one volume into another's replica: number, name and identity belong together for ever.

    Raises:
        SessionEnded: volume-replaced, naming the volume.
    """
    known = {volume.volume: volume for volume in welcome.geometry}
    for ours in volumes:
        theirs = known.get(ours.volume)
        if theirs and (theirs.name, theirs.identity) != (ours.name, ours.identity):
            raise SessionEnded(
                "volume-replaced",
                f"volume {ours.volume} is {theirs.name} ({theirs.identity}) at the target, here {ours.name} "
                f"({ours.identity})" + (f". {adoption_hint(theirs)}" if theirs.name == ours.name else ""),
                retryable=False,
            )
