"""The registry's face: parties, runbooks, runs and what people ask of them. Synchronous; made for worker threads."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import msgspec
import xxhash
from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from drengine.audit import AuditLog
from drengine.control.foreign import Unreadable, decode
from drengine.control.messages import AgentReport, PartyKind, Presence
from drengine.failover.errors import BAD_APPROVAL
from drengine.failover.registry import leases
from drengine.failover.registry.database import Database, put_once
from drengine.failover.registry.documents import RegistryDocument
from drengine.failover.registry.errors import RUN_ACTIVE, UNKNOWN_RUN
from drengine.failover.registry.tables import (
    current_runbooks,
    holds,
    journal,
    parties,
    requests,
    runbooks,
    runs,
    schedules,
    told,
)
from drengine.failover.registry.tables import leases as leased
from drengine.failover.registry.values import Party, RunCount, StoredRunbook, Unheld
from drengine.failover.run import (
    LAST,
    Event,
    JournalEntry,
    Lease,
    Outcome,
    Request,
    RequestKind,
    RunRecord,
    RunState,
    run_lease,
)
from drengine.failover.runbook.errors import UNKNOWN_RUNBOOK
from drengine.failover.runbook.values import Mode
from drengine.failover.witness import Witness
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.people.roles import Person

BY_CHARACTERS_MAX = 200
NOTE_CHARACTERS_MAX = 2000


class Registry:
    """An open registry. Every method is one transaction, and raises REGISTRY_UNAVAILABLE when there is none."""

    def __init__(self, database: Database, witness: Witness) -> None:
        self._database = database
        self.witness = witness

    @staticmethod
    def open(url: str, *, clock: Clock, audit: AuditLog | None = None) -> Registry:
        """Open it, and make it if there is none.

        Args:
            url: a path (SQLite), ``sqlite:///PATH`` or ``postgresql://USER@HOST/DATABASE``.
            clock: of this machine; leases in PostgreSQL go by the server's.
            audit: where it is recorded what is asked and done; whoever only looks needs none.

        Raises:
            DrengineError: REGISTRY_UNAVAILABLE.
        """
        return Registry(Database(url, clock), Witness(audit))

    def close(self) -> None:
        """Let go of the database, and write what is left for the audit log."""
        self.witness.close()
        self._database.close()

    # Runbooks

    def save_runbook(self, name: str, text: str) -> str:
        """Keep a version of a runbook and make it the current one; gives its version.

        Raises:
            DrengineError: BAD_NAME.
        """
        check_name(name, what="runbook")
        version = xxhash.xxh3_128_hexdigest(text.encode())
        with self._database.writing() as connection:
            # Whoever saves this name takes turns at its current row.
            put_once(connection, current_runbooks, {"name": name, "version": version}, ("name",))
            connection.execute(select(current_runbooks).where(current_runbooks.c.name == name).with_for_update())
            connection.execute(update(current_runbooks).where(current_runbooks.c.name == name).values(version=version))
            row = {"name": name, "version": version, "text": text, "at_ns": self._database.now_ns(connection)}
            put_once(connection, runbooks, row, ("name", "version"))
        return version

    def runbook(self, name: str, version: str | None = None) -> StoredRunbook:
        """The current version of a runbook, or the one asked for.

        Raises:
            DrengineError: UNKNOWN_RUNBOOK.
        """
        chosen = select(runbooks).where(runbooks.c.name == name)
        if version is None:
            chosen = chosen.join(current_runbooks, _is_current())
        else:
            chosen = chosen.where(runbooks.c.version == version)
        with self._database.reading() as connection:
            found = connection.execute(chosen).mappings().one_or_none()
        if found is None:
            which = f"version {version[:40]} of runbook" if version else "runbook"
            raise DrengineError(UNKNOWN_RUNBOOK, f"the registry has no {which} {name[:80]!r}")
        return StoredRunbook(**found)

    def runbooks(self) -> list[StoredRunbook]:
        """The current version of each runbook, by name."""
        chosen = select(runbooks).join(current_runbooks, _is_current()).order_by(runbooks.c.name)
        with self._database.reading() as connection:
            return [StoredRunbook(**row) for row in connection.execute(chosen).mappings()]

    # Runs

    def create_run(self, run: RunRecord, *, owner: str = "", seconds: float = 0.0) -> None:
        """Note a new run; it holds its sources until it is finished.

        With `owner`, who is going to execute it has its lease for so long: if he dies before he begins, others see it.

        Raises:
            DrengineError: RUN_ACTIVE when an unfinished run holds one of them.
        """
        row = {
            "id": run.id,
            "mode": run.mode.value,
            "runbook": run.runbook,
            "version": run.version,
            "sources": _encode(list(run.sources)),
            "started_by": _clean(run.started_by, "who starts the run", BY_CHARACTERS_MAX),
            "created_ns": run.created_ns,
            "options": _encode(run.options),
            "state": run.state.value,
            "outcome": run.outcome.value,
            "reason": run.reason,
            "finished_ns": run.finished_ns,
            "started_proof": run.started_proof,
        }
        try:
            with self._database.writing() as connection:
                connection.execute(insert(runs).values(row))
                if run.state is not RunState.FINISHED:
                    _hold(connection, run.id, run.sources)
                if owner:
                    leases.acquire(connection, run_lease(run.id), owner, seconds, self._database.now_ns(connection))
                self.witness.begun(run)
        except IntegrityError as error:
            raise self._active(run.id, run.sources) from error

    def run(self, id: str) -> RunRecord:
        """One run.

        Raises:
            DrengineError: UNKNOWN_RUN.
        """
        with self._database.reading() as connection:
            return _find(connection, id)

    def named(self, id: str) -> str:
        """A run's id; that of the newest run for LAST.

        Raises:
            DrengineError: UNKNOWN_RUN, there was none yet.
        """
        if id != LAST:
            return id
        newest = self.runs(limit=1)
        if not newest:
            raise DrengineError(UNKNOWN_RUN, "there was no run yet")
        return newest[0].id

    def run_with_past(self, id: str) -> tuple[RunRecord, list[JournalEntry], list[Request]]:
        """A run, its journal and what was asked of it, as of one moment.

        Raises:
            DrengineError: UNKNOWN_RUN.
        """
        with self._database.reading() as connection:
            return _find(connection, id), _entries(connection, id), _requests(connection, id)

    def runs(
        self,
        *,
        mode: Mode | None = None,
        runbook: str | None = None,
        unfinished: bool = False,
        limit: int = 100,
    ) -> list[RunRecord]:
        """Runs, newest first."""
        chosen = select(runs).order_by(runs.c.created_ns.desc(), runs.c.id.desc()).limit(limit)
        if mode is not None:
            chosen = chosen.where(runs.c.mode == mode.value)
        if runbook is not None:
            chosen = chosen.where(runs.c.runbook == runbook)
        if unfinished:
            chosen = chosen.where(runs.c.state != RunState.FINISHED.value)
        with self._database.reading() as connection:
            return [_run_of(row) for row in connection.execute(chosen).mappings()]

    def run_counts(self) -> list[RunCount]:
        """How many runs there are of each runbook, mode, state and outcome."""
        by = (runs.c.runbook, runs.c.mode, runs.c.state, runs.c.outcome)
        with self._database.reading() as connection:
            rows = connection.execute(select(*by, func.count()).group_by(*by).order_by(*by)).all()
        return [RunCount(name, Mode(mode), RunState(state), Outcome(end), n) for name, mode, state, end, n in rows]

    def update_run(
        self,
        id: str,
        *,
        token: int,
        state: RunState | None = None,
        outcome: Outcome | None = None,
        reason: str | None = None,
        finished_ns: int | None = None,
    ) -> None:
        """Change what the list of runs says. FINISHED frees its sources; leaving FINISHED takes them again.

        Raises:
            DrengineError: LEASE_LOST, UNKNOWN_RUN, RUN_ACTIVE.
        """
        given = {"state": state, "outcome": outcome, "reason": reason, "finished_ns": finished_ns}
        changes = {key: getattr(value, "value", value) for key, value in given.items() if value is not None}
        sources: tuple[str, ...] = ()
        try:
            with self._database.writing() as connection:
                leases.check_token(connection, run_lease(id), token)
                sources = _find(connection, id).sources
                _change_run(connection, id, changes)
        except IntegrityError as error:
            raise self._active(id, sources) from error

    def replan_run(self, id: str, *, token: int, version: str, entry: JournalEntry) -> None:
        """Give a run another version of its runbook, and its journal the plan that follows from it: both or neither.

        Raises:
            DrengineError: LEASE_LOST, UNKNOWN_RUN.
        """
        with self._database.writing() as connection:
            leases.check_token(connection, run_lease(id), token)
            _find(connection, id)
            _change_run(connection, id, {"version": version})
            _append(connection, id, entry)

    def leave_run(
        self,
        lease: Lease,
        id: str,
        *,
        seen: int,
        state: RunState,
        outcome: Outcome,
        reason: str,
        finished_ns: int = 0,
        entry: JournalEntry | None = None,
    ) -> bool:
        """End, stop or pause a run and let its lease go, unless somebody asked something behind request `seen`.

        All in one transaction: whoever asks something either is seen by the executor, or finds no executor.

        Args:
            lease: of the executor that leaves.
            id: the run's.
            seen: number of the newest request that the executor knows.
            state, outcome, reason, finished_ns: what the list of runs is to say.
            entry: what the journal is to say.

        Returns:
            False when something was asked: nothing is changed, and the executor has to look again.

        Raises:
            DrengineError: LEASE_LOST, UNKNOWN_RUN.
        """
        changes = {"state": state.value, "outcome": outcome.value, "reason": reason, "finished_ns": finished_ns}
        with self._database.writing() as connection:
            connection.execute(select(runs.c.id).where(runs.c.id == id).with_for_update())  # as `request` does
            before = _find(connection, id)
            if leases.was_released(connection, lease) and (before.state, before.outcome) == (state, outcome):
                return True  # this is the second try, the answer to the first one got lost
            leases.check_token(connection, lease.name, lease.token)
            if _next(connection, requests.c.seq, requests.c.run == id) > seen + 1:
                return False
            if entry is not None:
                _append(connection, id, entry)
            _change_run(connection, id, changes)
            leases.release(connection, lease)
            if entry is not None:
                self.witness.left(id, state, outcome, reason)
        return True

    # Journal

    def append(self, run: str, token: int, entry: JournalEntry) -> int:
        """Append to a run's journal; gives the entry's number, which counts from 1 within the run.

        Raises:
            DrengineError: LEASE_LOST when the token is not the newest of the run's lease; UNKNOWN_RUN.
        """
        try:
            with self._database.writing() as connection:
                leases.check_token(connection, run_lease(run), token)
                return _append(connection, run, entry)
        except IntegrityError as error:
            raise _unknown(run) from error

    def entries(self, run: str, after: int = 0) -> list[JournalEntry]:
        """A run's journal behind a number, in order."""
        with self._database.reading() as connection:
            return _entries(connection, run, after)

    # Leases

    def acquire_lease(self, name: str, owner: str, seconds: float, *, after: int | None = None) -> Lease:
        """Become the holder of a lease, when nobody else is, or his time is over. Every holder's token is higher.

        `after`: only if this is the newest token still.

        Raises:
            DrengineError: LEASE_HELD.
        """
        with self._database.writing() as connection:
            return leases.acquire(connection, name, owner, seconds, self._database.now_ns(connection), after=after)

    def renew_lease(self, lease: Lease, seconds: float) -> Lease:
        """Hold a lease for so long from now; also when its time is over and nobody else has taken it.

        Raises:
            DrengineError: LEASE_LOST.
        """
        with self._database.writing() as connection:
            return leases.renew(connection, lease, seconds, self._database.now_ns(connection))

    def release_lease(self, lease: Lease) -> None:
        """Let a lease go, if it is still held."""
        with self._database.writing() as connection:
            leases.release(connection, lease)

    def hand_over_lease(self, lease: Lease) -> None:
        """End a lease's time, if it is still held, so that another orchestrator takes its run up at once."""
        with self._database.writing() as connection:
            leases.hand_over(connection, lease)

    def unheld_runs(self) -> list[Unheld]:
        """Runs that may have to be taken up: nobody holds their lease, though somebody did once.

        They are unfinished, or somebody asked once that they be rolled back.
        """
        asked = select(requests.c.run).where(requests.c.kind == RequestKind.ROLLBACK.value)
        newest = select(func.max(requests.c.at_ns)).where(requests.c.run == runs.c.id).scalar_subquery()
        chosen = (
            select(
                runs, leased.c.owner, leased.c.token, leased.c.granted_ns, leased.c.expires_ns, newest.label("asked")
            )
            .join(leased, leased.c.name == run_lease("") + runs.c.id)
            .where((runs.c.state != RunState.FINISHED.value) | runs.c.id.in_(asked))
            .order_by(runs.c.created_ns)
        )
        with self._database.reading() as connection:
            now_ns = self._database.now_ns(connection)
            return [
                Unheld(_run_of(row), row["owner"], row["token"], max(0.0, (now_ns - (row["asked"] or now_ns)) / 1e9))
                for row in connection.execute(chosen).mappings()
                if not (row["owner"] and leases.is_alive(row, now_ns))
            ]

    # What people ask

    def request(
        self, run: str, kind: RequestKind, step: str, by: Person, note: str = "", *, digest: str = ""
    ) -> Request:
        """Note what a person asks of a run; whoever executes it reads it. `digest`: of what an approval is about.

        Raises:
            DrengineError: UNKNOWN_RUN; BAD_APPROVAL when nobody asks.
        """
        name, roles = _clean(by.name, "who asks", BY_CHARACTERS_MAX), tuple(sorted(by.roles))
        note = _clean(note, "the note", NOTE_CHARACTERS_MAX, empty=True)
        step = _clean(step, "the step", BY_CHARACTERS_MAX, empty=True)
        with self._database.writing() as connection:
            found = connection.execute(select(runs.c.id).where(runs.c.id == run).with_for_update()).first()
            if found is None:
                raise _unknown(run)
            seq = _next(connection, requests.c.seq, requests.c.run == run)
            at_ns = self._database.now_ns(connection)
            made = Request(run, kind, step, name, note, at_ns, seq, by.proof, roles, digest)
            row = {**asdict(made), "kind": kind.value, "roles": " ".join(roles)}
            connection.execute(insert(requests).values(row))
            self.witness.asked(made)
        return made

    def requests(self, run: str, after: int = 0) -> list[Request]:
        """What people asked of a run, behind a number, in order."""
        with self._database.reading() as connection:
            return _requests(connection, run, after)

    # Parties

    def note_report(self, report: AgentReport) -> None:
        """Keep a party's report, unless a newer one of the same process is kept."""
        row: dict[str, Any] = {"report": msgspec.json.encode(report).decode(), "instance": report.instance}
        row["sequence"] = report.sequence
        with self._database.writing() as connection:
            row["reported_ns"] = self._database.now_ns(connection)
            kept = _party_row(connection, report.kind, report.name)
            if kept["instance"] != report.instance or kept["sequence"] < report.sequence:
                connection.execute(update(parties).where(_is_party(report.kind, report.name)).values(row))

    def note_presence(self, kind: PartyKind, name: str, presence: Presence) -> None:
        """Keep whether a party is there."""
        row = {"online": presence.online, "since_ns": presence.since_ns, "release": presence.version}
        with self._database.writing() as connection:
            _party_row(connection, kind, name)
            connection.execute(update(parties).where(_is_party(kind, name)).values(row))

    def parties(self) -> list[Party]:
        """Everybody who was ever heard of, by kind and name."""
        with self._database.reading() as connection:
            rows = connection.execute(select(parties).order_by(parties.c.kind, parties.c.name)).mappings().all()
        return [
            Party(
                kind=PartyKind(row["kind"]),
                name=row["name"],
                online=row["online"],
                since_ns=row["since_ns"],
                release=row["release"],
                report=_report(row["report"]),
                reported_ns=row["reported_ns"],
            )
            for row in rows
        ]

    # What orchestrators share

    def document(self, name: str) -> RegistryDocument:
        """A document that is kept here."""
        return RegistryDocument(self._database, name)

    def told(self, about: str) -> str:
        """What people were told last about something; empty for nothing."""
        with self._database.reading() as connection:
            return connection.execute(select(told.c.state).where(told.c.about == about)).scalar() or ""

    def note_told(self, about: str, state: str) -> None:
        """Note what people were told."""
        with self._database.writing() as connection:
            row = {"about": about, "state": state, "at_ns": self._database.now_ns(connection)}
            put_once(connection, told, row, ("about",))
            connection.execute(update(told).where(told.c.about == about).values(row))

    def is_held(self, name: str) -> bool:
        """Whether somebody holds a lease now."""
        with self._database.reading() as connection:
            return leases.is_held(connection, name, self._database.now_ns(connection))

    # Schedules

    def claim_due(self, schedule: str, due_ns: int) -> bool:
        """Whether the caller is the first to take on this due moment of a schedule, or a later one."""
        with self._database.writing() as connection:
            put_once(connection, schedules, {"name": schedule, "due_ns": -1}, ("name",))
            taken = connection.execute(
                update(schedules).where(schedules.c.name == schedule, schedules.c.due_ns < due_ns).values(due_ns=due_ns)
            )
            return taken.rowcount == 1

    def _active(self, id: str, sources: Iterable[str]) -> DrengineError:
        """Why a run could not take its sources."""
        with self._database.reading() as connection:
            found = connection.execute(
                select(holds).where(holds.c.source.in_(list(sources)), holds.c.run != id).order_by(holds.c.source)
            ).first()
        if found is None:
            message = f"run {id} exists already, or another held its sources until just now"
            return DrengineError(RUN_ACTIVE, message, hint="Try again.")
        message = f"source {found.source} is held by the unfinished run {found.run}"
        return DrengineError(RUN_ACTIVE, message, hint=RUN_ACTIVE.hint.replace("RUN", found.run))


