"""The files of a party's certificate, as configurations name them. Nothing is read here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drengine.config.options import BAD_CONFIG
from drengine.model.errors import DrengineError


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
