"""Proofs of holding a key: signatures over what is asked or ordered, by whichever kind of key a certificate has."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from drengine.identity.errors import EnrolmentError


def sign(key: object, data: bytes) -> bytes:
    """A signature by a private key.

    Raises:
        EnrolmentError: request-refused: it is of a kind that no certificate of ours has.
    """
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(data, ec.ECDSA(hashes.SHA256()))
        case ed25519.Ed25519PrivateKey():
            return key.sign(data)
        case rsa.RSAPrivateKey():
            return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    raise EnrolmentError("request-refused", "the present key is of a kind that can't be used")


def is_signed(key: object, data: bytes, signature: bytes) -> bool:
    """Whether the holder of this public key has signed it."""
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            case ed25519.Ed25519PublicKey():
                key.verify(signature, data)
            case rsa.RSAPublicKey():
                key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            case _:
                return False
    except InvalidSignature:
        return False
    return True
