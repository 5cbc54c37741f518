"""The authority as a service: lets hosts join with tokens, renews, and tells who was revoked as soon as it is known.

Other processes change the CA's directory meanwhile (`drengine ca revoke`, `drengine token create`), so it is looked at
again and again; what they revoke reaches whoever waits for it within LOOK_SECONDS.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives import serialization

from drengine.audit import FOLDER, AuditLog, Refusals
from drengine.config import Address
from drengine.enrolment.handout import Handout, stamp_of
from drengine.enrolment.http import Answer, Caller, Request
from drengine.enrolment.messages import (
    CERTIFICATE_HEADER,
    PROOF_HEADER,
    WAIT_SECONDS,
    AgentAnswer,
    CaAnswer,
    EnrolRequest,
    IdentitiesAnswer,
    IssuedAnswer,
    Refusal,
    RenewRequest,
    Updates,
    proof_of,
)
from drengine.enrolment.metrics import AuthorityMetrics
from drengine.enrolment.parties import living_parties
from drengine.enrolment.place import Place
from drengine.enrolment.seen import Seen, read_seen, write_seen
from drengine.identity.authority import CERTIFICATE_FILE, CRL_FILE, CRL_SECONDS, Authority, Issued
from drengine.identity.errors import EnrolmentError
from drengine.identity.index import INDEX_FILE, Index
from drengine.identity.keys import requested_key
from drengine.identity.names import Identity, Role
from drengine.identity.proofs import is_signed
from drengine.identity.verify import NotBelievedError, Trust
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.transport.files import TlsFiles
from drengine.transport.tls import public_context

log = logging.getLogger("drengine.enrolment")

LOOK_SECONDS = 0.5
SEEN_SECONDS = 10.0
"""How often it is written who was heard."""
REFUSED_SECONDS = 1.0
"""Each wrong token is answered so late. Who tries many is turned away by the server's shares."""
RENEW_AT = 2 / 3
OWN_FOLDER = "authority"


