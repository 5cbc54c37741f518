"""Does a runbook that has the right shape make sense? Names, durations, commands, references, waves, steps."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sized
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from croniter import croniter

from drengine.config import parse_duration
from drengine.failover.drivers.driver import LaunchDriver
from drengine.failover.runbook.document import Node
from drengine.failover.runbook.findings import Findings, Place, did_you_mean, shown
from drengine.failover.runbook.fit import node_at, path_text
from drengine.failover.runbook.values import (
    Approval,
    DnsChange,
    HttpCheck,
    Launch,
    Mode,
    Notification,
    Runbook,
    Source,
    Step,
    Wave,
)
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.model.points import PointSelector

ACTIONS = ("approval", "wait", "command", "http", "tcp", "sql", "dns", "notify")
CHECKS = ("command", "http", "tcp", "sql")
RETRIES_MAX = 1000
ITEMS_MAX = 1000
"""Sources, waves, steps of one wave."""
CYCLE_SHOWN_MAX = 8
SECONDS_MAX = 30 * 86400.0
_REFERENCE = re.compile(r"\$\{([^}]{0,200})\}")
_DETAIL = re.compile(r"([a-z0-9][a-z0-9._-]*)\.([a-z0-9_]+)", re.ASCII)
_SHELL = re.compile(r"[\s|&;<>`]")
_CRON = re.compile(r"[0-9A-Za-z*/,-]{1,40}", re.ASCII)
_DNS_TYPE = re.compile(r"[A-Z][A-Z0-9]{0,9}", re.ASCII)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)

Path = tuple[str | int, ...]


def check(
    book: Runbook,
    root: Node,
    findings: Findings,
    *,
    sources: Collection[str] | None = None,
    drivers: Mapping[str, LaunchDriver] | None = None,
) -> None:
    """Note what makes no sense.

    Args:
        root: the tree that the runbook was made from, for the places.
        sources: names of the sources that are registered; None: not known, not checked.
        drivers: the launch drivers that are installed; None: neither they nor their settings are checked.
    """
    _Checker(book, root, findings, sources, drivers).check()


class _Checker:
    def __init__(
        self,
        book: Runbook,
        root: Node,
        findings: Findings,
        sources: Collection[str] | None,
        drivers: Mapping[str, LaunchDriver] | None,
    ) -> None:
        self._book = book
        self._root = root
        self._findings = findings
        self._sources = sources
        self._drivers = drivers

    def check(self) -> None:
        """See the module."""
        book = self._book
        if book.version != 1:
            self._error("bad-value", ("version",), f"version {book.version} of the format is not known", "Write 1.")
        self._name(book.name, ("name",), "runbook")
        self._seconds(book.objectives.rpo, ("objectives", "rpo"), positive=True)
        self._seconds(book.objectives.rto, ("objectives", "rto"), positive=True)
        self._schedule()
        if not book.sources:
            self._error("bad-value", ("sources",), "it has no sources", "Name at least one.")
        self._most(book.sources, ("sources",))
        for name, source in book.sources.items():
            self._source(name, source)
        self._waves()
        self._warn()

    def _source(self, name: str, source: Source) -> None:
        at: Path = ("sources", name)
        self._name(name, at, "source")
        if self._sources is not None and name not in self._sources:
            hint = did_you_mean(name, self._sources)
            told = f"no source {shown(name)} replicates here yet: a run would be refused until it does"
            self._warning("not-registered", at, told, hint)
        launch = source.launch
        self._driver(launch, (*at, "launch"))
        if launch.host:
            self._name(launch.host, (*at, "launch", "host"), "recovery host")
        self._seconds(launch.timeout, (*at, "launch", "timeout"), positive=True)
        self._count(launch.retries, (*at, "launch", "retries"), RETRIES_MAX)
        for key, settings in (("settings", launch.settings), ("drill", launch.drill)):
            self._settings(settings, (*at, "launch", key))
        if source.fence is not None:
            self._argv(source.fence.command, (*at, "fence", "command"))
            self._seconds(source.fence.timeout, (*at, "fence", "timeout"), positive=True)
            self._count(source.fence.retries, (*at, "fence", "retries"), RETRIES_MAX)
        for key, argv in (("stop", source.stop), ("start", source.start)):
            if argv:
                self._argv(argv, (*at, key))
        self._point(source.point, (*at, "point"))

    def _point(self, text: str, at: Path) -> None:
        try:
            PointSelector.parse(text)
        except DrengineError as error:
            hint = "Write latest, a time such as 2026-11-23T10:00:00Z, an id, or its label."
            self._error(error.kind.id, at, error.message, hint)

    def _driver(self, launch: Launch, at: Path) -> None:
        if self._drivers is None:
            return
        if launch.driver not in self._drivers:
            hint = did_you_mean(launch.driver, self._drivers)
            self._error("unknown-driver", (*at, "driver"), f"there is no launch driver {shown(launch.driver)}", hint)
            return
        for key, settings in (("settings", launch.settings), ("drill", {**launch.settings, **launch.drill})):
            try:
                self._drivers[launch.driver].check_settings(settings)
            except DrengineError as error:
                self._error(error.kind.id, (*at, key), error.message, error.hint)
                return

    def _settings(self, value: Any, at: Path) -> None:
        """A driver's own; what leads out of its directory is refused all the same."""
        if isinstance(value, str):
            self._no_way_up(value, at)
        elif isinstance(value, dict):
            for key, each in value.items():
                self._settings(each, (*at, key))
        elif isinstance(value, list):
            for number, each in enumerate(value):
                self._settings(each, (*at, number))

    def _waves(self) -> None:
        waves, used, before = self._book.waves, dict[str, str](), set[str]()
        names = {wave.name for wave in waves}
        if not waves:
            self._error("bad-value", ("waves",), "it has no waves", "Name at least one, with its sources.")
        self._most(waves, ("waves",))
        for number, wave in enumerate(waves):
            at: Path = ("waves", number)
            self._name(wave.name, (*at, "name"), "wave")
            if wave.name in before:
                self._error("duplicate-name", (*at, "name"), f"there is a wave {shown(wave.name)} before", "Rename it.")
            before.add(wave.name)
            for place, source in enumerate(wave.sources):
                here: Path = (*at, "sources", place)
                if source not in self._book.sources:
                    hint = did_you_mean(source, self._book.sources)
                    self._error("unknown-source", here, f"the runbook has no source {shown(source)}", hint)
                elif source in used:
                    message = f"{shown(source)} is in wave {shown(used[source])} already"
                    self._error("duplicate-name", here, message, "A source starts once.")
                used.setdefault(source, wave.name)
            for place, other in enumerate(wave.after or []):
                if other not in names:
                    hint = did_you_mean(other, names - {wave.name})
                    self._error("unknown-wave", (*at, "after", place), f"there is no wave {shown(other)}", hint)
            for key, steps in (("before", wave.before_steps), ("then", wave.after_steps)):
                self._most(steps, (*at, key))
                for place, step in enumerate(steps):
                    self._step(step, (*at, key, place))
        for source in self._book.sources:
            if source not in used:
                hint = "Add it to a wave, or remove it: it would never be started."
                self._error("unused-source", ("sources", source), f"{shown(source)} is in no wave", hint)
        if len(names) == len(waves):
            self._cycles()

    def _cycles(self) -> None:
        cycle = find_cycle(self._book.waves)
        if cycle:
            number = next(at for at, wave in enumerate(self._book.waves) if wave.name == cycle[0])
            row = [*cycle, cycle[0]]
            row = row if len(row) <= CYCLE_SHOWN_MAX else [*row[: CYCLE_SHOWN_MAX - 1], "...", row[-1]]
            told = " after ".join(row)
            hint = "None of them could ever begin: remove one `after`."
            self._error("wave-cycle", ("waves", number, "after"), f"waves wait for each other: {told}", hint)

    def _step(self, step: Step, at: Path) -> None:
        given = [action for action in ACTIONS if getattr(step, action) is not None]
        if len(given) != 1:
            told = f"it has {' and '.join(given)}" if given else "it has no action"
            hint = "Give each step exactly one of " + ", ".join(ACTIONS) + "."
            self._error("one-action", at, told, hint)
        self._seconds(step.timeout, (*at, "timeout"), positive=True)
        self._seconds(step.every, (*at, "every"), positive=True)
        self._count(step.retries, (*at, "retries"), RETRIES_MAX)
        if not step.modes:
            self._error("bad-value", (*at, "modes"), "it is run in no mode", "Remove `modes`, or name one.")
        if step.wait is not None:
            self._seconds(step.wait, (*at, "wait"))
        if step.command is not None:
            self._argv(step.command, (*at, "command"))
            self._references(step.command, (*at, "command"))
        if step.approval is not None:
            self._approval(step.approval, (*at, "approval"))
        if step.http is not None:
            self._http(step.http, (*at, "http"))
        if step.tcp is not None:
            self._filled(step.tcp.host, (*at, "tcp", "host"))
            if not 1 <= step.tcp.port <= 65535:
                self._error("bad-value", (*at, "tcp", "port"), f"{step.tcp.port} is no port", "1 to 65535 are.")
        if step.sql is not None:
            self._filled(step.sql.query, (*at, "sql", "query"))
            self._filled(step.sql.dsn, (*at, "sql", "dsn"))
            if not step.sql.dsn.startswith(("postgresql://", "sqlite:///")):
                hint = "Write postgresql://USER@HOST/DATABASE or sqlite:///PATH."
                self._error("bad-value", (*at, "sql", "dsn"), "it names no database that can be asked", hint)
        if step.dns is not None:
            self._dns(step.dns, (*at, "dns"))
        if step.notify is not None:
            self._notification(step.notify, (*at, "notify"))

    def _approval(self, approval: Approval, at: Path) -> None:
        self._filled(approval.prompt, (*at, "prompt"))
        for number, name in enumerate(approval.by):
            if not name.strip() or name != name.strip():
                hint = "Write a name, or remove `by`: then anybody may who gives a name."
                self._error("bad-value", (*at, "by", number), "nobody can't approve", hint)

    def _http(self, http: HttpCheck, at: Path) -> None:
        self._url(http.url, (*at, "url"))
        if not 100 <= http.status <= 599:
            self._error("bad-value", (*at, "status"), f"{http.status} is no HTTP status", "100 to 599 are.")
        for name, value in http.headers.items():
            if not _HEADER.fullmatch(name) or "\n" in value or "\r" in value:
                self._error("bad-value", (*at, "headers", name), "it can't be sent as a header", "NAME: one line.")
        self._references([http.contains, *http.headers.values()], at)

    def _dns(self, dns: DnsChange, at: Path) -> None:
        for key in ("server", "zone", "name"):
            self._filled(getattr(dns, key), (*at, key))
        if not _DNS_TYPE.fullmatch(dns.type):
            self._error("bad-value", (*at, "type"), f"{shown(dns.type)} is no record type", "A, AAAA, CNAME, ...")
        self._count(dns.ttl, (*at, "ttl"), 2**31 - 1)
        if not dns.values:
            self._error("bad-value", (*at, "values"), "there is no value", "Name at least one address.")
        self._references(dns.values, (*at, "values"))
        self._no_way_up(dns.key_file, (*at, "key_file"))

    def _notification(self, notify: Notification, at: Path) -> None:
        if bool(notify.url) == bool(notify.command):
            self._error("one-action", at, "it needs either url or command", "Give one of them.")
        if notify.url:
            self._url(notify.url, (*at, "url"))
        if notify.command:
            self._argv(notify.command, (*at, "command"))

    def _name(self, text: str, at: Path, what: str) -> None:
        try:
            check_name(text, what=what)
        except DrengineError as error:
            self._error(error.kind.id, at, error.message, error.kind.hint, of_key=what == "source")

    def _seconds(self, text: str, at: Path, *, positive: bool = False) -> None:
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            self._error("bad-duration", at, str(error).partition(";")[0], "Write for example 500ms, 5s, 10m, 1h or 7d.")
            return
        if seconds > SECONDS_MAX or (positive and seconds <= 0):
            told = "more than 30 days" if seconds > SECONDS_MAX else "no time at all"
            self._error("bad-duration", at, f"{shown(text)} is {told}", "Write for example 30s or 10m.")

    def _count(self, number: int, at: Path, most: int) -> None:
        if not 0 <= number <= most:
            self._error("bad-value", at, f"{number} is out of range", f"0 to {most} are possible.")

    def _most(self, items: Sized, at: Path) -> None:
        if len(items) > ITEMS_MAX:
            self._error("too-large", at, f"{len(items)} are too many", f"{ITEMS_MAX} are possible: split the runbook.")

    def _argv(self, argv: list[str], at: Path) -> None:
        if not argv or not argv[0].strip():
            self._error("bad-command", at, "it names no program", "Write [PROGRAM, ARGUMENT, ...].")
            return
        if _SHELL.search(argv[0]):
            hint = "No shell is used: write the program and each argument as items of their own."
            self._error("bad-command", (*at, 0), f"{shown(argv[0])} is the name of no program", hint)
        self._no_way_up(argv[0], (*at, 0))

    def _url(self, url: str, at: Path) -> None:
        self._filled(url, at)
        try:
            parts = urlsplit(_REFERENCE.sub("reference", url))
            fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            fits = False
        if not fits or re.search(r"\s", url):
            self._error(
                "bad-value", at, f"{shown(url)} is no web address", "Write for example http://10.0.0.5:8080/health."
            )

    def _filled(self, text: str, at: Path) -> None:
        if not text.strip():
            self._error("bad-value", at, "it is empty", "Give it a value.")
        self._references([text], at)

    def _references(self, texts: Iterable[str], at: Path) -> None:
        """``${SOURCE.KEY}`` names a source that the runbook launches."""
        for text in texts:
            for found in _REFERENCE.finditer(text):
                detail = _DETAIL.fullmatch(found[1])
                source = found[1].rpartition(".")[0]
                if detail is None or source not in self._book.sources:
                    known = (f"{name}.address" for name in self._book.sources)
                    hint = f"{did_you_mean(found[1], known)} Write ${{SOURCE.KEY}}, KEY as the driver tells it."
                    self._error("bad-reference", at, f"{shown(found[0])} refers to no source", hint)

    def _no_way_up(self, text: str, at: Path) -> None:
        if ".." in PurePosixPath(text).parts or "\0" in text:
            self._error("way-up", at, f"{shown(text)} leads out of its directory", "Write the path without '..'.")

    def _schedule(self) -> None:
        text = self._book.schedule
        if not text:
            return
        fields = text.split()
        fits = len(fields) == 5 and all(_CRON.fullmatch(each) for each in fields)
        if not fits or not croniter.is_valid(" ".join(fields)):
            hint = "Five fields in UTC: minute hour day month weekday, for example '30 3 * * sun'."
            self._error("bad-schedule", ("schedule",), f"{shown(text)} is no schedule", hint)

    def _warn(self) -> None:
        """What may be meant so, but is worth a thought."""
        for name, source in self._book.sources.items():
            if source.fence is None:
                self._warning(
                    "no-fence",
                    ("sources", name),
                    f"{shown(name)} has no fence command: a failover stops if its agent does not answer",
                    "Give one that switches it off: power, hypervisor or switch.",
                )
        steps = [step for wave in self._book.waves for step in (*wave.before_steps, *wave.after_steps)]
        checks = [step for step in steps if any(getattr(step, action) is not None for action in CHECKS)]
        if not any(Mode.DRILL in step.modes for step in checks):
            self._warning(
                "no-check",
                ("waves",),
                "nothing is checked in a drill: it would prove only that something was started",
                "Add a step with http, tcp, sql or command under `then`.",
            )

    def _error(self, id: str, at: Path, message: str, hint: str, *, of_key: bool = False) -> None:
        self._findings.add(id, self._place(at, of_key), path_text(at), message, hint)

    def _warning(self, id: str, at: Path, message: str, hint: str) -> None:
        self._findings.add(id, self._place(at, False), path_text(at), message, hint, warning=True)

    def _place(self, at: Path, of_key: bool) -> Place:
        parent, last = node_at(self._root, at[:-1]), at[-1] if at else ""
        if (
            isinstance(last, str)
            and last in parent.keys
            and (of_key or (parent.entries and parent.entries[last].entries))
        ):
            return parent.keys[last]  # a mapping begins in the line after its key
        return node_at(self._root, at).place


def find_cycle(waves: list[Wave]) -> list[str]:
    """Names of waves that wait for each other, in a row; empty when there are none."""
    before = [[], *([wave.name] for wave in waves[:-1])]
    names = {wave.name for wave in waves}
    needs = {
        wave.name: names.intersection(previous if wave.after is None else wave.after)
        for wave, previous in zip(waves, before, strict=False)
    }
    needed_by: dict[str, list[str]] = {name: [] for name in needs}
    for name, others in needs.items():
        for other in others:
            needed_by[other].append(name)
    ready = [name for name, others in needs.items() if not others]
    while ready:
        through = ready.pop()
        for name in needed_by[through]:
            needs[name].discard(through)
            if not needs[name]:
                ready.append(name)
    stuck = next((name for name, others in needs.items() if others), None)
    if stuck is None:
        return []
    way: dict[str, None] = {}
    while stuck not in way:
        way[stuck] = None
        stuck = min(needs[stuck])
    row = list(way)
    return row[row.index(stuck) :]
