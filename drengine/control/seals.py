"""Signed messages: what a party says, under its certificate's key, so that the broker is a courier and no authority.

What is signed is the very bytes of the JSON value `signed`, behind a line that says what they are for. They are
verified as they came and only then read, so there is no canonical form to differ about.
"""

from __future__ import annotations

import enum
import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from drengine.identity.names import Identity, identity_among
from drengine.identity.signatures import is_signed, sign
from drengine.identity.verify import NotBelievedError, Trust
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.transport.errors import files_error
from drengine.transport.files import TlsFiles
from drengine.transport.x509 import read_certificates

log = logging.getLogger("drengine.control")

_Stamp = tuple[int, int, int, int] | None


class Purpose(enum.StrEnum):
    """What a signature is for: one given for one purpose is worth nothing for another."""

    ORDER = "order"
    ANSWER = "answer"


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed message.

    Attributes:
        signed: the message, as the bytes that were signed.
        certificates: PEM; the signer's, then those up to its CA.
        signature: base64 in JSON; see `drengine.identity.signatures`.
    """

    signed: msgspec.Raw
    certificates: str
    signature: bytes


class BadSealError(Exception):
    """A signed message that is not believed. `code` is `certificate`, `revoked` or `signature`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _Loaded:
    """One reading of the files."""

    certificates: str
    key: PrivateKeyTypes
    trust: Trust
    identity: Identity | None


def unsealed(payload: bytes) -> Sealed | None:
    """The message if it is a signed one, nothing of it verified; None: it is a plain one, or none at all."""
    try:
        return msgspec.json.decode(payload, type=Sealed)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


class Seals:
    """Signs with our key, and verifies by our CA. Files that are renewed on disk count from the next message on."""

    def __init__(self, files: TlsFiles, clock: Clock) -> None:
        """
        Raises:
            TransportError: BAD_TLS_FILES.
        """
        self._files = files.completed()
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._loaded = self._load()

    @property
    def identity(self) -> Identity | None:
        """Whom our certificate names."""
        return self._fresh().identity

    def seal(self, purpose: Purpose, content: bytes) -> bytes:
        """The signed message for what is said, which is JSON."""
        loaded = self._fresh()
        signature = sign(loaded.key, _to_sign(purpose, content))
        return msgspec.json.encode(Sealed(msgspec.Raw(content), loaded.certificates, signature))

    def verify(self, purpose: Purpose, sealed: Sealed) -> Identity:
        """Who has signed a message.

        Raises:
            BadSealError: nobody whom we believe.
        """
        try:
            believed = self._fresh().trust.believe(sealed.certificates.encode(), now=self._clock.now_ns() / 1e9)
        except NotBelievedError as error:
            code = "revoked" if error.code == "tls-peer-revoked" else "certificate"
            raise BadSealError(code, f"{error} ({error.code})") from error
        if not is_signed(believed.key, sealed.signature, _to_sign(purpose, bytes(sealed.signed))):
            raise BadSealError("signature", f"it came with the certificate of {believed.common_name[:80]!r}")
        if believed.identity is None:
            raise BadSealError("certificate", f"{believed.common_name[:80]!r} has no drengine:// name")
        return believed.identity

    def _fresh(self) -> _Loaded:
        """The files as they lie there now; those read before where they can't be used."""
        with self._lock:
            seen = self._stamps()
            if seen != self._seen:
                self._seen = seen
                try:
                    self._loaded = self._load()
                except DrengineError as error:
                    log.error("the certificates on disk are not taken for signing: %s", error)  # noqa: TRY400
            return self._loaded

    def _stamps(self) -> tuple[_Stamp, ...]:
        return tuple(map(_stamp, self._files.paths))

    def _load(self) -> _Loaded:
        files = self._files.settled()
        try:
            shown, secret = files.certificate.read_bytes(), files.key.read_bytes()
            trust = Trust.read(files.ca.read_bytes(), files.crl.read_bytes() if files.crl else None)
            certificate, *_ = read_certificates(shown)
            key = serialization.load_pem_private_key(secret, None)
            sign(key, b"")
        except OSError as error:
            raise files_error("tls-file-unreadable", f"{error.filename}: {error.strerror}") from error
        except (ValueError, TypeError, NotBelievedError) as error:
            raise files_error("tls-not-pem", f"{files.certificate}, {files.key}, {files.ca}: {error}") from error
        try:
            identity = identity_among(certificate.uris)
        except DrengineError:  # malformed: it names nobody that peers could read
            identity = None
        return _Loaded(shown.decode("ascii", "replace"), key, trust, identity)


def _to_sign(purpose: Purpose, content: bytes) -> bytes:
    return f"drengine {purpose} 1\n".encode() + content


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
