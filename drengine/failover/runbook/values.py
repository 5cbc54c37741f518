"""A runbook as frozen values. The published JSON Schema is generated from these classes (`drengine runbook schema`)."""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class OnFailure(enum.StrEnum):
    """What a failed step means for the run."""

    STOP = "stop"
    """Stop here and leave everything as it is, for a person to decide."""
    CONTINUE = "continue"
    """Note it and go on."""
    ROLLBACK = "rollback"
    """Undo what this run did, in reverse order."""


class Mode(enum.StrEnum):
    """What a run is for."""

    DRILL = "drill"
    FAILOVER = "failover"
    MIGRATION = "migration"
    """A planned failover: quiesce the source first, lose nothing."""
    REPROTECT = "reprotect"
    """Reverse replication without the switch: the source's disks follow the recovered side."""
    FAILBACK = "failback"


class HttpCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Passes when the answer fits."""

    url: str
    status: int = 200
    contains: str = ""
    headers: dict[str, str] = {}


class TcpCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Passes when something accepts connections."""

    host: str
    port: int


class SqlCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Passes when the query's first column of the first row equals `expect` (as text), or any row comes when empty."""

    dsn: str
    query: str
    expect: str = ""


class DnsChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """RFC 2136 update of one record set."""

    server: str
    zone: str
    name: str
    type: str = "A"
    ttl: int = 60
    values: list[str]
    key_file: str = ""
    """TSIG key, as BIND writes it."""


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Wait until a person says yes (`drengine approve`)."""

    prompt: str
    by: list[str] = []
    """Names that may approve; empty: anybody who gives a name."""


class Notification(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tell somebody: a webhook that gets the run as JSON, or a command that gets it on standard input."""

    url: str = ""
    command: list[str] = []


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One step before or after a wave: exactly one of the actions is given."""

    name: str = ""
    approval: Approval | None = None
    wait: str | None = None
    command: list[str] | None = None
    http: HttpCheck | None = None
    tcp: TcpCheck | None = None
    sql: SqlCheck | None = None
    dns: DnsChange | None = None
    notify: Notification | None = None
    modes: tuple[Mode, ...] = (Mode.DRILL, Mode.FAILOVER, Mode.MIGRATION)
    """In which modes it is run; steps of the way home name `failback`."""
    timeout: str = "30s"
    retries: int = 0
    every: str = "1s"
    """Between tries of checks and retries."""
    critical: bool = True
    on_failure: OnFailure = OnFailure.STOP


class Fence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a source that does not answer is kept from serving: power, hypervisor or switch. Exit 0 means: it is off."""

    command: list[str]
    timeout: str = "30s"
    retries: int = 1


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a source's workload is started from the promoted disks.

    `settings` belong to the driver, which checks them; `drill` holds those that differ in a drill (isolation).
    """

    driver: str
    host: str = ""
    settings: dict[str, Any] = {}
    drill: dict[str, Any] = {}
    timeout: str = "5m"
    retries: int = 0
    hydrate: bool = False


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One protected server in the runbook.

    `stop`/`start`: commands run for the planned switches at the source side (migration and failback).
    """

    launch: Launch
    fence: Fence | None = None
    stop: list[str] = []
    start: list[str] = []
    point: str = "latest"


class Wave(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Servers that start together; a wave begins when those it comes `after` are through (default: the one before)."""

    name: str
    sources: list[str] = []
    after: list[str] | None = None
    before_steps: list[Step] = msgspec.field(name="before", default_factory=list)
    after_steps: list[Step] = msgspec.field(name="then", default_factory=list)


class Objectives(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is promised: the longest data loss and the longest outage."""

    rpo: str = "5s"
    rto: str = "5m"


class Runbook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole runbook."""

    version: int
    name: str
    description: str = ""
    objectives: Objectives = Objectives()
    sources: dict[str, Source]
    waves: list[Wave]
    schedule: str = ""
    """Drills by themselves: a cron expression of five fields, in UTC; empty: none."""