def _is_current() -> Any:
    return (runbooks.c.name == current_runbooks.c.name) & (runbooks.c.version == current_runbooks.c.version)


def _is_party(kind: PartyKind, name: str) -> Any:
    return (parties.c.kind == kind.value) & (parties.c.name == name)


def _party_row(connection: Connection, kind: PartyKind, name: str) -> RowMapping:
    """The row of a party, locked; made if there is none."""
    check_name(name, what=kind.value)
    put_once(connection, parties, {"kind": kind.value, "name": name}, ("kind", "name"))
    chosen = select(parties).where(_is_party(kind, name)).with_for_update()
    return connection.execute(chosen).mappings().one()


def _hold(connection: Connection, run: str, sources: Iterable[str]) -> None:
    for source in sorted(set(sources)):  # in one order, so that two runs never wait for each other
        connection.execute(insert(holds).values(source=source, run=run))


def _change_run(connection: Connection, id: str, changes: Mapping[str, Any]) -> None:
    """FINISHED frees a run's sources; leaving FINISHED takes them again, or raises IntegrityError."""
    before = _find(connection, id)
    if changes:
        connection.execute(update(runs).where(runs.c.id == id).values(changes))
    state = RunState(changes.get("state", before.state))
    if state is not before.state:
        if state is RunState.FINISHED:
            connection.execute(delete(holds).where(holds.c.run == id))
        elif before.state is RunState.FINISHED:
            _hold(connection, id, before.sources)