class AuthorityService:
    """One CA's directory, answered for. Belongs to one event loop."""

    def __init__(
        self,
        authority: Authority,
        hosts: tuple[str, ...],
        *,
        seconds: float,
        clock: Clock,
        metrics: AuthorityMetrics,
        agent: Path,
    ) -> None:
        """`hosts` are our own names and addresses; certificates that we give are valid for so many seconds; `agent` is
        the file that is handed out to hosts that join.

        Raises:
            DrengineError: CA_REFUSED, CA_UNUSABLE; EnrolmentError.
        """
        self._authority = authority
        self._hosts = hosts
        self._seconds = seconds
        self._clock = clock
        self._metrics = metrics
        self._handout = Handout(agent, authority.folder)
        self._handout.look()
        self._own = Place(authority.folder / OWN_FOLDER)
        self._seen = read_seen(authority.folder)
        self._seen_written_at = 0
        self._changed = asyncio.Event()
        self._audit = AuditLog.open(authority.folder / FOLDER)
        self._refusals = Refusals(self._audit)
        self._sign_revocations()
        self._known = _Known.read(authority)
        self._tls: tuple[ssl.SSLContext, bytes] | None = None
        self._tls = self._own_certificate()

    def close(self) -> None:
        """Write down what is not yet: refusals that were counted, and who was seen."""
        self._refusals.close()
        with contextlib.suppress(OSError):
            write_seen(self._authority.folder, self._seen)

    def tls(self) -> tuple[ssl.SSLContext, bytes]:
        """For the next connection."""
        assert self._tls is not None
        return self._tls

    async def run(self) -> None:
        """Keep up with the directory, until cancelled."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            try:
                await asyncio.to_thread(self._handout.look)
                self._look()
                self._tls = self._own_certificate()
            except (DrengineError, OSError) as error:
                log.error("%s", error)  # noqa: TRY400 - the line says all
            await self._write_seen()

    # ---- the door --------------------------------------------------------------------------------------------

    def caller(self, request: Request) -> Caller | None:
        """See `http.Door`."""
        if CERTIFICATE_HEADER not in request.headers:
            return None
        try:
            der = base64.b64decode(request.headers[CERTIFICATE_HEADER], validate=True)
            proof = base64.b64decode(request.headers.get(PROOF_HEADER, ""), validate=True)
            believed = self._known.trust.believe(der, now=self._now(), purpose=None)
        except (ValueError, NotBelievedError) as error:
            raise EnrolmentError("identity-revoked", str(error)) from error
        if not is_signed(believed.key, proof_of(request.method, request.target, request.body, request.server), proof):
            raise EnrolmentError("identity-revoked", "the request is not signed by the certificate's key")
        serial = f"{believed.serial:016x}"
        entry = next((each for each in self._known.index.entries if each.serial == serial), None)
        if entry is None or entry.revoked_at is not None or believed.identity is None:
            raise EnrolmentError("identity-revoked", f"serial {serial}")
        return Caller(believed.identity, serial)

    async def answer(self, request: Request, caller: Caller | EnrolmentError | None) -> Answer:
        """See `http.Door`."""
        what = request.path.removeprefix("/v1/")
        try:
            if isinstance(caller, EnrolmentError):
                raise caller
            answer = await self._answered(request.method, what, request, caller)
        except DrengineError as error:
            refusal = error if isinstance(error, EnrolmentError) else EnrolmentError("request-refused", error.message)
            seen = {"address": request.peer, "identity": str(caller.identity) if isinstance(caller, Caller) else ""}
            log.warning("refused to %s: %s", what[:40], refusal.message, extra={**seen, "reason": refusal.reason})
            self._metrics.count_request(what, refusal.reason)
            who = seen["identity"] or f"address:{request.peer}"
            self._refusals.note(who=who, did=what[:40], error=refusal.reason, details={"address": request.peer})
            if refusal.reason == "token-unknown":
                await self._clock.sleep(REFUSED_SECONDS)
            return _json(403, Refusal(refusal.reason, error.message))
        self._metrics.count_request(what, "done")
        return answer

    async def _answered(self, method: str, what: str, request: Request, caller: Caller | None) -> Answer:
        match method, what:
            case "GET", "ca":
                return _json(200, CaAnswer(self._known.updates.ca))
            case "GET", "agent":
                return _json(200, self._agent())
            case "GET", "/agent":
                self._agent()
                return Answer(200, b"", file=self._handout.path)
            case "POST", "enrol":
                return await self._enrol(request)
            case ("POST", "renew") | ("GET", "updates") | ("GET", "identities") if caller is None:
                raise EnrolmentError("identity-revoked", "no certificate was shown")
            case "POST", "renew":
                assert caller is not None
                return await self._renew(request, caller)
            case "GET", "updates":
                assert caller is not None
                return await self._tell_news(request, caller)
            case "GET", "identities":
                assert caller is not None
                return await self._tell_identities(request, caller)
        return Answer(404, b"{}")

    def _agent(self) -> AgentAnswer:
        if self._handout.agent is None:
            raise EnrolmentError("agent-missing", str(self._handout.path))
        return self._handout.agent

    async def _enrol(self, request: Request) -> Answer:
        asked = _parsed(request.body, EnrolRequest)
        try:
            secret = bytes.fromhex(asked.secret)
        except ValueError as error:
            raise EnrolmentError("token-malformed") from error
        key = requested_key(asked.csr.encode())
        issued = await asyncio.to_thread(
            self._authority.enrol, asked.id, secret, asked.name, key, seconds=self._seconds
        )
        told = {"address": request.peer, "invitation": asked.id, "serial": issued.entry.serial}
        log.info("enrolled %s", issued.entry.identity, extra=told)
        await self._record(f"invitation:{asked.id}", "secret", "enrol", issued.entry.identity, told)
        return await self._handed_out(issued)

    async def _renew(self, request: Request, caller: Caller) -> Answer:
        key = requested_key(_parsed(request.body, RenewRequest).csr.encode())
        issued = await asyncio.to_thread(
            self._authority.renew, caller.identity, key, serial=caller.serial, seconds=self._seconds
        )
        told = {"address": request.peer, "serial": issued.entry.serial}
        log.info("renewed %s", issued.entry.identity, extra=told)
        await self._record(issued.entry.identity, "certificate", "renew", issued.entry.identity, told)
        self._note(request, caller)
        return await self._handed_out(issued)

    async def _record(self, who: str, proved: str, did: str, on: str, details: Mapping[str, str]) -> None:
        """The certificate is in the index by now; that it is handed out waits for the audit log.

        Raises:
            DrengineError: AUDIT_UNUSABLE.
        """
        await asyncio.to_thread(self._audit.record, who=who, proved=proved, did=did, on=on, details=details)

    async def _handed_out(self, issued: Issued) -> Answer:
        self._look()
        return _json(200, IssuedAnswer(issued.certificate.decode(), self._known.updates.ca, self._known.updates.crl))

    async def _tell_news(self, request: Request, caller: Caller) -> Answer:
        have = _have(request)
        self._note(request, caller, have)
        await self._until_other(have, lambda: self._known.updates.version)
        self.caller(request)  # perhaps it is its own revocation that it waited for
        return _json(200, self._known.updates)

    async def _tell_identities(self, request: Request, caller: Caller) -> Answer:
        if caller.identity.role is not Role.BROKER:
            raise EnrolmentError("identity-revoked", f"only brokers are told who there is, not {caller.identity}")
        await self._until_other(_have(request), lambda: self._identities().version)
        self.caller(request)
        return _json(200, self._identities())

    def _identities(self) -> IdentitiesAnswer:
        return IdentitiesAnswer(self._known.index.site, tuple(living_parties(self._known.index, self._now())))

    async def _until_other(self, have: str, version: Callable[[], str]) -> None:
        """Wait until there is another version than what somebody has, or for WAIT_SECONDS."""
        sleeping = asyncio.ensure_future(self._clock.sleep(WAIT_SECONDS))
        try:
            while have == version() and not sleeping.done():
                waiting = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait({waiting, sleeping}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()
        finally:
            sleeping.cancel()

    # ---- the directory ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Take up what has changed."""
        if self._now() - self._signed_at > CRL_SECONDS / 2:
            self._sign_revocations()
        folder = self._authority.folder
        stamps = tuple(stamp_of(folder / name) for name in (INDEX_FILE, CERTIFICATE_FILE, CRL_FILE))
        if stamps == self._known.stamps:
            return
        before, self._known = self._known, _Known.read(self._authority, stamps)
        self._metrics.show(living_parties(self._known.index, self._now()))
        if self._known.updates != before.updates:
            log.info("there are new CAs or revocations", extra={"crl_number": self._known.index.crl_number})
        self._changed.set()  # wakes whoever waits now, and nobody later
        self._changed.clear()

    def _sign_revocations(self) -> None:
        """At each start, too: whoever revoked last may have been killed before the CRL was written."""
        self._authority.write_crl()
        self._signed_at = self._now()

    def _own_certificate(self) -> tuple[ssl.SSLContext, bytes]:
        """Our context and certificate; a new one when two thirds of its life are over, or it says something else."""
        index, own = self._known.index, self._own
        identity = Identity(index.site, Role.AUTHORITY, OWN_FOLDER)
        found = own.certificate() if own.is_enrolled else None
        entry = next((each for each in index.entries if found and int(each.serial, 16) == found.serial_number), None)
        due = entry is None or self._now() >= entry.begins_at + (entry.ends_at - entry.begins_at) * RENEW_AT
        if due or entry is None or (entry.hosts, entry.issuer) != (self._hosts, index.issuing):
            own.make()
            key = own.pending_key()
            issued = self._authority.issue(identity, key.public_key(), hosts=self._hosts, seconds=self._seconds)
            own.believe(self._known.updates.ca, self._known.updates.crl)
            own.take(issued.certificate, key, Address("localhost", 0))
            found = own.certificate()
        elif self._tls is not None:
            return self._tls
        assert found is not None
        files = TlsFiles(own.files.certificate, own.files.key, own.files.ca)
        self._metrics.certificate_ends_at = found.not_valid_after_utc.timestamp()
        return public_context(files), found.public_bytes(serialization.Encoding.DER)

    def _note(self, request: Request, caller: Caller, have: str = "") -> None:
        self._seen[str(caller.identity)] = Seen(self._now(), request.peer, caller.serial, have)

    async def _write_seen(self) -> None:
        if self._seen and self._now() - self._seen_written_at >= SEEN_SECONDS:
            self._seen_written_at = self._now()
            with contextlib.suppress(OSError):
                await asyncio.to_thread(write_seen, self._authority.folder, dict(self._seen))

    def _now(self) -> int:
        return self._clock.now_ns() // 10**9


@dataclass(frozen=True, slots=True)
class _Known:
    """One reading of the directory."""

    index: Index
    trust: Trust
    updates: Updates
    stamps: tuple[object, ...]

    @staticmethod
    def read(authority: Authority, stamps: tuple[object, ...] = ()) -> _Known:
        ca = authority.certificate
        crl = (authority.folder / CRL_FILE).read_text(encoding="ascii")
        return _Known(authority.index(), Trust.read(ca), Updates(ca.decode(), crl), stamps)


def _have(request: Request) -> str:
    try:
        return request.query.get("have", "")[:64]
    except ValueError:
        return ""


_T = TypeVar("_T", bound=msgspec.Struct)


def _parsed(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnrolmentError("request-refused", str(error)) from error


def _json(status: int, answer: msgspec.Struct) -> Answer:
    return Answer(status, msgspec.json.encode(answer))
