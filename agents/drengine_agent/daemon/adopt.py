"""Saying that another disk replaces a volume's old one: the authorised way past VOLUME_REPLACED.

What the target knows the volume as stays the same, so its history goes on. Unless somebody says that the new disk has
the volume's content, the source is fenced until a failback has brought that home: an empty disk must neither be served
nor shipped as if it were what the old one held.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec

from drengine.linux.identity import is_same
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine_agent.capture.backing import Volume
from drengine_agent.config import AgentConfig
from drengine_agent.daemon.state import KnownVolume, StateDirectory
from drengine_agent.errors import AGENT_RUNNING, NOT_A_REPLACEMENT
from drengine_agent.fencing.fence import Fence, FenceRecord, Standing, fenced_record

log = logging.getLogger("drengine.agent")


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was noted.

    Attributes:
        volume: its name.
        identity: of the new disk.
        formerly: of the one that was there before; empty if none was known.
        declared: what the target knows the volume as, before and after.
        standing: of the source, from now on.
    """

    volume: str
    identity: str
    formerly: str
    declared: str
    standing: str


def adopt(config: AgentConfig, name: str, clock: Clock, *, known_as: str = "", with_content: bool = False) -> Adoption:
    """Note it for the next run. Interrupted, do it again.

    Args:
        config: the agent's, which must not be running.
        name: of the volume.
        clock: for the note.
        known_as: what the target knows the volume as, where the state does not tell.
        with_content: the new disk holds the volume's content: the source stays in charge, and ships what differs.

    Raises:
        DrengineError: AGENT_RUNNING, STATE_DAMAGED, NOT_A_REPLACEMENT, or what keeps the disk from being opened.
    """
    wanted = next((volume for volume in config.volume if volume.name == name), None)
    if wanted is None:
        configured = ", ".join(volume.name for volume in config.volume)
        raise DrengineError(NOT_A_REPLACEMENT, f"no volume is named {name!r}; there are {configured}")
    try:
        directory = StateDirectory(config.state_directory)
    except DrengineError as error:
        if error.kind is not AGENT_RUNNING:
            raise
        hint = "Stop it (`systemctl stop drengine-agent`), adopt the disk, and start it again."
        raise DrengineError(AGENT_RUNNING, error.message, hint=hint) from error
    try:
        state = directory.load()
        known = state.volumes.get(name)
        found = Volume.open(state.number_of(name), name, wanted.path)
        found.close()
        if known and not known_as and is_same(known.evidence_known, found.evidence):
            raise DrengineError(NOT_A_REPLACEMENT, f"volume {name}: {wanted.path} is {known.identity}, as before")
        formerly = known.identity if known else ""
        declared = known_as or (known.declared if known else "") or formerly or found.identity
        fence = Fence(config.state_directory)
        fence.replace(_record(fence.record, name, state.generation, clock, with_content=with_content))
        identity = found.identity
        if identity == formerly:  # a disk without a name of its own: nothing that was noted of the old one fits it
            identity = f"{identity}:adopted={clock.now_ns() // 10**9}"
        state.volumes[name] = KnownVolume(found.volume, identity, declared, found.evidence, clock.now_ns())
        directory.save(state)
    finally:
        directory.close()
    log.warning("volume %s: %s was adopted in place of %s", name, identity, formerly or declared)
    return Adoption(name, identity, formerly, declared, fence.record.standing.value)


def _record(before: FenceRecord, name: str, generation: int, clock: Clock, *, with_content: bool) -> FenceRecord:
    """The standing with the new disk: what was known of the old one's content means nothing any more."""
    fenced = before.standing is Standing.FENCED
    record = before if fenced or with_content else fenced_record(generation, "replaced", clock)
    others = [each for each in before.replaced if each != name]
    return msgspec.structs.replace(record, equals="", stamps={}, replaced=others if with_content else [*others, name])
