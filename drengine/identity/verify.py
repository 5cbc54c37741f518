"""Whether a certificate that came in a message is to be believed, and whose it is.

In a TLS session OpenSSL judges the peer. What is signed and carried by others (an order over the broker) brings its
certificate along, and is judged here, by the same rules: a chain to a CA that we trust, each link within its time, the
leaf for its purpose and on no CRL.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from drengine.identity.names import Identity, identity_among
from drengine.model.errors import DrengineError

CHAIN_MAX = 5
"""A leaf, its intermediates and the CA; more is refused unread."""
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
_KNOWN = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
"""Critical extensions that are heeded here; a certificate with others, such as name constraints, is refused."""
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


class NotBelievedError(Exception):
    """A certificate is not to be believed. `code` is the cause's code in docs/errors.md, such as `tls-peer-revoked`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Believed:
    """What a certificate proves.

    Attributes:
        identity: whose it is; None when it says no `drengine://` name.
        common_name: for certificates of other CAs; empty where there is none.
        serial: its number at the CA that issued it.
        key: the public key that belongs to it.
        ends_at: seconds since 1970 at which it expires.
    """

    identity: Identity | None
    common_name: str
    serial: int
    key: CertificatePublicKeyTypes
    ends_at: float


@dataclass(frozen=True, slots=True)
class Trust:
    """The CAs that are believed, and what they have revoked; None: nobody asks for CRLs."""

    authorities: tuple[x509.Certificate, ...]
    revocations: tuple[x509.CertificateRevocationList, ...] | None = None

    @staticmethod
    def read(ca: bytes, crl: bytes | None = None) -> Trust:
        """From PEM, as the files `ca` and `crl` hold it.

        Raises:
            NotBelievedError: `tls-not-pem`.
        """
        try:
            authorities = tuple(x509.load_pem_x509_certificates(ca))
            blocks = [] if crl is None else crl.split(b"-----BEGIN X509 CRL-----")[1:]
            lists = tuple(x509.load_pem_x509_crl(b"-----BEGIN X509 CRL-----" + block) for block in blocks)
        except ValueError as error:
            raise NotBelievedError("tls-not-pem", f"the CA or its CRL can't be read: {error}") from error
        return Trust(authorities, None if crl is None else lists)

    def believe(self, chain: bytes, *, now: float, purpose: x509.ObjectIdentifier | None = CLIENT) -> Believed:
        """Judge a certificate.

        Args:
            chain: the certificate in DER, or in PEM with the intermediates that lead to a CA of ours after it.
            now: seconds since 1970.
            purpose: CLIENT or SERVER: what the certificate must be for; None: anything.

        Raises:
            NotBelievedError: it is not to be believed, with the reason.
        """
        leaf, *others = _read(chain)
        try:
            return self._believe(leaf, others, now, purpose)
        except (ValueError, UnsupportedAlgorithm) as error:  # names and keys are only read when they are asked for
            raise NotBelievedError("tls-not-pem", f"this is no certificate: {error}") from error

    def _believe(
        self,
        leaf: x509.Certificate,
        others: Sequence[x509.Certificate],
        now: float,
        purpose: x509.ObjectIdentifier | None,
    ) -> Believed:
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
        issuer = self._judge_chain(leaf, others, moment)
        usage = _extension(leaf, x509.ExtendedKeyUsage)
        if (
            purpose is not None
            and usage is not None
            and not {purpose, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & {*usage}
        ):
            raise NotBelievedError("tls-peer-purpose", f"{_name(leaf)} is for another purpose")
        if self.revocations is not None:
            self._require_unrevoked(leaf, issuer, self.revocations, moment)
        names = _extension(leaf, x509.SubjectAlternativeName)
        try:
            identity = identity_among(names.get_values_for_type(x509.UniformResourceIdentifier) if names else ())
        except DrengineError as error:
            raise NotBelievedError("identity-malformed", error.message) from error
        return Believed(
            identity, _common_name(leaf), leaf.serial_number, leaf.public_key(), leaf.not_valid_after_utc.timestamp()
        )

    def _judge_chain(
        self, leaf: x509.Certificate, others: Sequence[x509.Certificate], now: datetime.datetime
    ) -> x509.Certificate:
        """Follow the signatures to a CA of ours; returns the leaf's own issuer."""
        direct, current = None, leaf
        _judge(leaf, now)
        for below in range(CHAIN_MAX):
            issuer = _signer(current, (*self.authorities, *others))
            if issuer is None:
                raise NotBelievedError("tls-peer-issuer", f"{_name(leaf)} does not lead to a CA that we trust")
            _judge(issuer, now)
            _require_authority(issuer, below)
            direct = direct or issuer
            if issuer in self.authorities:
                return direct
            current = issuer
        raise NotBelievedError("tls-peer-issuer", f"the chain of {_name(leaf)} is too long")

    @staticmethod
    def _require_unrevoked(
        leaf: x509.Certificate,
        issuer: x509.Certificate,
        revocations: Sequence[x509.CertificateRevocationList],
        now: datetime.datetime,
    ) -> None:
        key = issuer.public_key()
        counted = [
            each
            for each in revocations
            if each.issuer == issuer.subject
            and each.is_signature_valid(key)  # type: ignore[arg-type]
            and (each.next_update_utc is None or now < each.next_update_utc)
        ]
        if not counted:
            raise NotBelievedError("tls-crl", f"there is no CRL that counts of {_name(issuer)}")
        if any(each.get_revoked_certificate_by_serial_number(leaf.serial_number) for each in counted):
            raise NotBelievedError("tls-peer-revoked", f"{_name(leaf)}, serial {leaf.serial_number:x}, is revoked")


def _read(chain: bytes) -> list[x509.Certificate]:
    try:
        if chain.startswith(b"\x30"):
            return [x509.load_der_x509_certificate(chain)]
        found = x509.load_pem_x509_certificates(chain)
    except ValueError as error:
        raise NotBelievedError("tls-not-pem", f"this is no certificate: {error}") from error
    if len(found) > CHAIN_MAX:
        raise NotBelievedError("tls-peer-issuer", f"{len(found)} certificates are too many for a chain")
    return found


def _judge(certificate: x509.Certificate, now: datetime.datetime) -> None:
    """Its time, and whether it asks for something that is not understood here."""
    if now < certificate.not_valid_before_utc:
        raise NotBelievedError("tls-peer-early", f"{_name(certificate)} is not valid yet")
    if now >= certificate.not_valid_after_utc:
        raise NotBelievedError("tls-peer-expired", f"{_name(certificate)} has expired")
    try:
        strange = [each.oid for each in certificate.extensions if each.critical and each.oid not in _KNOWN]
    except ValueError as error:
        raise NotBelievedError("tls-peer-refused", f"{_name(certificate)}: {error}") from error
    if strange:
        raise NotBelievedError("tls-peer-refused", f"{_name(certificate)} asks for {strange[0].dotted_string}")


def _require_authority(certificate: x509.Certificate, below: int) -> None:
    """It may sign others, with so many intermediates below it."""
    constraints, usage = _extension(certificate, x509.BasicConstraints), _extension(certificate, x509.KeyUsage)
    may = constraints is not None and constraints.ca and (usage is None or usage.key_cert_sign)
    if not may or (constraints and constraints.path_length is not None and constraints.path_length < below):
        raise NotBelievedError("tls-peer-issuer", f"{_name(certificate)} may not sign such a certificate")


def _signer(certificate: x509.Certificate, candidates: Sequence[x509.Certificate]) -> x509.Certificate | None:
    for each in candidates:
        try:
            certificate.verify_directly_issued_by(each)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return each
    return None


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> _Kind | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _common_name(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _name(certificate: x509.Certificate) -> str:
    return repr(_common_name(certificate)[:80])
