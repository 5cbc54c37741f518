"""The reference page and the example file, from the options' own definitions."""

from __future__ import annotations

from typing import Any

from drengine.config.options import REQUIRED, Option, options_of


def reference(cls: type) -> str:
    """Markdown tables of every option of a class, nested ones after it."""
    return "\n\n".join(_tables(cls, ""))


def example(cls: type) -> str:
    """A commented TOML file with every option; those with defaults are commented out."""
    return "\n".join(_lines(cls, "")) + "\n"


def _tables(cls: type, path: str) -> list[str]:
    rows = ["| option | kind | default | meaning |", "|---|---|---|---|"]
    below: list[str] = []
    for name, each in options_of(cls).items():
        if each.nested is not None:
            heading = f"[[{path}{name}]]" if each.many else f"[{path}{name}]"
            below += [f"### `{heading}`\n\n{each.help}", *_tables(each.nested, f"{path}{name}.")]
        else:
            rows.append(f"| `{path}{name}` | {_kind(each)} | {_shown(each)} | {each.help} |")
    return [*(["\n".join(rows)] if len(rows) > 2 else []), *below]


def _kind(each: Option) -> str:
    return each.kind.name if each.kind else ""


def _shown(each: Option) -> str:
    if each.default is REQUIRED:
        return "needed"
    if each.default is None or each.default == () or each.kind is None:
        return "none"
    return f"`{each.kind.show(each.default)}`"


def _lines(cls: type, path: str, *, given: bool = True) -> list[str]:
    """Of one table; where it is not `given`, nothing of it counts until somebody uncomments it."""
    lines: list[str] = []
    below: list[str] = []
    for name, each in options_of(cls).items():
        if each.nested is not None:
            heading = f"[[{path}{name}]]" if each.many else f"[{path}{name}]"
            within = given and not (each.many and each.default is not REQUIRED)
            shown = heading if within else f"# {heading}"
            below += ["", f"# {each.help}", shown, *_lines(each.nested, f"{path}{name}.", given=within)]
            continue
        assert each.kind is not None
        lines.append(f"# {each.help}")
        value: Any = each.default if each.default not in (REQUIRED, None) else each.example
        written = each.kind.show(value) if value is not None else '""'
        lines.append(f"{name} = {written}" if each.default is REQUIRED and given else f"# {name} = {written}")
    return lines + below
