"""Names that cross a trust boundary: sources and volumes."""

from __future__ import annotations

import re

from drengine.model.errors import BAD_NAME, DrengineError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)


def check_name(text: str, *, what: str) -> str:
    """Return `text` if it is a safe name: it may become a file name, a topic level, a label value.

    Raises:
        DrengineError: BAD_NAME. Separators, control characters, `..` and upper case are all refused.
    """
    if not _NAME.fullmatch(text) or ".." in text:
        raise DrengineError(BAD_NAME, f"{what} {text[:80]!r} is not a valid name")
    return text
