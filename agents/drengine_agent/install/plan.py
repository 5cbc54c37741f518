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
    AGENT,
    CACHE,
    COMMAND,
    Present,
    Record,
    Service,
    digest,
)
from drengine_agent.program import PROGRAM


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
        service: which of the program's services it is.
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
    service: Service = AGENT


def directories_of(wanted: Wanted) -> list[Path]:
    """Directories that an installation needs."""
    service = wanted.service
    places = (service.config, service.record, COMMAND, service.unit, service.enabled)
    needed = [each.parent for each in places]
    if not wanted.state_directory.is_relative_to(service.runtime):
        needed.append(wanted.state_directory)
    return needed


def plan_install(wanted: Wanted, present: Present) -> Plan:
    """Install, or bring an installation up to date.

    Raises:
        DrengineError: INSTALL_CONFLICT, somebody changed the configuration that would be replaced.
    """
    before, service = present.record or Record(), wanted.service
    notes: list[str] = []
    directories = [*_missing_directories(wanted, present)]
    files: list[WriteFile] = []
    if wanted.config is not None:
        files += _file(service.config, wanted.config, 0o600, present, before)
    if wanted.program is not None:
        files += _file(PROGRAM, wanted.program, 0o755, present, before, ours=True)
    if present.systemd == "absent":
        notes.append(
            f"there is no systemd: let your own supervisor run `{COMMAND} {service.run} --config {service.config}`"
        )
    else:
        files += _file(service.unit, wanted.unit, 0o644, present, before, keep=notes)
    links = [*_links(wanted, present)]
    moved = [*_moved_to_package(wanted, present, before)]
    if not (files or links or moved or present.record is None or wanted.version != before.version):
        return Plan((*wanted.first, *_start(wanted, present, changed=False)), tuple(notes))
    record = Record(
        wanted.version,
        wanted.source,
        str(wanted.state_directory),
        _known(before, files),
        tuple(dict.fromkeys([*before.directories, *_shared(wanted, present), *(str(x.path) for x in directories)])),
    )
    first = [each for each in directories if service.record.is_relative_to(each.path)]
    acts: list[Act] = [*wanted.first, *first, WriteFile(service.record, record.to_bytes(), 0o600, quiet=True)]
    acts += [*(each for each in directories if each not in first), *files, *links, *moved]
    if present.systemd == "installed" and not present.image:
        notes.append(f"systemd is not running here: {service.name} starts with the next boot")
    changed = any(each.path in (PROGRAM, service.unit, service.config) for each in files)
    if (
        present.systemd != "running"
        and not present.image
        and any(each.path == PROGRAM and each.replaces for each in files)
    ):
        notes.append("an agent that runs goes on with the old program until it is restarted")
    if any(each.path == PROGRAM for each in files) and wanted.start and present.systemd == "running":
        acts += [] if present.image else [_restart(each) for each in present.others]
    return Plan((*acts, *_start(wanted, present, changed=changed)), tuple(notes))


def plan_uninstall(present: Present, *, purge: bool) -> Plan:
    """Take everything away; the configuration that somebody changed only with `purge`."""
    record, service = present.record or Record(), present.service
    notes: list[str] = []
    acts: list[Act] = []
    if (
        present.systemd == "running"
        and not present.image
        and (service.unit in present.files or service.enabled in present.links)
    ):
        acts.append(Run(("systemctl", "stop", service.unit.name)))
    if record.source and not present.image:
        acts += [CheckStopped(Path(record.state_directory)), Untrack(record.source)]
    if present.links.get(service.enabled) == _enabled_target(service):
        acts.append(Remove(service.enabled))
    for path in (service.unit, service.config):
        if path not in present.files:
            continue
        if purge or present.files[path] in record.files.get(str(path), ()):
            acts.append(Remove(path))
        else:
            notes.append(f"kept {path}: somebody changed it; --purge removes it, too")
    state = Path(record.state_directory) if record.state_directory else service.state
    acts += _remove_state(present, record, state, notes)
    acts += _remove_program(present, notes)
    if present.systemd == "running" and not present.image:
        reset = Run(("systemctl", "reset-failed", service.unit.name), may_fail=True)
        acts += [Run(("systemctl", "daemon-reload")), reset]
    made = {service.config.parent, service.record.parent, *map(Path, record.directories)} - {state}
    last = {each for each in made if service.record.is_relative_to(each)}
    acts += [RemoveEmpty(each) for each in sorted(made - last, reverse=True)]
    acts += [Remove(service.record)] if service.record in present.files else []
    acts += [RemoveEmpty(each) for each in sorted(last, reverse=True)]
    return Plan(tuple(acts), tuple(notes))


def _remove_state(present: Present, record: Record, state: Path, notes: list[str]) -> list[Act]:
    """State, certificate, and what lies in memory."""
    service = present.service
    acts: list[Act] = []
    if state == service.state and state not in present.directories:
        pass
    elif str(state) in record.directories or state == service.state:
        acts.append(Remove(state, whole=True))
    elif not state.is_relative_to(service.runtime):
        notes.append(f"kept {state}: it was there before; the files of {service.name} in it can be removed")
    if service.identity in present.directories:
        acts += [Remove(service.identity, whole=True), RemoveEmpty(service.state)] if state != service.state else []
        who = f"agent/{record.source}" if record.source else "host/NAME"
        notes.append(f"the certificate is valid until it expires: drengine ca revoke {who}")
    return [*acts, Remove(service.runtime, whole=True)] if service.runtime in present.directories else acts


def _remove_program(present: Present, notes: list[str]) -> Iterator[Act]:
    """The program, unless another service of it stays."""
    if present.others:
        notes.append(f"kept {PROGRAM}: {present.others[0].name} runs it")
        return
    if present.links.get(COMMAND) == str(PROGRAM):
        yield Remove(COMMAND)
    if PROGRAM in present.files:
        yield Remove(PROGRAM)
    if CACHE in present.directories:
        yield Remove(CACHE, whole=True)


def _shared(wanted: Wanted, present: Present) -> list[str]:
    """Directories that another service's installation made, and this one needs: whoever goes last removes them."""
    needed = _needed(wanted)
    return [each for each in present.shared if Path(each) in needed]


def _needed(wanted: Wanted) -> set[Path]:
    return {each for directory in directories_of(wanted) for each in (directory, *directory.parents)}


def _missing_directories(wanted: Wanted, present: Present) -> Iterator[MakeDirectory]:
    for path in sorted(_needed(wanted) - present.directories):
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
    service = wanted.service
    links = [(service.enabled, _enabled_target(service))] if present.systemd != "absent" else []
    if wanted.program is not None:
        links.insert(0, (COMMAND, str(PROGRAM)))
    for path, target in links:
        if path in present.files or present.links.get(path, target) != target:
            raise DrengineError(INSTALL_CONFLICT, f"{path} is there and not this installer's")
        if path not in present.links:
            yield MakeLink(path, target)


def _moved_to_package(wanted: Wanted, present: Present, before: Record) -> Iterator[Remove]:
    """A program that we wrote goes when a package brings it: two of them would run two versions."""
    if wanted.program is None and not present.others:
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
    return (*reloaded, Run(("systemctl", verb, wanted.service.unit.name)), *wanted.last)


def _restart(service: Service) -> Run:
    """Another service of a program that was replaced: it would go on with the old one."""
    return Run(("systemctl", "try-restart", service.unit.name))


def _enabled_target(service: Service) -> str:
    return f"../{service.unit.name}"