def _append(connection: Connection, run: str, entry: JournalEntry) -> int:
    row = {"run": run, "step": entry.step, "event": entry.event.value, "attempt": entry.attempt}
    row |= {"at_ns": entry.at_ns, "payload": _encode(entry.payload)}
    seq = _next(connection, journal.c.seq, journal.c.run == run)
    connection.execute(insert(journal).values(seq=seq, **row))
    return seq


def _entries(connection: Connection, run: str, after: int = 0) -> list[JournalEntry]:
    chosen = select(journal).where(journal.c.run == run, journal.c.seq > after).order_by(journal.c.seq)
    return [
        JournalEntry(
            step=row["step"],
            event=Event(row["event"]),
            attempt=row["attempt"],
            at_ns=row["at_ns"],
            payload=msgspec.json.decode(row["payload"]),
            seq=row["seq"],
        )
        for row in connection.execute(chosen).mappings()
    ]


def _requests(connection: Connection, run: str, after: int = 0) -> list[Request]:
    chosen = select(requests).where(requests.c.run == run, requests.c.seq > after).order_by(requests.c.seq)
    rows = connection.execute(chosen).mappings()
    return [Request(**{**row, "kind": RequestKind(row["kind"]), "roles": tuple(row["roles"].split())}) for row in rows]


