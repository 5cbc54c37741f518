"""Looking at certificate files before anybody relies on them: what `check-config` and a start say of them.

Whether peers believe our certificate is tried on OpenSSL itself: a handshake in memory with a peer that trusts the `ca`
of the same section.
"""

from __future__ import annotations

import enum
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from drengine.transport.causes import CAUSES, cause_of, details_of
from drengine.transport.errors import TransportError, files_error
from drengine.transport.files import TlsFiles
from drengine.transport.tls import certificates_in, client_context, revocations_in, server_context
from drengine.transport.x509 import Certificate

ANY_ADDRESS = ("", "0.0.0.0", "::")
"""Listened on, these say nothing about the address that peers connect to."""
_ROUNDS_MAX = 16
_AS_OURS = {
    "tls-peer-issuer": "tls-own-issuer",
    "tls-peer-signature": "tls-own-issuer",
    "tls-peer-self-signed": "tls-own-self-signed",
    "tls-peer-purpose": "tls-own-purpose",
    "tls-peer-expired": "tls-own-expired",
    "tls-peer-early": "tls-own-early",
    "tls-peer-revoked": "tls-own-revoked",
}


class Side(enum.StrEnum):
    """What a certificate is used for."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class TlsReport:
    """What was found.

    Attributes:
        certificate: ours.
        doubts: what may be meant so, but mostly is not; each with its cause's code as `reason` and a hint.
    """

    certificate: Certificate
    doubts: tuple[TransportError, ...]

    def as_json(self) -> dict[str, object]:
        """For programs."""
        ours = self.certificate
        return {
            "subject": ours.subject,
            "issuer": ours.issuer,
            "names": list(ours.names),
            "uris": list(ours.uris),
            "valid_from": _time(ours.begins_at),
            "valid_until": _time(ours.ends_at),
            "doubts": [{"code": doubt.reason, "message": doubt.message, "hint": doubt.hint} for doubt in self.doubts],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        ours = self.certificate
        names = f", for {', '.join([*ours.uris, *ours.names])}" if ours.uris or ours.names else ""
        yield f"certificate {ours.subject or '(no name)'}{names}, valid until {_time(ours.ends_at)}"
        for doubt in self.doubts:
            yield f"warning: {doubt.message} [{doubt.reason}]"
            yield f"  hint: {doubt.hint}"


def check_files(files: TlsFiles, side: Side, *, now: float, address: str = "") -> TlsReport:
    """Read the files and try whether a peer that trusts `ca` would believe us.

    Args:
        files: the section's.
        side: as which our certificate is shown.
        now: seconds since 1970.
        address: that peers are known to connect to; empty when nobody knows.

    Raises:
        TransportError: BAD_TLS_FILES: no session is possible with these, naming file and cause.
    """
    files = files.completed()
    context = server_context(files) if side is Side.SERVER else client_context(files)
    ours, *_ = certificates_in(files.certificate)
    where = files.certificate
    if not ours.begins_at <= now < ours.ends_at:
        code = "tls-own-early" if now < ours.begins_at else "tls-own-expired"
        raise files_error(code, f"{where}: {CAUSES[code].meaning}: {_validity(ours)}")
    if ours.purposes is not None and side.value not in ours.purposes:
        named = ", ".join(sorted(ours.purposes)) or "something else"
        raise files_error("tls-own-purpose", f"{where} is for {named}, and is shown as a {side}'s")
    authorities = certificates_in(files.ca)
    if all(each.ends_at <= now for each in authorities):
        raise files_error(
            "tls-ca-expired", f"{files.ca}: {CAUSES['tls-ca-expired'].meaning}: {_validity(authorities[0])}"
        )
    if files.crl and any(each.ends_at <= now for each in revocations_in(files.crl)):
        raise files_error("tls-crl", f"{files.crl} has expired, so no peer would be believed")
    return TlsReport(ours, tuple(_doubts(files, side, context, ours, authorities, address)))


def _doubts(
    files: TlsFiles,
    side: Side,
    context: ssl.SSLContext,
    ours: Certificate,
    authorities: list[Certificate],
    address: str,
) -> Iterator[TransportError]:
    for each in authorities:
        if not each.is_authority:
            message = f"{files.ca}: {each.subject or 'a certificate'} may not sign others"
            yield files_error("tls-ca-no-authority", message)
    refused = _rehearse(files, side, context)
    if refused is not None:
        cause = cause_of(refused)
        code = _AS_OURS.get(cause.code, "tls-own-refused")
        message = f"{files.certificate}: whoever trusts {files.ca} refuses it: {CAUSES[code].meaning}"
        yield files_error(code, f"{message} ({details_of(refused)}; issuer {ours.issuer or 'unnamed'!r})")
    if side is Side.SERVER and address and not _is_named(address, ours.names):
        names = ", ".join(ours.names) or "nothing"
        yield files_error("tls-own-name", f"{files.certificate} names {names}, not {address}")


def _rehearse(files: TlsFiles, side: Side, ours: ssl.SSLContext) -> ssl.SSLError | None:
    """Why a peer that trusts `ca` refuses our certificate; None when it does not."""
    judge = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if side is Side.SERVER else ssl.PROTOCOL_TLS_SERVER)
    judge.check_hostname = False
    judge.verify_mode = ssl.CERT_REQUIRED
    judge.load_verify_locations(cafile=files.ca)
    if side is Side.SERVER:
        ours.verify_mode = ssl.CERT_NONE  # the judge shows none
    else:
        ours.check_hostname, ours.verify_mode = False, ssl.CERT_NONE
        judge.load_cert_chain(files.certificate, files.key)
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    judging = judge.wrap_bio(there, here, server_side=side is Side.CLIENT)
    judged = ours.wrap_bio(here, there, server_side=side is Side.SERVER)
    for _ in range(_ROUNDS_MAX):
        for each in (judged, judging):
            try:
                each.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue
            except ssl.SSLError as error:
                return error
            if each is judging:
                return None
    return None


def _is_named(address: str, names: tuple[str, ...]) -> bool:
    """Whether one of the names covers it, as RFC 9525 says: a `*` stands for the whole first label."""
    try:
        wanted = str(ipaddress.ip_address(address))
    except ValueError:
        host = address.rstrip(".").lower()
        rest = host.partition(".")[2]
        return any(name.lower() in (host, f"*.{rest}") for name in names if rest or name.lower() == host)
    return wanted in names


def _validity(certificate: Certificate) -> str:
    return f"it is valid from {_time(certificate.begins_at)} to {_time(certificate.ends_at)}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
