"""Certificates for tests: authorities and what they sign."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from drengine.transport.files import TlsFiles

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> Path:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    return path


@dataclass
class Authority:
    """A CA whose files lie in `folder`."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey
    path: Path

    @staticmethod
    def make(folder: Path, name: str = "test CA", *, days: tuple[float, float] = (-30, 30)) -> Authority:
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + days[0] * DAY)
            .not_valid_after(NOW + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        path = folder / "ca.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return Authority(folder, name, key, path)

    def intermediate(self, name: str) -> Authority:
        """Another authority, which this one has signed."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        path = self.folder / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return Authority(self.folder, name, key, path)

    def issue(
        self,
        name: str,
        *,
        days: tuple[float, float] = (-1, 1),
        host: str = "127.0.0.1",
        usage: tuple[x509.ObjectIdentifier, ...] = (
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ),
        password: bytes | None = None,
        self_signed: bool = False,
        now: datetime.datetime = NOW,
        uris: tuple[str, ...] = (),
        file: str = "",
    ) -> TlsFiles:
        """A certificate with its key, valid between these days from now; issued again, it takes the old one's place.

        `uris` are further names, `file` that of the files where it is not `name`.
        """
        names = [x509.IPAddress(ipaddress.ip_address(host)), *map(x509.UniformResourceIdentifier, uris)]
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(name if self_signed else self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .sign(key if self_signed else self.key, hashes.SHA256())
        )
        path = self.folder / f"{file or name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return TlsFiles(path, _write_key(path.with_suffix(".key"), key, password), self.path)
