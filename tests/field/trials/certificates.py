"""Certificates that are renewed while sessions live."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from cryptography import x509

from drengine.transport.files import TlsFiles
from drengine.transport.tls import client_context
from tests.field.ground import Ground, Pair
from tests.field.load import scatter
from tests.field.trial import trial
from tests.transport.certificates import Authority

MIB = 1 << 20


@trial(seconds_max=150)
def renewed_certificates_are_used_without_a_restart(ground: Ground) -> None:
    """Certificates are renewed on disk, with a hang-up and without: the new ones are shown, and all goes on."""
    authority = Authority.make(ground.folder / "tls")
    files = {name: authority.issue(name) for name in ("target", "shop")}
    options = {name: {"tls": _section(each)} for name, each in files.items()}
    pair = Pair(
        ground, {"data": ground.image("data", 4 * MIB)}, target=options["target"], agent=options["shop"]
    ).start()
    for hang_up in (True, False):
        renewed = _serial(authority.issue("target").certificate)
        authority.issue("shop")
        if hang_up:
            for process in (pair.target, pair.process):
                process.send_signal(signal.SIGHUP)
        ground.until(
            "the new certificate is shown", lambda renewed=renewed: _shown(pair.port, files["shop"]) == renewed
        )
        scatter(ground, pair, "data", 20)
        pair.until_continuous()
        pair.until_equal()
        assert pair.target.poll() is None
        assert pair.process.poll() is None


def _section(files: TlsFiles) -> dict[str, str]:
    return {"certificate": str(files.certificate), "key": str(files.key), "ca": str(files.ca)}


def _serial(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


def _shown(port: int, files: TlsFiles) -> int:
    """Serial number of the certificate that the target shows to somebody who comes now."""
    context = client_context(files)
    with (
        socket.create_connection(("127.0.0.1", port), 5.0) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as talk,
    ):
        shown = talk.getpeercert(binary_form=True)
    assert shown
    return x509.load_der_x509_certificate(shown).serial_number
