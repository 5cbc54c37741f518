"""What travels over the broker, as values. JSON on the wire; docs/control.md shows each message and its topic.

Commands carry an id, the generation they were decided under and an absolute expiry; the party that executes one
answers with a message of our own (a broker's PUBACK proves nothing) and answers a repeated id with the first answer.
Commands are never retained (rule 9, fault 50). Payloads stay far below the 128 KiB that AWS IoT Core allows.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class PartyKind(enum.StrEnum):
    """Who speaks."""

    AGENT = "agent"
    HOST = "host"
    TARGET = "target"
    ORCHESTRATOR = "orchestrator"


class Verb(enum.StrEnum):
    """What an agent (on a source server or a recovery host) can be told to do. See docs/control.md for arguments."""

    SYNC = "sync"
    CUT = "cut"
    PAUSE = "pause"
    RESUME = "resume"
    THROTTLE = "throttle"
    FENCE = "fence"
    """Stop serving and shipping, for good, until released: {generation}."""
    QUIESCE = "quiesce"
    """Planned switch: stop serving, cut a last point, wait until it is durable; answers {sequence, point}."""
    PRESERVE = "preserve"
    """A fenced source ships what its disks hold beyond the replica onto a branch of its own: {branch, generation}."""
    REVERSE = "reverse"
    """A fenced source makes its disks equal to a point of the promoted branch, shipping only differences: {point}."""
    RELEASE = "release"
    """The source is in charge again: {generation, branch}. Serve and ship."""
    SETTLE = "settle"
    """A spare host becomes the home of a source: {source, generation, volumes, disks}; answers {source, disks}."""
    RUN = "run"
    """Run a command of the source's own list, `[allow] commands`: {command, seconds}; answers {exit, output}."""
    POLICY = "policy"
    """Go by what the site decided: {settings, digest}; what is not in it is the agent's own again."""
    UPGRADE = "upgrade"
    """Fetch the agent's new program from the authority and install it: {version, sha256, size_bytes}. Always signed."""
    ATTACH = "attach"
    """Recovery host: attach exports, mount, start services: {instance, ...}."""
    DETACH = "detach"
    HYDRATE = "hydrate"
    """Recovery host: make volumes of this host equal to exports, or those to them: {instance, direction, disks}."""
    CHECK = "check"
    """Recovery host: ask a workload from inside its network: {instance, seconds} and command, http or tcp."""
    STATUS = "status"


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """Retained; `online` False is also the last will."""

    online: bool
    since_ns: int
    instance: str
    version: str


class AgentReport(msgspec.Struct, frozen=True, kw_only=True):
    """Retained state of a source's agent or a recovery host, published on change and every few seconds."""

    name: str
    kind: PartyKind
    state: str
    reason: str
    generation: int
    fenced: bool
    serving: bool
    lag_seconds: float
    backlog_bytes: int
    at_ns: int
    sequence: int
    """Counts the reports of one instance: order comes from it, not from clocks."""
    volumes: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    """Free; known keys are in docs/control.md. `lease_seconds`: see drengine_agent/fencing/lease.py."""
    instance: str = ""
    """Of the process; `sequence` counts within it."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """An order to one party.

    Attributes:
        id: given again, it is not carried out again.
        verb, arguments: what to do.
        generation: under which it was decided.
        expires_ns: wall clock, when its time is over.
        run: on whose behalf.
        to: the party's identity; "" in orders of older orchestrators.
        nonce: makes each order's bytes its own.
        approver: who approved it, where that is needed; the orchestrator's word.
    """

    id: str
    verb: Verb
    generation: int
    expires_ns: int
    arguments: dict[str, Any] = {}
    run: str = ""
    to: str = ""
    nonce: str = ""
    approver: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command. `done` False is progress: more answers follow."""

    id: str
    done: bool
    ok: bool
    code: str = ""
    """An error id when not ok."""
    message: str = ""
    result: dict[str, Any] = {}
    order: str = ""
    """SHA-256 of the message that was answered, in hexadecimal: an answer to another one is no answer to it."""
