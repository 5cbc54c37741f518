"""Asking the authority: first by a token, whose pin says which CA it must have; then with the certificate that we got.

Nothing secret is sent before the authority has proved who it is.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import ssl
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from drengine.config import Address
from drengine.durable import replace_durably
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
from drengine.enrolment.place import Place, request_for
from drengine.identity.errors import REASONS, EnrolmentError
from drengine.identity.names import Identity, Role, identity_among
from drengine.identity.proofs import sign
from drengine.identity.tokens import Invitation
from drengine.identity.verify import NotBelievedError, Trust
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.transport.errors import TIMED_OUT, UNREACHABLE, TransportError, broken
from drengine.transport.x509 import parse_certificate

ANSWER_BYTES_MAX = 8 << 20
HEAD_BYTES_MAX = 4096
ASK_SECONDS = 20.0
FILE_SECONDS = 600.0
_T = TypeVar("_T", bound=msgspec.Struct)


async def enrol(invitation: Invitation, name: str, place: Place, *, clock: Clock | None = None) -> Identity:
    """Get a certificate of this name by a token, into a folder; its key is made here and goes nowhere.

    Asked again after it was interrupted, it goes on with the same key, and the token is not used up by that.

    Raises:
        EnrolmentError: with the reason. TransportError: the authority can't be reached.
    """
    now = (clock or SystemClock()).now_ns() / 1e9
    async with place.changing():
        key = place.pending_key()
        ca = await _pinned_ca(invitation)
        body = EnrolRequest(invitation.id, invitation.secret.hex(), name, request_for(key))
        trusting = _context(ca.public_bytes(serialization.Encoding.PEM).decode())
        answer = await _ask(invitation.authority, trusting, "POST", "/v1/enrol", IssuedAnswer, body)
        identity = _require_ours(answer, key.public_key(), now)
        if identity.name != name:
            raise EnrolmentError("answer-malformed", f"asked for {name}, got {identity}")
        place.believe(answer.ca, answer.crl)
        place.take(answer.certificate.encode(), key, invitation.authority)
        return identity


async def reach_authority(invitation: Invitation) -> None:
    """Ask the authority that a token names for its CA, and compare it with the token's pin; nothing secret is sent.

    Raises:
        EnrolmentError: pin-mismatch, answer-malformed. TransportError: it can't be reached.
    """
    await _pinned_ca(invitation)


async def renew(place: Place, *, clock: Clock) -> None:
    """Replace the certificate of a folder by a fresh one with a new key.

    Raises:
        EnrolmentError: with the reason. TransportError: the authority can't be reached.
    """
    async with place.changing():
        key = place.pending_key()
        answer = await _ask_as(place, "POST", "/v1/renew", IssuedAnswer, RenewRequest(request_for(key)))
        identity = _require_ours(answer, key.public_key(), clock.now_ns() / 1e9)
        present = _identity_of(place.certificate())
        if identity != present:
            raise EnrolmentError("answer-malformed", f"we are {present}, got {identity}")
        place.believe(answer.ca, answer.crl)
        place.take(answer.certificate.encode(), key, _authority_of(place))


async def updates(place: Place) -> Updates:
    """Wait until there is something else than what lies in the folder, or for WAIT_SECONDS.

    Raises:
        EnrolmentError: with the reason. TransportError: the authority can't be reached.
    """
    target = f"/v1/updates?have={place.version}"
    return await _ask_as(place, "GET", target, Updates, seconds=ASK_SECONDS + WAIT_SECONDS)


async def identities(place: Place, have: str = "") -> IdentitiesAnswer:
    """Who there is, as soon as it is something else than of this version; brokers are told.

    Raises:
        EnrolmentError: with the reason. TransportError: the authority can't be reached.
    """
    target = f"/v1/identities?have={have}"
    return await _ask_as(place, "GET", target, IdentitiesAnswer, seconds=ASK_SECONDS + WAIT_SECONDS)


async def agent_offered(place: Place) -> AgentAnswer:
    """Which one-file agent the authority of an enrolled party hands out.

    Raises:
        EnrolmentError: with the reason. TransportError: the authority can't be reached.
    """
    return await _ask(_authority_of(place), _context(place.authorities()), "GET", "/v1/agent", AgentAnswer)


async def fetch_agent(place: Place, wanted: AgentAnswer, to: Path) -> None:
    """Fetch that agent from the authority of an enrolled party into a file, which is complete and executable or absent.

    Raises:
        EnrolmentError: agent-other, agent-missing. TransportError: the authority can't be reached, or too slow.
        OSError: the file can't be written.
    """
    context = _context(place.authorities())
    content = await _exchange(
        _authority_of(place),
        context,
        "GET",
        "/agent",
        bytes_max=wanted.size_bytes + HEAD_BYTES_MAX,
        seconds=FILE_SECONDS,
    )
    body = _body(content, f"the authority at {_authority_of(place)}")
    if sha256(body).hexdigest() != wanted.sha256:
        raise EnrolmentError("agent-other", f"wanted {wanted.sha256}, got {sha256(body).hexdigest()}")
    await asyncio.to_thread(replace_durably, to, body, mode=0o755)


async def _pinned_ca(invitation: Invitation) -> x509.Certificate:
    """The CA that the token names, asked of whoever answers: it is public, and judged by its fingerprint."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    anybody.minimum_version = ssl.TLSVersion.TLSv1_3
    answer = await _ask(invitation.authority, anybody, "GET", "/v1/ca", CaAnswer, trusted=False)
    try:
        offered = x509.load_pem_x509_certificates(answer.ca.encode())
    except ValueError as error:
        raise EnrolmentError("answer-malformed", str(error)) from error
    for each in offered:
        if each.fingerprint(hashes.SHA256()) == invitation.pin:
            return each
    seen = ", ".join(each.fingerprint(hashes.SHA256()).hex() for each in offered[:2])
    raise EnrolmentError("pin-mismatch", f"wanted {invitation.pin.hex()}, seen {seen}")


