"""What a CA signs: its own certificate, parties' certificates, lists of revoked ones. Nothing is kept here."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from drengine.identity.errors import CA_REFUSED, CA_UNUSABLE
from drengine.identity.index import Entry
from drengine.identity.keys import new_key, read_key, write_key
from drengine.identity.names import Identity, Role
from drengine.model.errors import DrengineError

SKEW_SECONDS = 300
"""Certificates begin so much earlier, for hosts whose clocks are behind."""
SERVERS = frozenset({Role.TARGET, Role.BROKER, Role.AUTHORITY})
_PEM = serialization.Encoding.PEM
_HOST = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_HOST_CHARS_MAX = 253


@dataclass(frozen=True, slots=True)
class SigningCa:
    """A CA: its certificate, and its key as it lies in a file, perhaps encrypted."""

    path: Path
    pem: bytes
    certificate: x509.Certificate

    @staticmethod
    def parse(path: Path, pem: bytes) -> SigningCa:
        """From the content of its file.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        try:
            return SigningCa(path, pem, x509.load_pem_x509_certificate(pem))
        except ValueError as error:
            raise DrengineError(CA_UNUSABLE, f"{path} holds no certificate: {error}") from error

    @property
    def public(self) -> bytes:
        """Its certificate in PEM."""
        return self.certificate.public_bytes(_PEM)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of its certificate in DER, as `openssl x509 -fingerprint -sha256` shows it."""
        return self.certificate.fingerprint(hashes.SHA256())

    @property
    def ends_at(self) -> float:
        """Seconds since 1970 at which its own certificate expires."""
        return self.certificate.not_valid_after_utc.timestamp()

    def key(self, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
        """Its private key.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        key = read_key(self.pem, passphrase, where=self.path)
        if key.public_key() != self.certificate.public_key():
            raise DrengineError(CA_UNUSABLE, f"{self.path} holds a key and another key's certificate")
        return key

    def sign(self, entry: Entry, identity: Identity, key: CertificatePublicKeyTypes, passphrase: bytes | None) -> bytes:
        """A certificate in PEM that says who holds this key.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
        names += [_general_name(host) for host in entry.hosts]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(signs=False), True),
            (x509.ExtendedKeyUsage(_usages(identity.role, entry.both_ways)), False),
            (x509.SubjectAlternativeName(names), False),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (self._key_identifier(), False),
        ]
        period, serial = (entry.begins_at, entry.ends_at), int(entry.serial, 16)
        builder = _builder(identity.name, self.certificate.subject, key, serial, period, extensions)
        return builder.sign(self.key(passphrase), hashes.SHA256()).public_bytes(_PEM)

    def sign_revocations(
        self, entries: Iterable[Entry], number: int, period: tuple[int, int], passphrase: bytes | None
    ) -> bytes:
        """A CRL in PEM of these revoked certificates.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(_time(period[0]))
            .next_update(_time(period[1]))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        for each in entries:
            assert each.revoked_at is not None
            revoked = x509.RevokedCertificateBuilder().serial_number(int(each.serial, 16))
            builder = builder.add_revoked_certificate(revoked.revocation_date(_time(each.revoked_at)).build())
        return builder.sign(self.key(passphrase), hashes.SHA256()).public_bytes(_PEM)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        ours = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ours)


def new_ca(site: str, now: int, seconds: float, passphrase: bytes | None) -> bytes:
    """A new CA: its key and certificate in PEM. Its name has a part of the key, so that two of a site differ."""
    key = new_key()
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
    return write_key(key, passphrase) + built.sign(key, hashes.SHA256()).public_bytes(_PEM)


def key_digest(key: CertificatePublicKeyTypes) -> str:
    """SHA-256 of a public key, in hexadecimal."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def checked_host(host: str) -> str:
    """A DNS name or an IP address, in its one way to be written.

    Raises:
        DrengineError: CA_REFUSED.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if len(host) <= _HOST_CHARS_MAX and _HOST.fullmatch(host.lower()):
            return host.lower()
    raise DrengineError(CA_REFUSED, f"{host[:80]!r} is neither a DNS name nor an IP address")


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
    return [server, client] if both_ways else [server if role in SERVERS else client]


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _time(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
