"""What a certificate says, as far as people and metrics are told it. Whether it is believed is OpenSSL's to judge.

Python's ssl module decodes only certificates that it has verified, and an expired one is just the kind that has to be
shown. So the few fields are read here, from DER (ITU-T X.690, RFC 5280), bounded, and without following anything.
"""

from __future__ import annotations

import base64
import ipaddress
import math
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

PEM_BYTES_MAX = 4 << 20
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_CRL_BLOCK = re.compile(r"-----BEGIN X509 CRL-----(.*?)-----END X509 CRL-----", re.DOTALL)

_INTEGER, _SEQUENCE = 0x02, 0x30
_UTC_TIME, _TIME = 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS, _URI, _IP = 0x82, 0x86, 0x87
_COMMON_NAME = bytes.fromhex("550403")
_SUBJECT_NAMES, _BASIC_CONSTRAINTS, _USAGE = (bytes.fromhex(text) for text in ("551d11", "551d13", "551d25"))
_PURPOSES = {bytes.fromhex("2b06010505070301"): "server", bytes.fromhex("2b06010505070302"): "client"}
_ANY_PURPOSE = bytes.fromhex("551d2500")

Name = tuple[tuple[bytes, str], ...]
"""A subject's or issuer's attributes with their values, as far as two that mean the same must compare equal."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate's own words.

    Attributes:
        subject, issuer: common names, empty where there is none.
        begins_at, ends_at: seconds since 1970 between which it is valid.
        names: DNS names and IP addresses that it is valid for.
        uris: other names that it bears, such as a party's identity.
        purposes: `server`, `client`: what it may be used for; None when it does not say, so for anything.
        is_authority: it may sign others.
    """

    subject: str
    issuer: str
    begins_at: float
    ends_at: float
    names: tuple[str, ...] = ()
    purposes: frozenset[str] | None = None
    is_authority: bool = False
    uris: tuple[str, ...] = ()
    serial: int = 0
    issuer_name: Name = ()


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL.

    Attributes:
        issuer_name: whose certificates it tells of.
        ends_at: seconds since 1970 until which it counts; without end where it does not say.
        serials: what is revoked.
    """

    issuer_name: Name
    ends_at: float
    serials: frozenset[int]


def read_revocations(pem: bytes) -> list[RevocationList]:
    """All CRLs of a PEM file; none is an empty list.

    Raises:
        ValueError: something that claims to be a CRL is none.
    """
    text = pem[:PEM_BYTES_MAX].decode("ascii", "replace")
    return [_parse_crl(base64.b64decode("".join(block.split()), validate=True)) for block in _CRL_BLOCK.findall(text)]


def _parse_crl(der: bytes) -> RevocationList:
    try:
        (_, signed), *_ = _elements(der)
        (_, body), *_ = _elements(signed)
        parts = list(_elements(body))
        if parts[0][0] == _INTEGER:
            parts.pop(0)  # the version
        _, (_, issuer), _, *rest = parts
        ends = _moment(*rest.pop(0)) if rest and rest[0][0] in (_UTC_TIME, _TIME) else math.inf
        entries = rest[0][1] if rest and rest[0][0] == _SEQUENCE else b""
        serials = frozenset(int.from_bytes(next(_elements(entry))[1], "big") for _, entry in _elements(entries))
        return RevocationList(_name(issuer), ends, serials)
    except (IndexError, StopIteration, ValueError) as error:
        raise ValueError(f"this is no CRL: {error}") from error


def read_certificates(pem: bytes) -> list[Certificate]:
    """All certificates of a PEM file, in its order; none is an empty list.

    Raises:
        ValueError: something that claims to be a certificate is none.
    """
    text = pem[:PEM_BYTES_MAX].decode("ascii", "replace")
    return [parse_certificate(ssl.PEM_cert_to_DER_cert(block)) for block in _BLOCK.findall(text)]


def parse_certificate(der: bytes) -> Certificate:
    """One certificate.

    Raises:
        ValueError: it is none.
    """
    try:
        (_, certificate), *_ = _elements(der)
        (_, body), *_ = _elements(certificate)
        parts = list(_elements(body))
        if parts[0][0] == _VERSION:
            parts.pop(0)
        (_, serial), _, (_, issuer), (_, validity), (_, subject), *rest = parts
        begins, ends = (_moment(*each) for each in _elements(validity))
        extensions = next((value for tag, value in rest if tag == _EXTENSIONS), b"")
        plain = Certificate(
            _common_name(subject),
            _common_name(issuer),
            begins,
            ends,
            serial=int.from_bytes(serial, "big"),
            issuer_name=_name(issuer),
        )
        return _extended(plain, extensions)
    except (IndexError, ValueError) as error:
        raise ValueError(f"this is no certificate: {error}") from error


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and values of what follows each other in `data`."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4:
                raise ValueError("a length is too long")
            length, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + length > len(data):
            raise ValueError("an element is cut short")
        yield tag, data[at : at + length]
        at += length


def _moment(tag: int, value: bytes) -> float:
    text = value.decode("ascii")
    if tag == _UTC_TIME:  # 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _TIME:
        raise ValueError("a moment is expected")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _name(name: bytes) -> Name:
    """How a text is encoded, its case and its spaces make no difference (RFC 5280, 7.1)."""
    return tuple(
        (kind, " ".join(value.decode("utf-8", "backslashreplace").lower().split()))
        for _, relative in _elements(name)
        for _, attribute in _elements(relative)
        for (_, kind), (_, value) in [tuple(_elements(attribute))]
    )


def _common_name(name: bytes) -> str:
    for _, relative in _elements(name):
        for _, attribute in _elements(relative):
            (_, kind), (_, value) = _elements(attribute)
            if kind == _COMMON_NAME:
                return _printable(value.decode("utf-8", "replace"))
    return ""


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _extended(plain: Certificate, extensions: bytes) -> Certificate:
    found: dict[bytes, bytes] = {}
    for _, sequence in _elements(extensions):
        for _, extension in _elements(sequence):
            (_, kind), *_, (_, value) = _elements(extension)
            found[kind] = value
    return replace(
        plain,
        names=tuple(_names(found.get(_SUBJECT_NAMES, b""))),
        uris=tuple(_uris(found.get(_SUBJECT_NAMES, b""))),
        purposes=_purposes(found[_USAGE]) if _USAGE in found else None,
        is_authority=_is_authority(found.get(_BASIC_CONSTRAINTS, b"")),
    )


def _names(value: bytes) -> Iterator[str]:
    for _, sequence in _elements(value):
        for tag, name in _elements(sequence):
            if tag == _DNS:
                yield _printable(name.decode("ascii", "replace"))
            elif tag == _IP and len(name) in (4, 16):
                yield str(ipaddress.ip_address(name))


def _uris(value: bytes) -> Iterator[str]:
    for _, sequence in _elements(value):
        for tag, name in _elements(sequence):
            if tag == _URI:
                yield _printable(name.decode("ascii", "replace"))


def _purposes(value: bytes) -> frozenset[str] | None:
    kinds = {kind for _, sequence in _elements(value) for _, kind in _elements(sequence)}
    if _ANY_PURPOSE in kinds:
        return None
    return frozenset(_PURPOSES[kind] for kind in kinds if kind in _PURPOSES)


def _is_authority(value: bytes) -> bool:
    first = next((each for _, sequence in _elements(value) for each in _elements(sequence)), (0, b""))
    return first[0] == 0x01 and first[1] != b"\0"
