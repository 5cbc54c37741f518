"""The JSON Schema of runbooks, so that editors complete them and explain each key.

It comes from the classes of a runbook's values, and from the kinds of steps that are installed: what each is for, and
the settings that belong to it. It says what can be said without looking at two places at once; `drengine runbook
validate` says the rest.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from itertools import pairwise
from typing import Any

import msgspec

from drengine.failover.runbook.values import (
    RETRIES_MAX,
    Addresses,
    AddressRule,
    Conversion,
    Fence,
    HostFence,
    InterfaceSettings,
    Launch,
    LaunchInterface,
    Objectives,
    Runbook,
    Service,
    Source,
    Step,
    Wave,
)
from drengine.failover.steps.kinds import step_kinds

SCHEMA_ID = "urn:drengine:runbook:1"
_NAME = {"pattern": r"^[a-z0-9][a-z0-9._-]{0,62}$"}
_ARGV = {"minItems": 1}
_MORE: dict[tuple[str, str], dict[str, Any]] = {
    ("Runbook", "version"): {"const": 1},
    ("Runbook", "name"): _NAME,
    ("Runbook", "sources"): {"minProperties": 1, "propertyNames": _NAME},
    ("Runbook", "waves"): {"minItems": 1},
    ("Wave", "name"): _NAME,
    ("Step", "retries"): {"minimum": 0, "maximum": RETRIES_MAX},
    ("Step", "modes"): {"minItems": 1},
    ("Fence", "command"): _ARGV,
    ("Fence", "homes"): {"propertyNames": _NAME},
    ("HostFence", "command"): _ARGV,
    ("Fence", "retries"): {"minimum": 0, "maximum": RETRIES_MAX},
    ("Launch", "retries"): {"minimum": 0, "maximum": RETRIES_MAX},
}
"""What the types of a runbook's values do not say, by class and key."""


_CLASSES = (
    *(Runbook, Objectives, Source, Service, Launch, Fence, HostFence, Wave, Step),
    *(Addresses, AddressRule, InterfaceSettings, LaunchInterface, Conversion),
)


def runbook_schema() -> dict[str, Any]:
    """The schema."""
    actions = step_kinds().actions
    settings = [kind.settings_type for kind in actions.values()]
    made, definitions = msgspec.json.schema_components((Runbook, *settings), ref_template="#/$defs/{name}")
    texts = _field_descriptions(*_CLASSES, *settings)
    for name, definition in definitions.items():
        for key, each in definition.get("properties", {}).items():
            definition["properties"][key] = _property(name, key, each, texts)
    keys = {}
    for (name, kind), each in zip(actions.items(), made[1:], strict=True):
        keys[name] = {"description": kind.help, **each}
        (definitions[each["$ref"].rpartition("/")[2]] if "$ref" in each else keys[name]).update(kind.schema)
    definitions["Step"] = _step_schema(definitions["Step"], keys)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "drengine runbook",
        **made[0],
        "$defs": definitions,
    }


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(runbook_schema(), indent=1) + "\n"


def _step_schema(made: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """A step has one key for each kind instead of its actions, and one of them."""
    properties: dict[str, Any] = {}
    for key, each in made["properties"].items():
        properties |= keys if key == "actions" else {key: each}
    return {**made, "properties": properties, "oneOf": [{"required": [name]} for name in keys]}


def _property(name: str, key: str, found: dict[str, Any], texts: dict[tuple[str, str], str]) -> dict[str, Any]:
    options = [each for each in found.get("anyOf", ()) if each.get("type") != "null"]
    if len(options) == 1:  # what may be left out may not be written as null
        found = options[0]
    described = {"description": texts[name, key]} if (name, key) in texts else {}
    return {**described, **found, **_MORE.get((name, key), {})}


def _field_descriptions(*classes: Any) -> dict[tuple[str, str], str]:
    """The texts under the fields of the classes, by class and key."""
    found = {}
    for each in classes:
        if not isinstance(each, type) or not issubclass(each, msgspec.Struct):
            continue
        keys = {field.name: field.encode_name for field in msgspec.structs.fields(each)}
        nodes = [node for base in each.__mro__ for node in _nodes(base)]
        for field, text in pairwise(nodes):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[each.__name__, keys[name]] = " ".join(words.split())
                case _:
                    continue
    return found


def _nodes(each: type) -> list[ast.stmt]:
    """What the body of a class of ours consists of."""
    if each.__module__.partition(".")[0] in ("builtins", "msgspec"):
        return []
    body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
    return body.body if isinstance(body, ast.ClassDef) else []
