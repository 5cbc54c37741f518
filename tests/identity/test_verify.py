"""A certificate in a message is believed exactly when OpenSSL would believe it in a session."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from drengine.identity.authority import Authority, Issued
from drengine.identity.keys import new_key
from drengine.identity.names import Identity, Role
from drengine.identity.verify import CLIENT, SERVER, NotBelievedError, Trust
from tests.transport.certificates import NOW
from tests.transport.certificates import Authority as Foreign

PEM = serialization.Encoding.PEM


def issued(authority: Authority, role: Role = Role.ORCHESTRATOR, name: str = "boss") -> Issued:
    return authority.issue(Identity("main", role, name), new_key().public_key(), hosts=("127.0.0.1",))


def refused(trust: Trust, chain: bytes, now: float | None = None, **options: object) -> str:
    with pytest.raises(NotBelievedError) as error:
        trust.believe(chain, now=time.time() if now is None else now, **options)  # type: ignore[arg-type]
    return error.value.code


def openssl(chain: bytes, ca: bytes, folder: Path, *options: str) -> bool:
    (folder / "chain.pem").write_bytes(chain)
    (folder / "trusted.pem").write_bytes(ca)
    files = ("-CAfile", "trusted.pem", "-untrusted", "chain.pem", "chain.pem")
    return not subprocess.run(
        ["openssl", "verify", *options, *files], check=False, cwd=folder, capture_output=True
    ).returncode


def test_a_certificate_proves_whose_it_is_and_its_key(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    key = new_key()
    made = authority.issue(Identity("main", Role.ORCHESTRATOR, "boss"), key.public_key())
    trust = Trust.read(authority.certificate, authority.write_crl())
    for form in (
        made.certificate,
        x509.load_pem_x509_certificate(made.certificate).public_bytes(serialization.Encoding.DER),
    ):
        found = trust.believe(form, now=time.time())
        assert str(found.identity) == "drengine://main/orchestrator/boss"
        assert (found.key, found.serial) == (key.public_key(), int(made.entry.serial, 16))
        assert (found.common_name, found.ends_at) == ("boss", made.entry.ends_at)


def test_time_purpose_and_issuer_are_judged(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    other = Authority.create(tmp_path / "other", "main")
    made, trust = issued(authority), Trust.read(authority.certificate)
    assert refused(trust, made.certificate, made.entry.begins_at - 1) == "tls-peer-early"
    assert refused(trust, made.certificate, made.entry.ends_at) == "tls-peer-expired"
    assert refused(trust, made.certificate, purpose=SERVER) == "tls-peer-purpose"
    assert refused(trust, issued(authority, Role.TARGET).certificate, purpose=CLIENT) == "tls-peer-purpose"
    assert refused(trust, issued(other).certificate) == "tls-peer-issuer"
    assert refused(Trust(()), made.certificate) == "tls-peer-issuer"
    for nonsense in (b"", b"0", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        assert refused(trust, nonsense) == "tls-not-pem"
    assert refused(trust, made.certificate * 6) == "tls-peer-issuer"


def test_a_certificate_that_can_only_half_be_read_is_none(tmp_path: Path) -> None:
    """Anybody may show one, to the authority and in a signed message; its names are only read when they are used."""
    trust = Trust.read(Authority.create(tmp_path / "ca", "main").certificate)
    stranger = Authority.create(tmp_path / "stranger", "main")
    der = x509.load_pem_x509_certificate(issued(stranger, name="nobodyhere").certificate).public_bytes(
        serialization.Encoding.DER
    )
    assert refused(trust, der.replace(b"nobodyhere", b"no\xff\xfedyhere")) == "tls-not-pem"


def test_a_forged_signature_is_no_signature(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    der = x509.load_pem_x509_certificate(issued(authority).certificate).public_bytes(serialization.Encoding.DER)
    trust = Trust.read(authority.certificate)
    for at in range(len(der) - 64, len(der)):
        assert refused(trust, der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]) in ("tls-peer-issuer", "tls-not-pem")


def test_whoever_is_on_the_list_is_refused_and_a_list_that_does_not_count_lets_nobody_in(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    other = Authority.create(tmp_path / "other", "main")
    kept, gone = issued(authority), issued(authority, name="gone")
    authority.revoke(serial=gone.entry.serial)
    crl = (tmp_path / "ca/crl.pem").read_bytes()
    trust = Trust.read(authority.certificate + other.certificate, other.write_crl() + crl)
    assert trust.believe(kept.certificate, now=time.time()).common_name == "boss"
    assert refused(trust, gone.certificate) == "tls-peer-revoked"
    for useless in (b"", other.write_crl(), authority.write_crl(seconds=-600)):
        late = time.time() + 2
        assert refused(Trust.read(authority.certificate, useless), kept.certificate, late) == "tls-crl"
    with pytest.raises(NotBelievedError):
        Trust.read(authority.certificate, crl[:-60])


def test_a_certificate_of_another_ca_is_believed_through_its_intermediate(tmp_path: Path) -> None:
    root = Foreign.make(tmp_path / "root", "company root")
    middle = root.intermediate("company issuing")
    files = middle.issue("shop", uris=("drengine://main/agent/shop",))
    leaf, above = files.certificate.read_bytes(), middle.path.read_bytes()
    trust = Trust.read(root.path.read_bytes())
    for chain in (leaf + above, leaf):
        ours = openssl(chain, root.path.read_bytes(), tmp_path)
        if ours:
            assert str(trust.believe(chain, now=time.time()).identity) == "drengine://main/agent/shop"
        else:
            assert refused(trust, chain) == "tls-peer-issuer"
    assert trust.believe(root.issue("mill").certificate.read_bytes(), now=time.time()).identity is None
    two = middle.issue("two", uris=("drengine://main/agent/a", "drengine://main/agent/b"))
    assert refused(trust, two.certificate.read_bytes() + above) == "identity-malformed"


@pytest.mark.parametrize("limit", ["leaf", "depth", "constraint"])
def test_who_may_not_sign_has_not_signed(tmp_path: Path, limit: str) -> None:
    root = Foreign.make(tmp_path / "root", "company root")
    match limit:
        case "leaf":  # a party signs for another one
            files = root.issue("middle", usage=(ExtendedKeyUsageOID.CLIENT_AUTH,))
            key = serialization.load_pem_private_key(files.key.read_bytes(), None)
            middle = Foreign(root.folder, "middle", key, files.certificate)  # type: ignore[arg-type]
        case "depth":  # an intermediate with a path length of 0 makes another
            middle = root.intermediate("middle").intermediate("below")
        case _:  # a constraint that is not looked at here
            middle = constrained(root)
    chain = middle.issue("shop").certificate.read_bytes() + middle.path.read_bytes()
    if limit == "depth":
        chain += (root.folder / "middle.pem").read_bytes()
    assert not openssl(chain, root.path.read_bytes(), tmp_path, "-x509_strict" if limit == "leaf" else "-verbose")
    assert refused(Trust.read(root.path.read_bytes()), chain) in ("tls-peer-issuer", "tls-peer-refused")


def constrained(root: Foreign) -> Foreign:
    """An intermediate that may sign only for names that nobody here has."""
    middle = root.intermediate("middle")
    hour = datetime.timedelta(hours=1)
    everywhere = x509.IPAddress(ipaddress.ip_network("0.0.0.0/0"))
    excluded = x509.NameConstraints(permitted_subtrees=None, excluded_subtrees=[everywhere])
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "middle")]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, root.name)]))
        .public_key(middle.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - hour)
        .not_valid_after(NOW + hour)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(excluded, critical=True)
        .sign(root.key, hashes.SHA256())
    )
    middle.path.write_bytes(built.public_bytes(PEM))
    return middle
