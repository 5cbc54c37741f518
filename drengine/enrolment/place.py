"""A party's certificate on its host: a folder whose files change while others read them.

    certificate.pem -> current/certificate.pem      the names that configurations give
    key.pem         -> current/key.pem
    client-cert.pem, client-key.pem, ca-cert.pem    the same, as libnbd and QEMU call them
    current         -> pair-SERIAL                  replaced by one rename, so that both change together
    pair-SERIAL/                                    a certificate with its key
    ca.pem, crl.pem                                 whom to believe, and whom no more
    authority.json                                  whom to ask, so that renewing needs no option
    pending.key                                     a key that has no certificate yet

A process that is killed at any moment leaves the old pair or the new one. What else it leaves is removed by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from drengine.config import ADDRESS, Address
from drengine.durable import replace_durably, sync_directory
from drengine.enrolment.messages import version_of
from drengine.identity.errors import EnrolmentError
from drengine.identity.keys import new_key, write_key
from drengine.ownership import give_path_to_owner, make_directory
from drengine.transport.files import AUTHORITY_FILE, CRL_FILE, TlsFiles

CERTIFICATE_FILE, KEY_FILE, CA_FILE = "certificate.pem", "key.pem", "ca.pem"
_CURRENT, _PENDING, _PAIR = "current", "pending.key", "pair-"
_PEM = serialization.Encoding.PEM
_AGAIN_SECONDS = 0.05
_NBD_NAMES = {
    "client-cert.pem": f"{_CURRENT}/{CERTIFICATE_FILE}",
    "client-key.pem": f"{_CURRENT}/{KEY_FILE}",
    "ca-cert.pem": CA_FILE,
}
"""What libnbd and QEMU call them."""


class _Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """authority.json"""

    address: str


class Place:
    """The folder of one party."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def files(self) -> TlsFiles:
        """The files, as a configuration names them."""
        return TlsFiles(
            self.folder / CERTIFICATE_FILE, self.folder / KEY_FILE, self.folder / CA_FILE, self.folder / CRL_FILE
        )

    @property
    def is_enrolled(self) -> bool:
        """Whether a certificate lies here."""
        return (self.folder / CERTIFICATE_FILE).exists()

    @property
    def authority(self) -> Address | None:
        """Whom to ask; None where nobody has enrolled this party."""
        path = self.folder / AUTHORITY_FILE
        try:
            return ADDRESS.parse(msgspec.json.decode(path.read_bytes(), type=_Remembered).address)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise EnrolmentError("folder-unusable", f"{path}: {error}") from error

    def certificate(self) -> x509.Certificate:
        """The one in use.

        Raises:
            EnrolmentError: folder-unusable.
        """
        with self._reading():
            return x509.load_pem_x509_certificate((self.folder / CERTIFICATE_FILE).read_bytes())

    def pair(self) -> tuple[x509.Certificate, object]:
        """The certificate in use with its key, of one issue.

        Raises:
            EnrolmentError: folder-unusable.
        """
        with self._reading():
            files = self.files.settled()
            certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            return certificate, serialization.load_pem_private_key(files.key.read_bytes(), None)

    def authorities(self) -> str:
        """The CAs that are trusted, in PEM.

        Raises:
            EnrolmentError: folder-unusable.
        """
        with self._reading():
            return (self.folder / CA_FILE).read_text(encoding="ascii")

    def revocations(self) -> str:
        """The CRLs, in PEM; empty where there are none yet.

        Raises:
            EnrolmentError: folder-unusable.
        """
        with self._reading():
            return self._text(CRL_FILE)

    @property
    def version(self) -> str:
        """Names the CAs and the CRLs that lie here."""
        with self._reading():
            return version_of(*(self._text(name) for name in (CA_FILE, CRL_FILE)))

    def make(self) -> None:
        """Make the folder, where it is missing.

        Raises:
            EnrolmentError: folder-unusable.
        """
        with self._writing():
            make_directory(self.folder, mode=0o700)

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """While nobody else enrols, renews or takes news here, in this process or another.

        It is held while the authority is asked, so whoever waits must not hold up the loop of whoever has it.

        Raises:
            EnrolmentError: folder-unusable.
        """
        self.make()
        with self._writing():
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_AGAIN_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def pending_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that waits for its certificate: made once, so that whoever asks again asks for the same one.

        Raises:
            EnrolmentError: folder-unusable.
        """
        path = self.folder / _PENDING
        with self._writing():
            with contextlib.suppress(OSError, ValueError):
                found = serialization.load_pem_private_key(path.read_bytes(), None)
                if isinstance(found, ec.EllipticCurvePrivateKey):
                    return found
            key = new_key()
            replace_durably(path, write_key(key), mode=0o600)
            return key

    def take(self, certificate: bytes, key: ec.EllipticCurvePrivateKey, authority: Address) -> None:
        """Use this certificate with its key from now on. Call `believe` before, for the CAs that go with it.

        Raises:
            EnrolmentError: folder-unusable.
        """
        with self._writing():
            self._adopt()
            serial = x509.load_pem_x509_certificate(certificate).serial_number
            current = self.folder / _CURRENT
            before = str(current.readlink()) if current.is_symlink() else ""
            pair = self._new_pair(f"{_PAIR}{serial:x}", certificate, write_key(key))
            remembered = msgspec.json.encode(_Remembered(str(authority)))
            replace_durably(self.folder / AUTHORITY_FILE, remembered, mode=0o644)
            self._link(_CURRENT, pair)
            for name in (CERTIFICATE_FILE, KEY_FILE):
                self._link(name, f"{_CURRENT}/{name}")
            for name, file in _NBD_NAMES.items():
                self._link(name, file)
            self._clean({pair, before})  # somebody may be reading the pair before

    def believe(self, ca: str, crl: str) -> None:
        """Trust these CAs, and nobody on these lists. The lists come first: one is needed for each CA.

        Raises:
            EnrolmentError: folder-unusable.
        """
        with self._writing():
            for name, text in ((CRL_FILE, crl), (CA_FILE, ca)):
                if self._text(name) != text:
                    replace_durably(self.folder / name, text.encode(), mode=0o644)

    def _adopt(self) -> None:
        """Put a pair that was laid here as two files behind the link, without changing what is read."""
        plain = [self.folder / name for name in (CERTIFICATE_FILE, KEY_FILE)]
        if not all(path.is_file() and not path.is_symlink() for path in plain):
            return
        pair = self._new_pair(f"{_PAIR}before", *(path.read_bytes() for path in plain))
        self._link(_CURRENT, pair)
        for name in (CERTIFICATE_FILE, KEY_FILE):
            self._link(name, f"{_CURRENT}/{name}")

    def _new_pair(self, name: str, certificate: bytes, key: bytes) -> str:
        pair = self.folder / name
        make_directory(pair, mode=0o700)
        replace_durably(pair / KEY_FILE, key, mode=0o600)
        replace_durably(pair / CERTIFICATE_FILE, certificate, mode=0o644)
        return name

    def _link(self, name: str, to: str) -> None:
        path, aside = self.folder / name, self.folder / f"{name}.new"
        if path.is_symlink() and str(path.readlink()) == to:
            return
        aside.unlink(missing_ok=True)
        aside.symlink_to(to)
        give_path_to_owner(aside)
        aside.replace(path)
        sync_directory(self.folder)

    def _clean(self, kept: set[str]) -> None:
        (self.folder / _PENDING).unlink(missing_ok=True)
        for each in self.folder.glob(f"{_PAIR}*"):
            if each.name not in kept:
                shutil.rmtree(each, ignore_errors=True)

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return ""

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EnrolmentError("folder-unusable", f"{error.filename or self.folder}: {error.strerror}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise EnrolmentError("folder-unusable", f"{self.folder}: {error}") from error


def request_for(key: ec.EllipticCurvePrivateKey) -> str:
    """A certificate request in PEM: the key and the proof of holding it. Who we are, the token or certificate says."""
    built = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return built.public_bytes(_PEM).decode()
