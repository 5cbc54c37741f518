"""The text of a configuration file, from values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drengine_agent.config import parse_config


def configuration_text(values: Mapping[str, Any]) -> str:
    """A configuration file with these values, checked as the agent will check it.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    parse_config(dict(values))
    return toml_text(values)


def toml_text(values: Mapping[str, Any]) -> str:
    """Values as TOML."""
    return "\n".join(_lines(values)).lstrip("\n") + "\n"


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`: tables are merged, everything else is replaced."""
    found = dict(values)
    for key, value in changes.items():
        before = found.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        found[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return found


def _lines(values: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """As TOML: plain values first, then tables."""
    for key, value in values.items():
        if not _is_table(value):
            yield f"{key} = {_written(value)}"
    for key, value in values.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, Mapping):
            yield from ("", f"[{path}]", *_lines(value, path))
        elif _is_table(value):
            for each in value:
                yield from ("", f"[[{path}]]", *_lines(each, path))


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and any(isinstance(x, Mapping) for x in value)
    )


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, int | float):
        return str(value)
    return '"' + "".join(_escaped(each) for each in str(value)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"
