"""Why TLS fails: a bounded code, what it means, and what to do about it, for each way in which it does.

The same fault has one code wherever it is found: `own-` when our certificate is at fault (found by reading our files,
or told by the peer in an alert), `peer-` when the peer's is.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

_CHECK = (
    "`check-config` of this program (`drengine target`, `drengine orchestrator`, `drengine-agent`) reads the files."
)
_PEER_CHECK = "`check-config` on that host reads them."


@dataclass(frozen=True, slots=True)
class Cause:
    """One way in which TLS fails.

    Attributes:
        code: a label for metrics and a word for scripts.
        meaning: what is wrong, as an end of a sentence.
        hint: what to do.
    """

    code: str
    meaning: str
    hint: str


CAUSES: dict[str, Cause] = {
    cause.code: cause
    for cause in (
        Cause(
            "tls-file-missing",
            "the file is not there",
            "Correct the path in the configuration, or put the file there.",
        ),
        Cause(
            "tls-file-unreadable",
            "the file can't be read",
            "Let the service's user read it: `chown` it to that user, `chmod 600` a key.",
        ),
        Cause(
            "tls-not-pem",
            "the file holds nothing of that kind in PEM",
            "PEM has lines like -----BEGIN CERTIFICATE-----; DER becomes PEM by `openssl x509 -inform der -in OLD -out "
            "NEW`, a key by `openssl pkey`. If certificate and key stand in each other's place, exchange them.",
        ),
        Cause(
            "tls-ca-empty",
            "the CA file holds no certificate",
            "Put the certificate of the CA that signs the peers there, in PEM.",
        ),
        Cause(
            "tls-key-encrypted",
            "the key has a passphrase, which nobody can type into a service",
            "Write it without: `openssl pkey -in KEY -out NEW`, and `chmod 600 NEW`.",
        ),
        Cause(
            "tls-key-mismatch",
            "the key does not belong to the certificate",
            "Both must be of one issue: was only one of the two renewed? "
            "`openssl x509 -in CERTIFICATE -noout -pubkey` and `openssl pkey -in KEY -pubout` must print the same.",
        ),
        Cause(
            "tls-key-weak",
            "a key is too short or a signature too weak to be trusted",
            "Issue certificates anew, with a key of EC P-256 or RSA 2048 bits or more, signed with SHA-256.",
        ),
        Cause(
            "tls-own-expired",
            "our certificate has expired",
            f"Renew it; it is taken up when the file changes. {_CHECK}",
        ),
        Cause(
            "tls-own-early",
            "our certificate is not valid yet",
            "Compare this host's clock with the certificate: `openssl x509 -in CERTIFICATE -noout -dates`.",
        ),
        Cause(
            "tls-own-purpose",
            "our certificate may not be used for this side",
            "Issue it with the extended key usage serverAuth for a target, clientAuth for whoever connects, or both.",
        ),
        Cause(
            "tls-own-issuer",
            "our certificate does not lead to the CA that the peer trusts",
            "Let that CA sign it; if an intermediate signed it, append the intermediate to the certificate's file. "
            "`openssl verify -CAfile CA -untrusted CERTIFICATE CERTIFICATE` shows the chain.",
        ),
        Cause(
            "tls-own-self-signed",
            "our certificate has signed itself",
            "Let a CA sign it, and give that CA to the peers.",
        ),
        Cause(
            "tls-own-name",
            "our certificate does not name the address that peers connect to",
            "Issue it with that DNS name or IP address as subjectAltName.",
        ),
        Cause(
            "tls-own-missing",
            "the peer wants a certificate, and we have none",
            "Configure certificate, key and ca at this side.",
        ),
        Cause(
            "tls-own-revoked",
            "our certificate was revoked",
            "Issue a new one, with a new key.",
        ),
        Cause(
            "tls-own-refused",
            "the peer refused our certificate and did not say why",
            "The peer's log says why: often a name that is not the address it connects to, or a clock that is wrong. "
            f"{_CHECK}",
        ),
        Cause(
            "tls-ca-expired", "every CA certificate in the CA file has expired", "Put the CA's new certificate there."
        ),
        Cause(
            "tls-ca-no-authority",
            "the CA file holds a certificate that may not sign others",
            "Name the CA's own certificate, not one that it has signed.",
        ),
        Cause(
            "tls-peer-expired",
            "the peer's certificate has expired",
            f"Renew it on the peer's host, which takes it up by itself; or this host's clock is wrong. {_PEER_CHECK}",
        ),
        Cause(
            "tls-peer-early",
            "the peer's certificate is not valid yet",
            "Compare the clocks of both hosts: one of them is wrong, or the certificate was made for later.",
        ),
        Cause(
            "tls-peer-issuer",
            "the peer's certificate does not lead to our CA",
            "Either another CA signed it: compare its issuer with the `ca` configured here. Or the peer does not send "
            f"the intermediate that signed it: append that to the certificate's file over there. {_PEER_CHECK}",
        ),
        Cause(
            "tls-peer-self-signed",
            "the peer's certificate has signed itself",
            "Let the CA configured here as `ca` sign the peer's certificate.",
        ),
        Cause(
            "tls-peer-signature",
            "the peer's certificate claims our CA, but another key has signed it",
            "Two CAs have one name, or the CA has a new key: put its current certificate into `ca` here.",
        ),
        Cause(
            "tls-peer-name",
            "the peer's certificate does not name the address that we connect to",
            "Connect by a name that is in it, or issue it anew on the peer's host with this one as subjectAltName.",
        ),
        Cause(
            "tls-peer-purpose",
            "the peer's certificate may not be used for that side",
            "Issue it anew with the extended key usage serverAuth for a target, clientAuth for an agent, or both.",
        ),
        Cause(
            "tls-peer-missing",
            "the peer showed no certificate",
            "Configure certificate, key and ca on the peer's host.",
        ),
        Cause(
            "tls-peer-revoked", "the peer's certificate was revoked", "Issue a new one for that host, with a new key."
        ),
        Cause(
            "tls-peer-refused",
            "the peer's certificate was refused",
            f"The message says why. {_PEER_CHECK}",
        ),
        Cause(
            "tls-peer-plain",
            "the peer does not speak TLS there",
            "Configure certificate, key and ca on the peer's host too, and check that the port is the right one.",
        ),
        Cause(
            "tls-version",
            "the two sides have no version of TLS in common",
            "Both need TLS 1.3: upgrade the older side's OpenSSL, or remove what limits it.",
        ),
        Cause(
            "tls-no-common",
            "the two sides have no cipher or key exchange in common",
            "Remove what limits them in either host's OpenSSL configuration.",
        ),
        Cause(
            "tls-broken-off",
            "the peer hung up during the TLS handshake",
            "The peer's log says why. It may have refused our certificate, not speak TLS there, or be overloaded.",
        ),
        Cause(
            "tls-crl",
            "no CRL that counts tells whether the peer's certificate is revoked",
            "Put the newest CRL of each CA in `ca` into the `crl` file: `drengine ca crl` signs one.",
        ),
        Cause(
            "identity-role",
            "the peer's certificate is of another role than this connection needs",
            f"Give each party a certificate of its own: `drengine ca issue` names the role. {_PEER_CHECK}",
        ),
        Cause(
            "identity-source",
            "the peer's certificate is of another source than the one that it wants to ship or read",
            "Give the agent the certificate of its own source, or its configuration the `source` that its certificate "
            "names.",
        ),
        Cause(
            "identity-site",
            "the peer's certificate is of another site",
            "Connect it to its own site's target, or issue it a certificate of this site.",
        ),
        Cause(
            "identity-missing",
            "the peer's certificate says no identity, and one is required here",
            "Issue it one by `drengine ca issue`, or with drengine://SITE/ROLE/NAME as URI in subjectAltName.",
        ),
        Cause(
            "identity-malformed",
            "the peer's certificate has an identity that can't be read, or several",
            "Issue it anew with one URI drengine://SITE/ROLE/NAME in subjectAltName (docs/security.md).",
        ),
        Cause("tls-failed", "TLS failed in a way of its own", f"The message is OpenSSL's. {_CHECK}"),
    )
}

_BY_VERIFY_CODE = {  # X509_V_ERR_*
    7: "tls-peer-signature",
    9: "tls-peer-early",
    10: "tls-peer-expired",
    18: "tls-peer-self-signed",
    **dict.fromkeys((2, 19, 20, 21, 24, 27, 79), "tls-peer-issuer"),
    **dict.fromkeys((3, 5, 8, 11, 12, 15, 16, 33, 35, 36, 44, 54), "tls-crl"),
    23: "tls-peer-revoked",
    26: "tls-peer-purpose",
    **dict.fromkeys((62, 63, 64), "tls-peer-name"),
    **dict.fromkeys((66, 67, 68), "tls-key-weak"),
}

_BY_REASON = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "tls-peer-missing",
    **dict.fromkeys(
        (
            "WRONG_VERSION_NUMBER", "WRONG_SSL_VERSION", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE",
            "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE", "BAD_RECORD_TYPE", "INVALID_CCS_MESSAGE",
        ),
        "tls-peer-plain",
    ),
    **dict.fromkeys(
        (
            "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE", "VERSION_TOO_LOW", "TLSV1_ALERT_PROTOCOL_VERSION",
        ),
        "tls-version",
    ),
    **dict.fromkeys(
        (
            "NO_SHARED_CIPHER", "NO_SUITABLE_KEY_SHARE", "NO_SUITABLE_SIGNATURE_ALGORITHM",
            "NO_SUITABLE_GROUPS", "SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        ),
        "tls-no-common",
    ),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "tls-own-expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "tls-own-revoked",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "tls-own-purpose",
    "TLSV1_ALERT_UNKNOWN_CA": "tls-own-issuer",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "tls-own-missing",
    **dict.fromkeys(
        (
            "SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "TLSV1_ALERT_ACCESS_DENIED",
            "TLSV1_ALERT_DECRYPT_ERROR",
        ),
        "tls-own-refused",
    ),
    "UNEXPECTED_EOF_WHILE_READING": "tls-broken-off",
    "KEY_VALUES_MISMATCH": "tls-key-mismatch",
    "KEY_TYPE_MISMATCH": "tls-key-mismatch",
    **dict.fromkeys(("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "DH_KEY_TOO_SMALL"), "tls-key-weak"),
}  # fmt: skip


def cause_of(error: ssl.SSLError) -> Cause:
    """What OpenSSL's error means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CAUSES[_BY_VERIFY_CODE.get(error.verify_code, "tls-peer-refused")]
    return CAUSES[_BY_REASON.get(error.reason or "", "tls-failed")]


def details_of(error: ssl.SSLError) -> str:
    """OpenSSL's own words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).replace("_", " ").lower()
