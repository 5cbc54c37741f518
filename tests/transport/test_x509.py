"""What a certificate says is read as another implementation wrote it, and whatever else lies there is refused."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from drengine.transport.x509 import parse_certificate, read_certificates, read_revocations

BEGIN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def make(
    end: datetime.datetime = BEGIN + datetime.timedelta(days=90),
    *,
    subject: str = "target",
    extensions: tuple[x509.ExtensionType, ...] = (),
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Örg")]
    if subject:
        name.append(x509.NameAttribute(NameOID.COMMON_NAME, subject))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(name))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(end)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_names_moments_and_purposes_are_read() -> None:
    found = parse_certificate(
        make(
            extensions=(
                x509.KeyUsage(True, False, False, False, False, False, False, False, False),
                x509.SubjectAlternativeName(
                    [
                        x509.DNSName("outpost.example"),
                        x509.RFC822Name("somebody@example.org"),
                        x509.UniformResourceIdentifier("drengine://main/agent/shop"),
                        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
                        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
                    ]
                ),
                x509.ExtendedKeyUsage([Usage.SERVER_AUTH, Usage.CODE_SIGNING]),
                x509.BasicConstraints(ca=False, path_length=None),
            )
        )
    )
    assert (found.subject, found.issuer) == ("target", "test CA")
    assert found.begins_at == BEGIN.timestamp()
    assert found.ends_at == (BEGIN + datetime.timedelta(days=90)).timestamp()
    assert found.names == ("outpost.example", "10.0.0.1", "2001:db8::1")
    assert found.uris == ("drengine://main/agent/shop",)
    assert found.purposes == {"server"}
    assert not found.is_authority


def test_what_is_not_said_is_not_made_up() -> None:
    found = parse_certificate(make(subject="", key=rsa.generate_private_key(65537, 2048)))
    assert (found.subject, found.names, found.purposes, found.is_authority) == ("", (), None, False)
    anything = parse_certificate(make(extensions=(x509.ExtendedKeyUsage([Usage.ANY_EXTENDED_KEY_USAGE]),)))
    assert anything.purposes is None
    authority = parse_certificate(make(extensions=(x509.BasicConstraints(ca=True, path_length=1),)))
    assert authority.is_authority


@pytest.mark.parametrize("year", [2049, 2050, 2100])
def test_both_ways_to_write_a_moment_are_read(year: int) -> None:
    end = datetime.datetime(year, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    assert parse_certificate(make(end)).ends_at == end.timestamp()


def test_all_certificates_of_a_file_are_read_in_order() -> None:
    blocks = [
        x509.load_der_x509_certificate(make(subject=name)).public_bytes(serialization.Encoding.PEM)
        for name in ("leaf", "intermediate")
    ]
    assert [each.subject for each in read_certificates(b"words\n" + b"words\n".join(blocks))] == [
        "leaf",
        "intermediate",
    ]
    assert read_certificates(b"no certificate at all\xff") == []


DER = make(extensions=(x509.SubjectAlternativeName([x509.DNSName("a.example")]),))


@given(st.integers(0, len(DER)), st.binary(max_size=8))
def test_damaged_certificates_are_refused_and_nothing_else_happens(at: int, put: bytes) -> None:
    for damaged in (DER[:at], DER[:at] + put + DER[at + len(put) :]):
        with contextlib.suppress(ValueError):
            parse_certificate(damaged)


@pytest.mark.parametrize("serials", [(), (1,), (127, 128, 255, 256, (1 << 159) - 1)])
@pytest.mark.parametrize("year", [2049, 2050])
def test_a_crl_is_read_as_another_implementation_wrote_it(serials: tuple[int, ...], year: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Örg"), x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]
    )
    end = BEGIN.replace(year=year)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer).last_update(BEGIN).next_update(end)
    builder = builder.add_extension(x509.CRLNumber(7), critical=False)
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(BEGIN)
        revoked = revoked.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        builder = builder.add_revoked_certificate(revoked.build())
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    first, second = read_revocations(b"# two\n" + pem + pem)
    assert first == second
    assert first.serials == set(serials)
    assert first.ends_at == end.timestamp()
    shouted = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "örg"), x509.NameAttribute(NameOID.COMMON_NAME, "Test  CA")]
    )
    for name, matches in ((issuer, True), (shouted, True), (x509.Name(issuer.rdns[1:]), False)):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(issuer)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(200)
            .not_valid_before(BEGIN)
            .not_valid_after(end)
            .sign(key, hashes.SHA256())
        )
        found = parse_certificate(certificate.public_bytes(serialization.Encoding.DER))
        assert found.serial == 200
        assert (found.issuer_name == first.issuer_name) is matches


@given(st.binary(max_size=200))
def test_whatever_claims_to_be_a_crl_is_one_or_refused(data: bytes) -> None:
    pem = b"-----BEGIN X509 CRL-----\n" + base64.b64encode(data) + b"\n-----END X509 CRL-----\n"
    with contextlib.suppress(ValueError):
        read_revocations(pem)
