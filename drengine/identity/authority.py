"""A certificate authority in a directory: it signs what says who a party is, and remembers it.

| file | holds | written |
|---|---|---|
| `index.json` | what was issued and revoked (`index.py`) | before a certificate is handed out |
| `ca.key` | the key and its certificate, so that they can't part; mode 0600 | once, and then the CA exists |
| `ca.pem` | the certificate alone, for the parties | made again from `ca.key` when it is missing |
| `crl.pem` | the newest CRL | after the index that says who is revoked |

Each is replaced whole and durably. A lock on the directory lets one process change it at a time. A crash leaves the
state before or after a change: at worst the index knows a certificate that nobody got, or `crl.pem` is older than the
index, until the same command is given again.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from drengine.durable import replace_durably
from drengine.identity.errors import CA_REFUSED, CA_UNUSABLE
from drengine.identity.index import INDEX_FILE, VERSION, Entry, Index, read_index, write_index
from drengine.identity.keys import new_key, read_key, write_key
from drengine.identity.names import Identity, Role
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.ownership import make_directory

DAY_SECONDS = 86400
CA_SECONDS = 3650 * DAY_SECONDS
CERTIFICATE_SECONDS = 30 * DAY_SECONDS
CRL_SECONDS = 365 * DAY_SECONDS
"""Long, because an expired CRL refuses everybody: it tells who is revoked, not that the CA lives."""
SKEW_SECONDS = 300
"""Certificates begin so much earlier, for hosts whose clocks are behind."""
FORGOTTEN_SECONDS = 90 * DAY_SECONDS
"""So long after its end a certificate leaves the index."""

KEY_FILE, CERTIFICATE_FILE, CRL_FILE = "ca.key", "ca.pem", "crl.pem"
_SERVERS = frozenset({Role.TARGET, Role.BROKER})
_PEM = serialization.Encoding.PEM
_HOST = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_HOST_CHARS_MAX = 253


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate, in PEM, and how the index remembers it."""

    entry: Entry
    certificate: bytes


