"""Planning: what is wanted, against what is there, gives acts. Pure: nothing is looked at or changed here.

Rules that hold after any plan, carried out whole or cut off anywhere and then made anew:

1. A configuration or unit that somebody changed is neither overwritten nor, unless `purge` is said, removed.
2. What is there already as wanted is not touched: installing twice is installing once.
3. The record names a file before it is written and until after it is removed, so nothing is ever forgotten.
4. The program is replaced whole; what the kernel tracks goes on through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine_agent.install.acts import (
    Act,
    CheckStopped,
    MakeDirectory,
    MakeLink,
    Plan,
    Remove,
    RemoveEmpty,
    Run,
    Untrack,
    WriteFile,
)
from drengine_agent.install.errors import INSTALL_CONFLICT
from drengine_agent.install.places import (
    CACHE,
    COMMAND,
    CONFIG,
    ENABLED,
    IDENTITY,
    RECORD,
    RUNTIME,
    STATE,
    UNIT,
    Present,
    Record,
    digest,
)
from drengine_agent.program import PROGRAM

ENABLED_TARGET = "../drengine-agent.service"
SERVICE = "drengine-agent.service"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An installation as it shall be.

    Attributes:
        version: of the agent.
        source: its name at the target.
        state_directory: where the agent keeps its state.
        program: the one file; None when the agent runs from an environment that somebody else keeps.
        config: its configuration; None leaves what is there.
        unit: the unit's text.
        start: start or restart it, where systemd runs.
        first: acts that come before anything is written: enrolling, and trying the session.
        last: the act that comes after a start: waiting for the session.
    """

    version: str
    source: str
    state_directory: Path
    program: bytes | None
    config: bytes | None
    unit: bytes
    start: bool = True
    first: tuple[Act, ...] = ()
    last: tuple[Act, ...] = ()


def directories_of(wanted: Wanted) -> list[Path]:
    """Directories that an installation needs."""
    needed = [CONFIG.parent, RECORD.parent, COMMAND.parent, UNIT.parent, ENABLED.parent]
    if not wanted.state_directory.is_relative_to(RUNTIME):
        needed.append(wanted.state_directory)
    return needed


def plan_install(wanted: Wanted, present: Present) -> Plan:
    """Install, or bring an installation up to date.

    Raises:
        DrengineError: INSTALL_CONFLICT, somebody changed the configuration that would be replaced.
    """
    before = present.record or Record()
    notes: list[str] = []
    directories = [*_missing_directories(wanted, present)]
    files: list[WriteFile] = []
    if wanted.config is not None:
        files += _file(CONFIG, wanted.config, 0o600, present, before)
    if wanted.program is not None:
        files += _file(PROGRAM, wanted.program, 0o755, present, before, ours=True)
    if present.systemd == "absent":
        notes.append(f"there is no systemd: let your own supervisor run `{COMMAND} run --config {CONFIG}`")
    else:
        files += _file(UNIT, wanted.unit, 0o644, present, before, keep=notes)
    links = [*_links(wanted, present)]
    moved = [*_moved_to_package(wanted, present, before)]
    if not (files or links or moved or present.record is None or wanted.version != before.version):
        return Plan((*wanted.first, *_start(wanted, present, changed=False)), tuple(notes))
    record = Record(
        wanted.version,
        wanted.source,
        str(wanted.state_directory),
        _known(before, files),
        tuple(dict.fromkeys([*before.directories, *(str(each.path) for each in directories)])),
    )
    first = [each for each in directories if RECORD.is_relative_to(each.path)]
    acts: list[Act] = [*wanted.first, *first, WriteFile(RECORD, record.to_bytes(), 0o600, quiet=True)]
    acts += [*(each for each in directories if each not in first), *files, *links, *moved]
    if present.systemd == "installed" and not present.image:
        notes.append("systemd is not running here: the agent starts with the next boot")
    changed = any(each.path in (PROGRAM, UNIT, CONFIG) for each in files)
    if (
        present.systemd != "running"
        and not present.image
        and any(each.path == PROGRAM and each.replaces for each in files)
    ):
        notes.append("an agent that runs goes on with the old program until it is restarted")
    return Plan((*acts, *_start(wanted, present, changed=changed)), tuple(notes))


