"""Certificates that are renewed on disk while we run: what is in use, until when, and what was not taken.

Files are looked at before each handshake and each scrape, and on SIGHUP. New ones count from the next handshake on;
sessions go on as they are. Files that can't be used (half written, of two issues, expired) change nothing but a line in
the log and a metric: what was read before goes on.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drengine.identity.names import Identity, identity_among
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.telemetry.metrics import Family, Kind, Sample
from drengine.transport.causes import CAUSES
from drengine.transport.errors import TransportError, files_error
from drengine.transport.files import TlsFiles
from drengine.transport.tls import certificates_in, revocations_in
from drengine.transport.x509 import Certificate, RevocationList, parse_certificate

log = logging.getLogger("drengine.transport")

_NS = 1_000_000_000
_Stamp = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One reading of the files."""

    context: ssl.SSLContext
    certificate: Certificate
    authorities: tuple[Certificate, ...]
    revocations: tuple[RevocationList, ...]


class Credentials:
    """A certificate, its key and the CA of peers, for one role. Threads may share it.

    Attributes:
        role: what they are for, as metrics call it.
        rejected: why what lies on disk is not in use; None when it is.
    """

    def __init__(self, files: TlsFiles, make: Callable[[TlsFiles], ssl.SSLContext], *, role: str, clock: Clock) -> None:
        """Read the files; `make` is `server_context` or `client_context`.

        Raises:
            TransportError: BAD_TLS_FILES.
        """
        self.role = role
        self.rejected: TransportError | None = None
        self._files = files.completed()
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = _stamps(self._files)
        self._loaded = self._load()
        if fault := self._fault(self._loaded):
            log.error(
                "no session is possible with these certificates (%s): %s; %s", fault.reason, fault.message, fault.hint
            )

    @property
    def files(self) -> TlsFiles:
        """Where they lie."""
        return self._files

    @property
    def identity(self) -> Identity | None:
        """Who we are by the certificate in use; None when it says nothing that peers could read."""
        try:
            return identity_among(self._loaded.certificate.uris)
        except DrengineError:
            return None

    def is_revoked(self, der: bytes) -> bool:
        """Whether a peer's certificate (DER) is on the CRL that was read last."""
        if not self._loaded.revocations:
            return False
        peer = parse_certificate(der)
        return any(
            peer.serial in each.serials and peer.issuer_name == each.issuer_name for each in self._loaded.revocations
        )

    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        self.refresh()
        return self._loaded.context

    def refresh(self, *, again: bool = False) -> None:
        """Read the files if they have changed, or in any case."""
        with self._lock:
            seen = _stamps(self._files)
            if seen == self._seen and not again:
                return
            self._seen = seen
            try:
                fresh = self._load()
                fault = self._fault(fresh)
                if fault and not self._fault(self._loaded):
                    raise fault
            except TransportError as error:
                self.rejected = error
                log.error(  # noqa: TRY400 - the line says all
                    "the certificates on disk are not taken, those read before go on (%s): %s; %s",
                    error.reason,
                    error.message,
                    error.hint,
                )
                return
            self._loaded, self.rejected = fresh, None
        told = {"role": self.role, "certificate": str(self._files.certificate)}
        log.info("certificates were read again, valid for %d s", self.expiry_seconds()["certificate"], extra=told)

    @property
    def ends_ns(self) -> int:
        """Until when the certificate in use is valid."""
        return int(self._loaded.certificate.ends_at * _NS)

    def expiry_seconds(self) -> dict[str, float]:
        """How long the files in use are still valid, by their option's name; below 0 afterwards."""
        now, loaded = self._clock.now_ns() / _NS, self._loaded
        seconds = {
            "certificate": loaded.certificate.ends_at - now,
            "ca": max(each.ends_at for each in loaded.authorities) - now,
        }
        if loaded.revocations:
            seconds["crl"] = min(each.ends_at for each in loaded.revocations) - now
        return seconds

    def lifetime_seconds(self) -> dict[str, float]:
        """How long the files in use were to be valid when they were made, by their option's name."""
        loaded = self._loaded
        newest = max(loaded.authorities, key=lambda each: each.ends_at)
        return {
            "certificate": loaded.certificate.ends_at - loaded.certificate.begins_at,
            "ca": newest.ends_at - newest.begins_at,
        }

    def _load(self) -> _Loaded:
        files = self._files.settled()
        context = self._make(files)
        ours, *_ = certificates_in(files.certificate)
        revocations = revocations_in(files.crl) if files.crl else ()
        return _Loaded(context, ours, tuple(certificates_in(files.ca)), tuple(revocations))

    def _fault(self, loaded: _Loaded) -> TransportError | None:
        """Why no session would be possible at this moment: nobody believes our certificate, or we nobody's."""
        now, ours = self._clock.now_ns() / _NS, loaded.certificate
        if any(each.ends_at <= now for each in loaded.revocations):
            return files_error("tls-crl", f"{self._files.crl} has expired, so peers can't be believed")
        if ours.begins_at <= now < ours.ends_at:
            return None
        code = "tls-own-early" if now < ours.begins_at else "tls-own-expired"
        return files_error(code, f"{self._files.certificate}: {CAUSES[code].meaning}")


@dataclass(frozen=True)
class CredentialFamilies:
    """The metrics of a program's certificates."""

    expiry: Family
    lifetime: Family
    rejected: Family

    @staticmethod
    def of(program: str, labels: tuple[str, ...] = ()) -> CredentialFamilies:
        """`program` is `target`, `agent` or `orchestrator`; `labels` stand before the role."""
        return CredentialFamilies(
            Family(
                f"{program}_certificate_expiry_seconds",
                Kind.GAUGE,
                "Seconds until the certificate, the CA or the CRL in use for a role expires; negative once it has.",
                (*labels, "role", "file"),
            ),
            Family(
                f"{program}_certificate_lifetime_seconds",
                Kind.GAUGE,
                "From the beginning of that to its end: what is short-lived may be close to its end and be well.",
                (*labels, "role", "file"),
            ),
            Family(
                f"{program}_certificate_rejected",
                Kind.GAUGE,
                "1 while the files on disk can't be used and those read before go on.",
                (*labels, "role"),
            ),
        )

    @property
    def all(self) -> tuple[Family, ...]:
        """To be registered."""
        return self.expiry, self.lifetime, self.rejected

    def samples(self, credentials: Iterable[Credentials], labels: tuple[str, ...] = ()) -> Iterator[Sample]:
        """How they stand now, after another look at the files."""
        for each in credentials:
            each.refresh()
            yield Sample(self.rejected, float(each.rejected is not None), (*labels, each.role))
            for file, seconds in each.expiry_seconds().items():
                yield Sample(self.expiry, seconds, (*labels, each.role, file))
            for file, seconds in each.lifetime_seconds().items():
                yield Sample(self.lifetime, seconds, (*labels, each.role, file))


def _stamps(files: TlsFiles) -> _Stamp:
    """What changes whenever a file is written, replaced or made readable."""
    return tuple(map(_stamp, files.paths))


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