async def _ask_as(
    place: Place,
    method: str,
    target: str,
    kind: type[_T],
    body: msgspec.Struct | None = None,
    *,
    seconds: float = ASK_SECONDS,
) -> _T:
    """Ask as the party whose certificate lies there."""
    certificate, key = place.pair()
    trusting = _context(place.authorities())
    shown = certificate.public_bytes(serialization.Encoding.DER), key
    return await _ask(_authority_of(place), trusting, method, target, kind, body, shown=shown, seconds=seconds)


async def _ask(
    address: Address,
    context: ssl.SSLContext,
    method: str,
    target: str,
    kind: type[_T],
    body: msgspec.Struct | None = None,
    *,
    shown: tuple[bytes, object] | None = None,
    trusted: bool = True,
    seconds: float = ASK_SECONDS,
) -> _T:
    """One request, and its answer read; see `_exchange`."""
    content = msgspec.json.encode(body) if body is not None else b""
    answered = await _exchange(address, context, method, target, content, shown=shown, trusted=trusted, seconds=seconds)
    where = f"the authority at {address}"
    try:
        return msgspec.json.decode(_body(answered, where), type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise EnrolmentError("answer-malformed", f"{where}: {error}") from error


async def _exchange(
    address: Address,
    context: ssl.SSLContext,
    method: str,
    target: str,
    content: bytes = b"",
    *,
    shown: tuple[bytes, object] | None = None,
    trusted: bool = True,
    seconds: float = ASK_SECONDS,
    bytes_max: int = ANSWER_BYTES_MAX,
) -> bytes:
    """One request; `shown` is our certificate (DER) with its key, `trusted` whether the other end must be proved."""
    where = f"the authority at {address}"
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname=address.host
            )
            try:
                server = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                if trusted:
                    _require_authority(server)
                headers = [f"Host: {address}", f"Content-Length: {len(content)}", "Connection: close"]
                if shown is not None:
                    headers += _proved(*shown, proof_of(method, target, content, server))
                writer.write("\r\n".join([f"{method} {target} HTTP/1.1", *headers, "", ""]).encode() + content)
                await writer.drain()
                return await _read(reader, bytes_max)
            finally:
                writer.transport.abort()
    except TimeoutError as error:
        raise TransportError(TIMED_OUT, "silent", f"{where} did not answer in {seconds:g} s") from error
    except ssl.SSLError as error:
        raise broken(where, error) from error
    except OSError as error:
        raise TransportError(UNREACHABLE, "unreachable", f"{where}: {error.strerror or error}") from error


