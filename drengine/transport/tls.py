"""TLS 1.3, both sides authenticated, from certificate files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.transport.errors import BAD_TLS_FILES


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: our certificate (with its chain), its key, and the CA that signs peers."""

    certificate: Path
    key: Path
    ca: Path


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For accepting: the client must show a certificate of our CA.

    Raises:
        DrengineError: BAD_TLS_FILES, naming the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a resumed session would skip the check of the client's certificate
    return _load(context, files)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For connecting: the server's certificate must be of our CA and name the host that was asked for.

    Raises:
        DrengineError: BAD_TLS_FILES, naming the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    return _load(context, files)


def _load(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    for path in (files.certificate, files.key, files.ca):
        try:
            path.read_bytes()
        except OSError as error:
            raise DrengineError(BAD_TLS_FILES, f"{path}: {error.strerror}") from error
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise DrengineError(BAD_TLS_FILES, f"{files.certificate} with {files.key}: {error}") from error
    try:
        context.load_verify_locations(cafile=files.ca)
    except ssl.SSLError as error:
        raise DrengineError(BAD_TLS_FILES, f"{files.ca}: {error}") from error
    return context


def _no_password() -> str:
    """OpenSSL would otherwise ask at the terminal and hang a service."""
    raise ValueError("the key is encrypted; a service needs one without a passphrase")
