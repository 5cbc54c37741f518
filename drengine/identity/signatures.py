"""Signatures under a party's own key: Ed25519, or ECDSA or RSA (PKCS #1 1.5) with SHA-256."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes

RSA_BITS_MIN = 2048


def sign(key: PrivateKeyTypes, content: bytes) -> bytes:
    """The signature of some bytes.

    Raises:
        ValueError: the key is of another kind.
    """
    match key:
        case ed25519.Ed25519PrivateKey():
            return key.sign(content)
        case ec.EllipticCurvePrivateKey():
            return key.sign(content, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            return key.sign(content, padding.PKCS1v15(), hashes.SHA256())
    raise ValueError("a key for signing is EC, Ed25519 or RSA")


def is_signed(key: CertificatePublicKeyTypes, signature: bytes, content: bytes) -> bool:
    """Whether the owner of a key has signed exactly these bytes."""
    try:
        match key:
            case ed25519.Ed25519PublicKey():
                key.verify(signature, content)
            case ec.EllipticCurvePublicKey():
                key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPublicKey() if key.key_size >= RSA_BITS_MIN:
                key.verify(signature, content, padding.PKCS1v15(), hashes.SHA256())
            case _:
                return False
    except InvalidSignature:
        return False
    return True
