"""Options as fields of frozen dataclasses, and the reader that fills them from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from drengine.config.kinds import TABLE, Kind
from drengine.model.errors import ACCESS_DENIED, DrengineError, error_kind
from drengine.ownership import barrier

BAD_CONFIG = error_kind(
    "bad-config",
    50,
    "The configuration file cannot be read or has a mistake.",
    "docs/configuration.md lists every option with its kind, default and meaning.",
)
CONFIG_BYTES_MAX = 1 << 20

T = TypeVar("T")


class _Required:
    """Stands where a default would."""


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Option:
    """What is known about an option: kept in its field's metadata."""

    help: str
    kind: Kind[Any] | None = None
    nested: type | None = None
    many: bool = False
    default: Any = REQUIRED
    example: Any = None
    check: Callable[[Any], object] | None = None


def option(
    kind: Kind[Any],
    *,
    help: str,
    default: Any = REQUIRED,
    example: Any = None,
    check: Callable[[Any], object] | None = None,
) -> Any:
    """A field of an options class.

    Args:
        kind: how it is written.
        help: one or two sentences, for people.
        default: its value when absent; REQUIRED if it must be given.
        example: shown where there is no default.
        check: called with the parsed value; raises ValueError or DrengineError.
    """
    known = Option(help, kind, default=default, example=example, check=check)
    return field(**_default(default), metadata={"option": known})


def section(nested: type[T], *, help: str) -> T:
    """A TOML table of further options; all defaults when absent."""
    made: Any = field(default_factory=nested, metadata={"option": Option(help, nested=nested, default=None)})
    return made  # type: ignore[no-any-return]


def tables(nested: type[T], *, help: str, needed: bool = True) -> tuple[T, ...]:
    """A TOML array of tables, each with the same options; at least one is `needed`, or none."""
    described = Option(help, nested=nested, many=True, default=REQUIRED if needed else ())
    made: Any = field(default=(), metadata={"option": described})
    return made  # type: ignore[no-any-return]


def _default(value: Any) -> dict[str, Any]:
    return {"default_factory": value.copy} if isinstance(value, dict) else {"default": value}


def options_of(cls: Any) -> dict[str, Option]:
    """The options of a class, in order."""
    return {each.name: each.metadata["option"] for each in dataclasses.fields(cls) if "option" in each.metadata}


def load(cls: type[T], path: Path, *, overrides: Mapping[str, Any] | None = None) -> T:
    """Read a TOML file into an options class.

    Args:
        cls: the class.
        path: the file.
        overrides: values of top-level options, as TOML would hold them, that win over the file's.

    Raises:
        DrengineError: BAD_CONFIG, naming file, key and what is wrong.
    """
    values = values_in(path)
    return parse(cls, {**values, **(overrides or {})}, where=str(path))


def values_in(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        DrengineError: BAD_CONFIG, ACCESS_DENIED.
    """
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_BYTES_MAX + 1)
    except PermissionError as error:
        raise DrengineError(ACCESS_DENIED, barrier(path)) from error
    except OSError as error:
        raise DrengineError(BAD_CONFIG, f"{path}: {error.strerror or error}") from error
    if len(text) > CONFIG_BYTES_MAX:
        raise DrengineError(BAD_CONFIG, f"{path} is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        values = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number or a nesting beyond reason
        raise DrengineError(BAD_CONFIG, f"{path}: {error}") from error
    return values


def parse(cls: type[T], values: Mapping[str, Any], *, where: str = "command line") -> T:
    """Fill an options class from plain values.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    return _fill(cls, values, where, "")


def _fill(cls: type[T], values: Mapping[str, Any], where: str, prefix: str) -> T:
    known = options_of(cls)
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise DrengineError(BAD_CONFIG, f"{where}: unknown option {prefix}{key[:60]}{meant}")
    filled: dict[str, Any] = {}
    for name, described in known.items():
        key = prefix + name
        if name in values:
            filled[name] = _value(described, values[name], where, key)
        elif described.default is REQUIRED:
            raise DrengineError(BAD_CONFIG, f"{where}: option {key} is missing ({described.help})")
    return cls(**filled)


def _value(described: Option, value: Any, where: str, key: str) -> Any:
    try:
        if described.nested is not None:
            if described.many:
                if not isinstance(value, list) or not value:
                    raise ValueError("one or more tables are needed")  # noqa: TRY301
                return tuple(
                    _fill(described.nested, TABLE.parse(each), where, f"{key}[{number}].")
                    for number, each in enumerate(value)
                )
            return _fill(described.nested, TABLE.parse(value), where, f"{key}.")
        assert described.kind is not None
        parsed = described.kind.parse(value)
        if described.check:
            described.check(parsed)
    except ValueError as error:
        raise DrengineError(BAD_CONFIG, f"{where}: option {key}: {error}") from error
    except DrengineError as error:
        if error.kind is BAD_CONFIG:
            raise
        raise DrengineError(BAD_CONFIG, f"{where}: option {key}: {error.message}", hint=error.hint) from error
    return parsed
