"""Secrets that a text refers to rather than holds, so that nobody who keeps the text keeps them.

| reference | stands for |
|---|---|
| ``${env:NAME}`` | a variable of the environment of the process that uses the text |
| ``${file:/PATH}`` | a file's content, without the line feed at its end |
| ``${credential:NAME}`` | a credential that systemd gives this service (``LoadCredential=``) |
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

BYTES_MAX = 64 << 10
REFERENCE = r"\$\{(?P<way>env|file|credential):(?P<what>[^}\0]{1,500})\}"
_REFERENCE = re.compile(REFERENCE)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)


def given(way: str, what: str) -> str:
    """What ``${WAY:WHAT}`` stands for, here and now.

    Raises:
        ValueError: there is no such thing, or it can't be read.
    """
    if way == "env":
        if what not in os.environ:
            raise ValueError(f"the environment of this process has no {what}")
        return os.environ[what]
    if way == "file":
        path = Path(what)
        if not path.is_absolute():
            raise ValueError(f"{what} is no absolute path")
    else:
        folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
        if not folder or not _NAME.fullmatch(what):
            raise ValueError(f"systemd gives this process no credential {what}")
        path = Path(folder) / what
    try:
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
        if len(content) > BYTES_MAX:
            raise ValueError(f"{path} is larger than {BYTES_MAX} bytes")
        return content.decode().removesuffix("\n")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} holds no text") from error


def with_given(text: str) -> str:
    """`text` with what its references stand for.

    Raises:
        ValueError: one stands for nothing.
    """
    return _REFERENCE.sub(lambda match: given(match["way"], match["what"]), text)


def references(text: str) -> Iterator[tuple[str, str]]:
    """Ways and names of the references in a text."""
    for match in _REFERENCE.finditer(text):
        yield match["way"], match["what"]