class Authority:
    """A CA that exists. Processes may use one directory at the same time.

    Attributes:
        folder: its directory.
        certificate: its own, in PEM.
    """

    def __init__(self, folder: Path, *, passphrase: bytes | None = None, clock: Clock | None = None) -> None:
        """Open it; the key is read only when something is signed.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        self.folder = folder
        self._passphrase = passphrase
        self._clock = clock or SystemClock()
        self._pem = _read_private(folder / KEY_FILE)
        try:
            self._certificate = x509.load_pem_x509_certificate(self._pem)
        except ValueError as error:
            raise DrengineError(CA_UNUSABLE, f"{folder / KEY_FILE} holds no certificate: {error}") from error
        self.certificate = self._certificate.public_bytes(_PEM)

    @staticmethod
    def create(
        folder: Path,
        site: str,
        *,
        passphrase: bytes | None = None,
        seconds: float = CA_SECONDS,
        clock: Clock | None = None,
    ) -> Authority:
        """Make a CA for a site in a missing or empty directory, or where that was interrupted.

        Raises:
            DrengineError: BAD_NAME, CA_REFUSED, CA_UNUSABLE.
        """
        check_name(site, what="site")
        clock = clock or SystemClock()
        try:
            make_directory(folder, mode=0o700)
            with _locked(folder):
                present = {each.name.removesuffix(".new") for each in folder.iterdir()}
                if KEY_FILE in {each.name for each in folder.iterdir()}:
                    raise DrengineError(CA_REFUSED, f"{folder} holds a CA already")
                if strange := present - {INDEX_FILE, KEY_FILE}:
                    raise DrengineError(CA_REFUSED, f"{folder} is not empty: it holds {min(strange)}")
                key = new_key()
                certificate = _self_signed(key, site, clock.now_ns() // 10**9, seconds)
                write_index(folder, Index(VERSION, site, 0, ()))
                content = write_key(key, passphrase) + certificate.public_bytes(_PEM)
                replace_durably(folder / KEY_FILE, content, mode=0o600)
                _publish(folder, certificate.public_bytes(_PEM))
        except OSError as error:
            raise _failed(folder, error) from error
        return Authority(folder, passphrase=passphrase, clock=clock)

    @property
    def ends_at(self) -> float:
        """Seconds since 1970 at which the CA's own certificate expires."""
        return self._certificate.not_valid_after_utc.timestamp()

    @property
    def site(self) -> str:
        """For which it issues.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        return read_index(self.folder).site

    def entries(self) -> tuple[Entry, ...]:
        """What was issued, oldest first; what expired long ago is forgotten.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        return read_index(self.folder).entries

    def issue(
        self,
        identity: Identity,
        key: CertificatePublicKeyTypes,
        *,
        hosts: Sequence[str] = (),
        both_ways: bool = False,
        seconds: float = CERTIFICATE_SECONDS,
    ) -> Issued:
        """Sign a certificate that says who holds this key. It is in the index before anybody has it.

        Args:
            identity: of the CA's site.
            key: the party's.
            hosts: DNS names and IP addresses under which clients reach it; a target and a broker need one.
            both_ways: also for the side of a connection that its role does not imply.
            seconds: how long it is valid; never longer than the CA.

        Raises:
            DrengineError: CA_REFUSED, CA_UNUSABLE.
        """
        checked = tuple(_checked_host(host) for host in hosts)
        if identity.role in _SERVERS and not checked:
            raise DrengineError(CA_REFUSED, f"{identity} needs the names or addresses that its clients connect to")
        with self._changing() as index:
            return self._issue(index, identity, key, checked, both_ways, seconds)

    def renew(
        self, identity: Identity, key: CertificatePublicKeyTypes, *, seconds: float = CERTIFICATE_SECONDS
    ) -> Issued:
        """Issue again what the identity has, to this key. The old certificate stays valid until it expires.

        Raises:
            DrengineError: CA_REFUSED: it has none, or its newest is revoked. CA_UNUSABLE.
        """
        with self._changing() as index:
            known = [each for each in index.entries if each.identity == str(identity)]
            if not known:
                raise DrengineError(CA_REFUSED, f"{identity} has no certificate of this CA that could be renewed")
            newest = known[-1]
            if newest.revoked_at is not None:
                raise DrengineError(CA_REFUSED, f"the newest certificate of {identity} is revoked: issue a new one")
            return self._issue(index, identity, key, newest.hosts, newest.both_ways, seconds)

    def revoke(self, *, identity: Identity | None = None, serial: str | None = None) -> tuple[Entry, ...]:
        """Revoke a certificate, or all unexpired ones of an identity, and write the CRL; again does no harm.

        Returns:
            what is revoked now.

        Raises:
            DrengineError: CA_REFUSED: there is none. CA_UNUSABLE.
        """
        now = self._now()
        with self._changing() as index:

            def is_meant(entry: Entry) -> bool:
                return entry.serial == serial if serial else entry.identity == str(identity) and now < entry.ends_at

            if not any(map(is_meant, index.entries)):
                raise DrengineError(CA_REFUSED, f"no certificate of {serial or identity} is known that is still valid")
            entries = tuple(
                msgspec.structs.replace(each, revoked_at=now) if is_meant(each) and each.revoked_at is None else each
                for each in index.entries
            )
            self._write_crl(msgspec.structs.replace(index, entries=entries), CRL_SECONDS)
            return tuple(filter(is_meant, entries))

    def write_crl(self, *, seconds: float = CRL_SECONDS) -> bytes:
        """Sign a CRL of what is revoked and has not expired, to be followed by another within so many seconds.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        with self._changing() as index:
            return self._write_crl(index, seconds)

    def _issue(
        self,
        index: Index,
        identity: Identity,
        key: CertificatePublicKeyTypes,
        hosts: tuple[str, ...],
        both_ways: bool,
        seconds: float,
    ) -> Issued:
        if identity.site != index.site:
            raise DrengineError(CA_REFUSED, f"this CA is of the site {index.site}, not of {identity.site}")
        now, ends = self._now(), int(self.ends_at)
        if ends <= now:
            raise DrengineError(CA_REFUSED, "the CA itself has expired: make a new one")
        taken = {each.serial for each in index.entries}
        while (serial := f"{secrets.randbits(63) | 1 << 62:016x}") in taken:
            pass
        entry = Entry(
            serial, str(identity), hosts, both_ways, now - SKEW_SECONDS, min(now + max(1, int(seconds)), ends)
        )
        signed = self._build(entry, identity, key).sign(self._key(), hashes.SHA256())
        kept = tuple(each for each in index.entries if now < each.ends_at + FORGOTTEN_SECONDS)
        write_index(self.folder, msgspec.structs.replace(index, entries=(*kept, entry)))
        return Issued(entry, signed.public_bytes(_PEM))

    def _build(self, entry: Entry, identity: Identity, key: CertificatePublicKeyTypes) -> x509.CertificateBuilder:
        ours = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
        names += [_general_name(host) for host in entry.hosts]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(signs=False), True),
            (x509.ExtendedKeyUsage(_usages(identity.role, entry.both_ways)), False),
            (x509.SubjectAlternativeName(names), False),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ours), False),
        ]
        return _builder(
            identity.name,
            self._certificate.subject,
            key,
            int(entry.serial, 16),
            (entry.begins_at, entry.ends_at),
            extensions,
        )

    def _write_crl(self, index: Index, seconds: float) -> bytes:
        now = self._now()
        index = msgspec.structs.replace(index, crl_number=index.crl_number + 1)
        ours = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_time(now - SKEW_SECONDS))
            .next_update(_time(now + max(1, int(seconds))))
            .add_extension(x509.CRLNumber(index.crl_number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ours), critical=False)
        )
        for each in index.entries:
            if each.revoked_at is not None and now < each.ends_at:
                revoked = x509.RevokedCertificateBuilder().serial_number(int(each.serial, 16))
                builder = builder.add_revoked_certificate(revoked.revocation_date(_time(each.revoked_at)).build())
        content = builder.sign(self._key(), hashes.SHA256()).public_bytes(_PEM)
        write_index(self.folder, index)
        replace_durably(self.folder / CRL_FILE, content, mode=0o644)
        return content

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Index]:
        """The index, while nobody else changes it."""
        try:
            with _locked(self.folder):
                if not (self.folder / CERTIFICATE_FILE).exists():
                    _publish(self.folder, self.certificate)
                yield read_index(self.folder)
        except OSError as error:
            raise _failed(self.folder, error) from error

    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = read_key(self._pem, self._passphrase, where=self.folder / KEY_FILE)
        if key.public_key() != self._certificate.public_key():
            raise DrengineError(CA_UNUSABLE, f"{self.folder / KEY_FILE} holds a key and another key's certificate")
        return key

    def _now(self) -> int:
        return self._clock.now_ns() // 10**9


def _self_signed(key: ec.EllipticCurvePrivateKey, site: str, now: int, seconds: float) -> x509.Certificate:
    """The CA's own certificate. Its name has a part of the key, so that two CAs of a site can be told apart."""
    ours = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = f"drengine CA {site}"[:54] + f" {ours.digest.hex()[:8]}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_key_usage(signs=True), True),
        (ours, False),
    ]
    period = (now - SKEW_SECONDS, now + max(1, int(seconds)))
    built = _builder(name, subject, key.public_key(), x509.random_serial_number(), period, extensions)
    return built.sign(key, hashes.SHA256())


def _builder(
    name: str,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    serial: int,
    period: tuple[int, int],
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_time(period[0]))
        .not_valid_after(_time(period[1]))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _usages(role: Role, both_ways: bool) -> list[x509.ObjectIdentifier]:
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    return [server, client] if both_ways else [server if role in _SERVERS else client]


def _checked_host(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if len(host) <= _HOST_CHARS_MAX and _HOST.fullmatch(host.lower()):
            return host.lower()
    raise DrengineError(CA_REFUSED, f"{host[:80]!r} is neither a DNS name nor an IP address")


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read()
    except FileNotFoundError as error:
        raise DrengineError(CA_UNUSABLE, f"{path} is not there: `drengine ca init` makes a CA") from error
    except OSError as error:
        raise _failed(path, error) from error
    if mode & 0o077:
        raise DrengineError(CA_UNUSABLE, f"{path} may be read or written by others (mode {mode:03o}): chmod 600 it")
    return content


def _publish(folder: Path, certificate: bytes) -> None:
    replace_durably(folder / CERTIFICATE_FILE, certificate, mode=0o644)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _failed(path: Path, error: OSError) -> DrengineError:
    return DrengineError(CA_UNUSABLE, f"{error.filename or path}: {error.strerror or error}")


def _time(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
