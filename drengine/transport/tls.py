"""TLS 1.3, both sides authenticated, from certificate files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from drengine.transport.causes import CAUSES, cause_of, details_of
from drengine.transport.errors import files_error
from drengine.transport.files import TlsFiles
from drengine.transport.x509 import Certificate, RevocationList, read_certificates, read_revocations

_WRONG_VERSION = bytes.fromhex("15030100020246")
"""A fatal alert `protocol_version`, in the clear: whoever speaks something else sees at least that this is TLS."""


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For accepting: the client must show a certificate of our CA.

    Raises:
        TransportError: BAD_TLS_FILES, naming the file and the cause.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a resumed session would skip the check of the client's certificate
    return _load(context, files)


def public_context(files: TlsFiles) -> ssl.SSLContext:
    """For accepting anybody: clients show no certificate, and are judged by what they say.

    Raises:
        TransportError: BAD_TLS_FILES, naming the file and the cause.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _load(context, files)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For connecting: the server's certificate must be of our CA and name the host that was asked for.

    Raises:
        TransportError: BAD_TLS_FILES, naming the file and the cause.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    return _load(context, files)


def certificates_in(path: Path) -> list[Certificate]:
    """The certificates of a file.

    Raises:
        TransportError: BAD_TLS_FILES, naming the file and the cause.
    """
    try:
        return read_certificates(_read(path))
    except ValueError as error:
        raise files_error("tls-not-pem", f"{path}: {error}") from error


def revocations_in(path: Path) -> list[RevocationList]:
    """The CRLs of a file.

    Raises:
        TransportError: BAD_TLS_FILES, naming the file and the cause.
    """
    content = _read(path)
    if b"BEGIN CERTIFICATE-----" in content or b"BEGIN TRUSTED CERTIFICATE-----" in content:
        # OpenSSL would trust them, as if they stood in `ca`.
        raise files_error("tls-not-pem", f"{path} holds a certificate, where only CRLs may be")
    try:
        found = read_revocations(content)
    except ValueError as error:
        raise files_error("tls-not-pem", f"{path}: {error}") from error
    if not found:
        raise files_error("tls-not-pem", f"{path} holds no CRL")
    return found


def _load(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.sslobject_class = _Handshake
    certificate, key, ca = map(_read, (files.certificate, files.key, files.ca))
    if not _readable(certificate):
        raise files_error("tls-not-pem", f"{files.certificate} holds no certificate{_but_a_key(certificate)}")
    if b"PRIVATE KEY-----" not in key:
        raise files_error("tls-not-pem", f"{files.key} holds no private key{_but_a_certificate(key)}")
    if not _readable(ca):
        code = "tls-not-pem" if ca.strip() else "tls-ca-empty"
        raise files_error(code, f"{files.ca}: {CAUSES[code].meaning}, so no peer could be believed")
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except _EncryptedError as error:
        raise files_error(
            "tls-key-encrypted", f"{files.key}: {CAUSES['tls-key-encrypted'].meaning} (passphrase)"
        ) from error
    except ssl.SSLError as error:
        code = cause_of(error).code
        raise files_error(code, f"{files.certificate} with {files.key}: {details_of(error)}") from error
    try:
        context.load_verify_locations(cafile=files.ca)
    except ssl.SSLError as error:
        raise files_error("tls-not-pem", f"{files.ca}: {details_of(error)}") from error
    if files.crl:
        _load_crl(context, files.crl)
    return context


def _load_crl(context: ssl.SSLContext, path: Path) -> None:
    revocations_in(path)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise files_error("tls-not-pem", f"{path}: {details_of(error)}") from error
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _readable(pem: bytes) -> list[Certificate]:
    """Certificates as far as they can be read: OpenSSL judges the rest."""
    try:
        return read_certificates(pem)
    except ValueError:
        return []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise files_error("tls-file-missing", f"{path} is not there") from error
    except OSError as error:
        raise files_error("tls-file-unreadable", f"{path} can't be read: {error.strerror}") from error


def _but_a_key(content: bytes) -> str:
    return ", but a private key" if b"PRIVATE KEY-----" in content else ""


def _but_a_certificate(content: bytes) -> str:
    return ", but a certificate" if b"BEGIN CERTIFICATE-----" in content else ""


class _EncryptedError(ValueError):
    """The key has a passphrase."""


def _no_password() -> str:
    """OpenSSL would otherwise ask at the terminal and hang a service."""
    raise _EncryptedError


class _Handshake(ssl.SSLObject):
    """Keeps the alert that says why a handshake failed, as `alert_of`: asyncio closes the socket without sending it."""

    _outgoing: ssl.MemoryBIO

    @classmethod
    def _create(cls, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *rest: Any, **options: Any) -> _Handshake:
        made: _Handshake = super()._create(incoming, outgoing, *rest, **options)  # type: ignore[misc]
        made._outgoing = outgoing
        return made

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            error.alert = self._outgoing.read()  # type: ignore[attr-defined]
            raise


def alert_of(error: BaseException) -> bytes:
    """What the peer of a failed handshake is to be told before the socket is closed."""
    if isinstance(error, ssl.SSLError) and cause_of(error).code == "tls-peer-plain":
        return _WRONG_VERSION  # OpenSSL leaves it at hanging up
    alert: bytes = getattr(error, "alert", b"")
    return alert
