"""What can go wrong with identities and the CA: kinds with exit codes 3 and 4."""

from __future__ import annotations

from drengine.model.errors import error_kind

CA_UNUSABLE = error_kind(
    "ca-unusable",
    3,
    "The CA's directory can't be used: it is missing, damaged or unsafe, or its key's passphrase is wrong.",
    "The message names the file and what is wrong with it; docs/security.md says what lies in a CA's directory.",
)
CA_REFUSED = error_kind(
    "ca-refused",
    4,
    "The CA does not do what was asked: a certificate that may not be, or one that it does not know.",
    "The message says why; `drengine ca list` shows what was issued.",
)
