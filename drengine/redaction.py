"""Secrets are left out of what people and programs read: by how they look, and by their value where it is known."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from drengine.model.grants import without_secret
from drengine.process.environment import passed_on
from drengine.process.given import given, references

REDACTED = "***"
SECRET_CHARACTERS_MIN = 6
"""A shorter value is redacted by its name only: it may be part of any word."""

_NAME = r"(?:password|passwd|passphrase|secret|token|credential|api[_-]?key|private[_-]?key|authorization|cookie)"
_REST = r"[\w-]{0,64}"
_HEADER = r"(?:authorization|cookie2?)[ \t]{0,9}:[ \t]{0,9}"
_PEM = r"[A-Z ]{0,40}PRIVATE KEY-----"
_QUOTED = r"\"[^\"\n]*\"|'[^'\n]*'"
_PATTERNS = (
    (re.compile(rf"-----BEGIN {_PEM}.*?(?:-----END {_PEM}|\Z)", re.S), "***"),
    (re.compile(rf"\A[A-Za-z0-9+/=\s]*-----END {_PEM}"), "***"),  # its beginning was cut off
    (re.compile(r"(\w[\w+.-]{0,40}://[^\s:/@]*):[^\s@/]*@"), r"\1:***@"),
    (re.compile(rf"^([<> \t*]*(?:proxy-|set-)?{_HEADER})\S[^\n]*", re.I | re.M), r"\1***"),
    (re.compile(rf"\b({_HEADER})[^\s\"'*][^\"'\n]*", re.I), r"\1***"),
    (
        re.compile(
            rf"({_NAME}{_REST}\\*['\"]?\s{{0,9}}[:=]\s{{0,9}})"
            rf"(?:\\+\"(?:(?!\\+\")[^\n])*\\+\"|{_QUOTED}|(?:bearer|basic|digest)\s+[^\s,}}]+|[^\s,}}]+)",
            re.I,
        ),
        r"\1***",
    ),
    (re.compile(rf"(?<![\w-])(--?(?:[\w]{{1,20}}-)?{_NAME}{_REST}\s+)(?:{_QUOTED}|[^\s-]\S*)", re.I), r"\1***"),
)
_SECRET_NAME = re.compile(_NAME, re.I)


def without_secrets(text: str, values: Collection[str] = ()) -> str:
    """`text` fit for logs, reports and the registry (fault 59).

    Masked are values of names that look like secrets (``password=``, ``"token": ``, ``--api-key``), headers with
    credentials, passwords of URLs, private keys; and each of `values`, wherever it stands.
    """
    for value in sorted(values, key=len, reverse=True):  # one may be part of another
        text = text.replace(value, "***")
    text = without_secret(text)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def secret_values(runbook: object) -> frozenset[str]:
    """What a runbook, as builtins, and the environment that its commands inherit give under names of secrets; and
    whatever its references (``${env:NAME}``) stand for.
    """
    told = [*_secrets(runbook), *_given(runbook), *_secrets({name: os.environ.get(name, "") for name in passed_on()})]
    words = {word for text in told for word in (text, text.split(" ")[-1])}  # "Bearer TOKEN": the token as well
    return frozenset(word for word in words if len(word) >= SECRET_CHARACTERS_MIN)


def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is a secret."""
    return _SECRET_NAME.search(name) is not None


def _given(value: Any) -> Iterator[str]:
    for way, what in references_in(value):
        with contextlib.suppress(ValueError):  # whoever uses it says so
            yield given(way, what)


def references_in(value: Any) -> Iterator[tuple[str, str]]:
    """Ways and names of all references to secrets in a value, as builtins."""
    if isinstance(value, str):
        yield from references(value)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from references_in(each)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for each in value:
            yield from references_in(each)


def redacted(value: Any, values: Collection[str]) -> Any:
    """A value, as builtins, with each of `values` left out of all texts in it."""
    if isinstance(value, str):
        for each in sorted(values, key=len, reverse=True):
            value = value.replace(each, REDACTED)
        return value
    if isinstance(value, Mapping):
        return {key: redacted(each, values) for key, each in value.items()}
    return [redacted(each, values) for each in value] if isinstance(value, (list, tuple)) else value


def _secrets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            if isinstance(each, str) and is_secret_name(str(name)):
                yield each
            yield from _secrets(each)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for before, each in zip(("", *value), value, strict=False):
            is_option = isinstance(before, str) and before.startswith("-") and "=" not in before
            if is_option and isinstance(each, str) and is_secret_name(before):
                yield each
            yield from _secrets(each)