def _proved(certificate: bytes, key: object, asked: bytes) -> list[str]:
    proof = base64.b64encode(sign(key, asked)).decode()
    return [f"{CERTIFICATE_HEADER}: {base64.b64encode(certificate).decode()}", f"{PROOF_HEADER}: {proof}"]


async def _read(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    """All that comes until the end, which our authority makes after each answer."""
    found = bytearray()
    while part := await reader.read(65536):
        found += part
        if len(found) > bytes_max:
            raise EnrolmentError("answer-malformed", f"it has more than {bytes_max} bytes")
    return bytes(found)


class _Answered:
    """What http.client reads from, in place of a socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, mode: str) -> io.BytesIO:
        """The content."""
        return io.BytesIO(self._content)


def _body(answered: bytes, where: str) -> bytes:
    """The body of what was answered.

    Raises:
        EnrolmentError: it is a refusal, with the authority's reason; or no answer of ours.
        TransportError: nothing came, or not all.
    """
    if not answered:
        raise TransportError(UNREACHABLE, "truncated", f"{where} closed the connection without an answer")
    response = http.client.HTTPResponse(_Answered(answered))  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
        if response.status == 200:
            return body
        refusal = msgspec.json.decode(body, type=Refusal)
    except http.client.IncompleteRead as error:
        raise TransportError(UNREACHABLE, "truncated", f"{where} closed the connection within an answer") from error
    except (http.client.HTTPException, msgspec.DecodeError, ValueError) as error:
        raise EnrolmentError("answer-malformed", f"{where}: {error}") from error
    if refusal.reason not in REASONS:
        raise EnrolmentError("answer-malformed", f"{where} refuses for {refusal.reason[:40]!r}")
    raise EnrolmentError.told(refusal.reason, refusal.message)


def _context(ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca)
    except (ssl.SSLError, ValueError) as error:
        raise EnrolmentError("folder-unusable", f"the CA can't be read: {error}") from error
    return context


def _require_authority(der: bytes) -> None:
    """Whoever has a server's certificate of this CA is not yet its authority."""
    try:
        identity = identity_among(parse_certificate(der).uris)
    except (DrengineError, ValueError):
        identity = None
    if identity is None or identity.role is not Role.AUTHORITY:
        raise EnrolmentError("not-an-authority", f"{identity or 'no identity'} answers")


def _require_ours(answer: IssuedAnswer, key: Any, now: float) -> Identity:
    """What we were given has our key, and is believed by those who trust the same CAs."""
    try:
        believed = Trust.read(answer.ca.encode(), answer.crl.encode()).believe(
            answer.certificate.encode(), now=now, purpose=None
        )
    except NotBelievedError as error:
        raise EnrolmentError("answer-malformed", f"{error}; or this host's clock is wrong") from error
    if believed.key != key or believed.identity is None:
        raise EnrolmentError("answer-malformed", "the certificate is for another key, or says no identity")
    return believed.identity


def _identity_of(certificate: x509.Certificate) -> Identity:
    identity = identity_among(parse_certificate(certificate.public_bytes(serialization.Encoding.DER)).uris)
    if identity is None:
        raise EnrolmentError("folder-unusable", "its certificate says no identity")
    return identity


def _authority_of(place: Place) -> Address:
    if place.authority is None:
        raise EnrolmentError("folder-unusable", f"{place.folder}: nobody has enrolled this party")
    return place.authority