def _next(connection: Connection, column: Any, where: Any) -> int:
    return int(connection.execute(select(func.coalesce(func.max(column), 0)).where(where)).scalar_one()) + 1


def _find(connection: Connection, id: str) -> RunRecord:
    found = connection.execute(select(runs).where(runs.c.id == id)).mappings().one_or_none()
    if found is None:
        raise _unknown(id)
    return _run_of(found)


def _unknown(id: str) -> DrengineError:
    return DrengineError(UNKNOWN_RUN, f"there is no run {id[:100]!r}")


def _run_of(row: RowMapping) -> RunRecord:
    return RunRecord(
        id=row["id"],
        mode=Mode(row["mode"]),
        runbook=row["runbook"],
        version=row["version"],
        sources=tuple(msgspec.json.decode(row["sources"])),
        started_by=row["started_by"],
        created_ns=row["created_ns"],
        options=msgspec.json.decode(row["options"]),
        state=RunState(row["state"]),
        outcome=Outcome(row["outcome"]),
        reason=row["reason"],
        finished_ns=row["finished_ns"],
        started_proof=row["started_proof"],
    )


def _encode(value: Any) -> str:
    """JSON. What a program printed may be no valid text: that must not keep its result out of the journal."""
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_readable(msgspec.to_builtins(value, enc_hook=str))).decode()


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(each) for key, each in value.items()}
    return [_readable(each) for each in value] if isinstance(value, list) else value


def _clean(text: str, what: str, characters_max: int, *, empty: bool = False) -> str:
    """A person's words, if they can be kept and shown.

    Raises:
        DrengineError: BAD_APPROVAL.
    """
    text = text.strip()
    if not text and not empty:
        raise DrengineError(BAD_APPROVAL, f"{what} is not named")
    if len(text) > characters_max or any(unicodedata.category(each) in ("Cc", "Cs") for each in text):
        raise DrengineError(BAD_APPROVAL, f"{what}: more than {characters_max} characters, or control characters")
    return text


def _report(text: str | None) -> AgentReport | None:
    """None also for one that an older version kept and that is out of bounds: the party's next takes its place."""
    try:
        return decode(text.encode(), AgentReport) if text else None
    except Unreadable:
        return None
