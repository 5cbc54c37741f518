"""Keys and requests in PEM: made, read and judged. P-256, which every TLS 1.3 peer knows."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from drengine.identity.errors import CA_REFUSED, CA_UNUSABLE
from drengine.model.errors import DrengineError

RSA_BITS_MIN = 2048


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def write_key(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key as PEM, encrypted where there is a passphrase."""
    hidden: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        hidden = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def read_key(pem: bytes, passphrase: bytes | None, *, where: Path) -> ec.EllipticCurvePrivateKey:
    """The private key of a file that is content `pem`.

    Raises:
        DrengineError: CA_UNUSABLE: there is none, or the passphrase is missing or wrong.
    """
    encrypted = b"ENCRYPTED PRIVATE KEY-----" in pem
    if encrypted and not passphrase:
        raise DrengineError(CA_UNUSABLE, f"{where} needs its passphrase: --passphrase-file or DRENGINE_CA_PASSPHRASE")
    try:
        key = serialization.load_pem_private_key(pem, passphrase if encrypted else None)
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "the passphrase is wrong, or the key is damaged" if encrypted else str(error)
        raise DrengineError(CA_UNUSABLE, f"{where}: {what}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DrengineError(CA_UNUSABLE, f"{where} holds a key of another kind than the CA makes")
    return key


def requested_key(pem: bytes) -> CertificatePublicKeyTypes:
    """The public key of a certificate request, whose sender has proved to hold the private one.

    Whatever else a request asks for is left aside: who a party is, the CA is told by its operator.

    Raises:
        DrengineError: CA_REFUSED.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        is_proved = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DrengineError(CA_REFUSED, f"this is no certificate request in PEM: {error}") from error
    if not is_proved:
        raise DrengineError(CA_REFUSED, "the request is not signed by the key that it names")
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey() if key.key_size >= RSA_BITS_MIN:
            return key
    raise DrengineError(CA_REFUSED, "the request's key is too weak: use EC P-256, P-384, Ed25519 or RSA of 2048 bits")