def plan_uninstall(present: Present, *, purge: bool) -> Plan:
    """Take everything away; the configuration that somebody changed only with `purge`."""
    record = present.record or Record()
    notes: list[str] = []
    acts: list[Act] = []
    if present.systemd == "running" and not present.image and (UNIT in present.files or ENABLED in present.links):
        acts.append(Run(("systemctl", "stop", SERVICE)))
    if record.source and not present.image:
        acts += [CheckStopped(Path(record.state_directory)), Untrack(record.source)]
    if present.links.get(ENABLED) == ENABLED_TARGET:
        acts.append(Remove(ENABLED))
    for path in (UNIT, CONFIG):
        if path not in present.files:
            continue
        if purge or present.files[path] in record.files.get(str(path), ()):
            acts.append(Remove(path))
        else:
            notes.append(f"kept {path}: somebody changed it; --purge removes it, too")
    if present.links.get(COMMAND) == str(PROGRAM):
        acts.append(Remove(COMMAND))
    state = Path(record.state_directory) if record.state_directory else STATE
    if state == STATE and STATE not in present.directories:
        pass
    elif str(state) in record.directories or state == STATE:
        acts.append(Remove(state, whole=True))
    elif not state.is_relative_to(RUNTIME):
        notes.append(f"kept {state}: it was there before; the agent's files in it can be removed")
    if IDENTITY in present.directories:
        acts += [Remove(IDENTITY, whole=True), RemoveEmpty(STATE)] if state != STATE else []
        notes.append(f"the certificate is valid until it expires: drengine ca revoke agent/{record.source}")
    acts += [Remove(RUNTIME, whole=True)] if RUNTIME in present.directories else []
    acts += [Remove(path) for path in (PROGRAM,) if path in present.files]
    acts += [Remove(CACHE, whole=True)] if CACHE in present.directories else []
    if present.systemd == "running" and not present.image:
        acts += [Run(("systemctl", "daemon-reload")), Run(("systemctl", "reset-failed", SERVICE), may_fail=True)]
    made = {CONFIG.parent, RECORD.parent, *map(Path, record.directories)} - {state}
    last = {each for each in made if RECORD.is_relative_to(each)}
    acts += [RemoveEmpty(each) for each in sorted(made - last, reverse=True)]
    acts += [Remove(RECORD)] if RECORD in present.files else []
    acts += [RemoveEmpty(each) for each in sorted(last, reverse=True)]
    return Plan(tuple(acts), tuple(notes))


def _missing_directories(wanted: Wanted, present: Present) -> Iterator[MakeDirectory]:
    needed = {each for directory in directories_of(wanted) for each in (directory, *directory.parents)}
    for path in sorted(needed - present.directories):
        if present.systemd == "absent" and path.is_relative_to("/etc/systemd"):
            continue
        yield MakeDirectory(path, 0o700 if path == wanted.state_directory else 0o755)


def _file(
    path: Path,
    content: bytes,
    mode: int,
    present: Present,
    before: Record,
    *,
    ours: bool = False,
    keep: list[str] | None = None,
) -> Iterator[WriteFile]:
    if path in present.links:
        raise DrengineError(INSTALL_CONFLICT, f"{path} is a link to {present.links[path]}")
    found = present.files.get(path)
    if found == digest(content):
        return
    if found is None or ours or found in before.files.get(str(path), ()):
        yield WriteFile(path, content, mode, replaces=found is not None)
    elif keep is not None:
        keep.append(f"kept {path}: somebody changed it")
    else:
        hint = f"Edit {path} by hand and install without these options, or move it away. Nothing was changed."
        raise DrengineError(INSTALL_CONFLICT, f"{path} is there, with other content than is asked for", hint=hint)


def _links(wanted: Wanted, present: Present) -> Iterator[MakeLink]:
    links = [(ENABLED, ENABLED_TARGET)] if present.systemd != "absent" else []
    if wanted.program is not None:
        links.insert(0, (COMMAND, str(PROGRAM)))
    for path, target in links:
        if path in present.files or present.links.get(path, target) != target:
            raise DrengineError(INSTALL_CONFLICT, f"{path} is there and not this installer's")
        if path not in present.links:
            yield MakeLink(path, target)


def _moved_to_package(wanted: Wanted, present: Present, before: Record) -> Iterator[Remove]:
    """A program that we wrote goes when a package brings it: two of them would run two versions."""
    if wanted.program is None:
        if present.links.get(COMMAND) == str(PROGRAM):
            yield Remove(COMMAND)
        if str(PROGRAM) in before.files and PROGRAM in present.files:
            yield Remove(PROGRAM)


def _known(before: Record, files: Sequence[WriteFile]) -> dict[str, tuple[str, ...]]:
    """Digests by file; those from before stay, for a plan that is cut off before it replaced a file."""
    known = dict(before.files)
    for each in files:
        old = known.get(str(each.path), ())[-1:]
        known[str(each.path)] = tuple(dict.fromkeys([*old, digest(each.content)]))
    return known


def _start(wanted: Wanted, present: Present, *, changed: bool) -> tuple[Act, ...]:
    if present.systemd != "running" or present.image:
        return ()
    if not wanted.start:
        return (Run(("systemctl", "daemon-reload")),) if changed else ()
    verb = "restart" if changed else "start"
    reloaded = (Run(("systemctl", "daemon-reload")),) if changed else ()
    return (*reloaded, Run(("systemctl", verb, SERVICE)), *wanted.last)
