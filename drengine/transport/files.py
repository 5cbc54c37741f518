"""The files of a party's certificate, as configurations name them. Their content is not read here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from drengine.config.options import BAD_CONFIG
from drengine.model.errors import DrengineError

AUTHORITY_FILE, CRL_FILE = "authority.json", "crl.pem"
"""What enrolment keeps beside a certificate: whom to ask for the next one, and who was revoked."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: our certificate (with its chain), its key, the CA that signs peers, and the CRL of what it revoked."""

    certificate: Path
    key: Path
    ca: Path
    crl: Path | None = None

    @staticmethod
    def together(
        certificate: Path | None, key: Path | None, ca: Path | None, crl: Path | None = None, *, where: str
    ) -> TlsFiles | None:
        """The files of a configuration's section, which names the first three or none; None for none.

        Raises:
            DrengineError: BAD_CONFIG, naming `where`.
        """
        if certificate and key and ca:
            return TlsFiles(certificate, key, ca, crl)
        if certificate or key or ca or crl:
            raise DrengineError(BAD_CONFIG, f"{where} needs certificate, key and ca together")
        return None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that are named."""
        return (self.certificate, self.key, self.ca, *([self.crl] if self.crl else []))

    @property
    def place(self) -> Path | None:
        """The folder in which enrolment keeps our certificate; None for one that people bring."""
        folder = self.certificate.parent
        return folder if (folder / AUTHORITY_FILE).exists() else None

    def completed(self) -> TlsFiles:
        """With the CRL that enrolment keeps beside the certificate, where none is named."""
        if self.crl is None and self.place is not None and (self.place / CRL_FILE).exists():
            return replace(self, crl=self.place / CRL_FILE)
        return self

    def settled(self) -> TlsFiles:
        """With certificate and key of one issue: their names change to another pair at once, but we read one by one."""
        pair = self.certificate.resolve().parent
        if self.place is None or pair == self.place.resolve() or self.key.parent != self.certificate.parent:
            return self
        return replace(self, certificate=pair / self.certificate.name, key=pair / self.key.name)
