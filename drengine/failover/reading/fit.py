"""Does a tree have the shape of a runbook? Keys and types, by the classes of its values and by the kinds of steps.

Every mistake names its place.
"""

from __future__ import annotations

import shlex

from msgspec import inspect

from drengine.failover.runbook.document import Node, join
from drengine.failover.runbook.findings import Findings, did_you_mean, shown
from drengine.failover.runbook.values import Step
from drengine.failover.steps.kinds import step_kinds


def fit(node: Node, model: type, findings: Findings) -> None:
    """Note where `node` is not what `model` says."""
    _fit(node, inspect.type_info(model), "", findings)


def _fit(node: Node, wanted: inspect.Type, path: str, findings: Findings) -> None:
    match wanted:
        case inspect.UnionType(types=types):
            _fit(node, next(each for each in types if not isinstance(each, inspect.NoneType)), path, findings)
        case inspect.StructType():
            _fit_struct(node, wanted, path, findings)
        case inspect.DictType(value_type=value):
            if _is_mapping(node, path, findings):
                for key, each in (node.entries or {}).items():
                    _fit(each, value, join(path, key), findings)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            _fit_list(node, item, path, findings)
        case inspect.EnumType(cls=cls):
            known = [each.value for each in cls]
            if node.value not in known:
                hint = did_you_mean(node.written, known)
                findings.add("bad-value", node.place, path, f"{_found(node)} is none of the words allowed", hint)
        case inspect.Metadata(type=inspect.StrType(), extra=dict() as extra):
            if not isinstance(node.value, str):
                _wrong(node, path, extra["what"], _example_hint(node, extra), findings)
        case inspect.Metadata(type=type):
            _fit(node, type, path, findings)
        case inspect.StrType():
            if not isinstance(node.value, str):
                _wrong(node, path, "a text", _text_hint(node), findings)
        case inspect.IntType():
            if not isinstance(node.value, int) or isinstance(node.value, bool):
                _wrong(node, path, "a whole number", "Write digits, without quotes.", findings)
        case inspect.BoolType():
            if not isinstance(node.value, bool):
                _wrong(node, path, "true or false", "Write true or false, without quotes.", findings)
        case _:
            return


def _fit_struct(node: Node, wanted: inspect.StructType, path: str, findings: Findings) -> None:
    if not _is_mapping(node, path, findings):
        return
    entries = node.entries or {}
    fields = _fields(wanted)
    for key, each in entries.items():
        if key in fields:
            _fit(each, fields[key].type, join(path, key), findings)
        else:
            hint = did_you_mean(key, fields.keys() - entries.keys())
            findings.add("unknown-key", node.keys[key], join(path, key), f"there is no key {shown(key)} here", hint)
    for name, field in fields.items():
        if field.required and name not in entries:
            findings.add("missing-key", node.place, path, f"{name!r} is missing", f"Add {name}: here.")


def _fields(wanted: inspect.StructType) -> dict[str, inspect.Field]:
    """By key; the actions of a step are keys of the step itself, one for each kind."""
    fields = {each.encode_name: each for each in wanted.fields}
    if wanted.cls is Step:
        del fields["actions"]
        for name, kind in step_kinds().actions.items():
            fields[name] = inspect.Field(name, name, inspect.type_info(kind.settings_type), required=False)
    return fields


def _fit_list(node: Node, item: inspect.Type, path: str, findings: Findings) -> None:
    if node.items is None:
        _wrong(node, path, "a list", _list_hint(node, item), findings)
        return
    for number, each in enumerate(node.items):
        _fit(each, item, f"{path}[{number}]", findings)


def _is_mapping(node: Node, path: str, findings: Findings) -> bool:
    if node.entries is None:
        _wrong(node, path, "a mapping", "Write KEY: VALUE lines, indented by two spaces.", findings)
    return node.entries is not None


def _wrong(node: Node, path: str, wanted: str, hint: str, findings: Findings) -> None:
    findings.add("wrong-type", node.place, path, f"{wanted} belongs here, not {_found(node)}", hint)


def _found(node: Node) -> str:
    if node.entries is not None or node.items is not None or node.value is None:
        return node.what
    return shown(node.value)


def _text_hint(node: Node) -> str:
    if node.value is None:
        return "Give it a value, or remove the key."
    if node.entries is None and node.items is None:
        return f'Put it in quotes: "{node.written[:40]}".'
    return "Write a text."


def _example_hint(node: Node, extra: dict[str, str]) -> str:
    """A number for a duration is the usual mistake."""
    if extra["what"] == "a duration" and isinstance(node.value, (int, float)) and node.value > 0:
        return f"Write it with its unit: {node.written}s, {node.written}m."
    return f"Write for example {extra['example']}."


def _list_hint(node: Node, item: inspect.Type) -> str:
    """A command written as for a shell is the usual mistake."""
    if isinstance(node.value, str) and isinstance(item, inspect.StrType) and len(node.value) <= 200:
        try:
            words = shlex.split(node.value)
        except ValueError:
            words = []
        if words:
            return f"No shell is used; write the words as a list: [{', '.join(_quoted(word) for word in words)}]."
    return "Write each item in a line of its own, after '- '."


def _quoted(word: str) -> str:
    plain = word.replace("-", "").replace("/", "").replace(".", "").replace("_", "").isalnum() and word[0].isalpha()
    return word if plain or (word.startswith("/") and " " not in word) else '"' + word.replace('"', '\\"') + '"'
