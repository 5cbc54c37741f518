"""What the REST API takes, and how it refuses, as classes: OpenAPI is made from them and from the answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from drengine.failover.runbook.values import Mode
from drengine.people.roles import Role

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
RUN_PATTERN = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,120}$"
TEXT_CHARACTERS_MAX = 1 << 20

RunId = Annotated[str, Path(pattern=RUN_PATTERN, description="A run's id, or `last` for the newest.")]
RunbookName = Annotated[str, Path(pattern=NAME_PATTERN, description="A runbook's name.")]
SourceName = Annotated[str, Path(pattern=NAME_PATTERN, description="A source's name.")]


Despite = Annotated[list[Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]], Field(max_length=100)]

Named = Annotated[list[Annotated[str, Field(pattern=r"^[!-~]{1,300}$")]], Field(max_length=100)]


class Body(BaseModel):
    """Of a request: unknown keys are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StartRun(Body):
    """A run to begin. The runbook is one that is kept: see PUT /runbooks/{name}."""

    mode: Annotated[Mode, Field(strict=False, description="What the run is for.")]
    runbook: str = Field(pattern=NAME_PATTERN)
    point: str = Field("", max_length=300, description="`latest`, a time, a point's id or its label.")
    force: bool = Field(False, description="Failover and migration: go on although a source can't be fenced.")
    hold: bool = Field(False, description="Drill: keep it running until somebody approves its end.")
    discard_divergent: bool = Field(False, description="Way home: do not keep what a source wrote on its own.")
    again: bool = Field(False, description="Failover: also where the runbook's sources run here already.")
    despite: Despite = Field([], description="Checks of the preflight past which it goes on.")
    onto: Named = Field([], description="Way home: hosts that become the homes of sources, HOST or SOURCE=HOST.")
    disks: Named = Field([], description="With `onto`: VOLUME=DISK or SOURCE/VOLUME=DISK, by name or path there.")


class Look(Body):
    """How a runbook is to be looked at."""

    mode: Annotated[Mode, Field(strict=False, description="What the run would be for.")] = Mode.FAILOVER
    point: str = Field("", max_length=300, description="`latest`, a time, a point's id or its label.")
    onto: Named = Field([], description="Way home: hosts that would become the homes of sources.")
    disks: Named = Field([], description="With `onto`: VOLUME=DISK or SOURCE/VOLUME=DISK.")


class Ask(Body):
    """What somebody wants of a run."""

    note: str = Field("", max_length=2000, description="Kept with the request.")


class Approve(Ask):
    """An approval."""

    step: str = Field("", max_length=200, description="The step's id; not needed when only one is waiting.")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="What is approved: the run's `digest`, as it was seen.")


class Resume(Ask):
    """Going on with a run."""

    force: bool = Field(False, description="Go on although a source can't be fenced.")
    done: str = Field("", max_length=200, description="A failed step's id that was done by hand.")
    runbook: str = Field(
        "", pattern=f"^$|{NAME_PATTERN}", description="A changed runbook that is kept; done stays done."
    )
    despite: Despite = Field([], description="Checks of the preflight past which it goes on.")


class Rollback(Ask):
    """Undoing a run."""

    yes: bool = Field(False, description="Go on although the recovered side's writes are lost.")


class RunbookText(Body):
    """A runbook in YAML."""

    text: str = Field(max_length=TEXT_CHARACTERS_MAX)


class SignIn(Body):
    """A person who signs in."""

    name: str = Field(max_length=200)
    password: str = Field(max_length=1024)


class SignInWays(BaseModel):
    """How people sign in: with a password, and where `issuer` is not empty with that OpenID Connect provider."""

    issuer: str
    client: str


class SignedIn(BaseModel):
    """A token: sent as `Authorization: Bearer TOKEN`."""

    token: str
    name: str
    expires_ns: int


class Me(BaseModel):
    """Who asks, and how that was proved."""

    name: str
    proof: str
    roles: list[Role]


class Problem(BaseModel):
    """Why a request failed: the same ids and hints as the commands give."""

    id: str
    message: str
    hint: str
    exit_code: int


class Health(BaseModel):
    """That the orchestrator answers."""

    version: str
    store: str
