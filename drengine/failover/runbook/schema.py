"""The JSON Schema of runbooks, from the classes in values.py, so that editors complete them and explain each key.

It says what can be said without looking at two places at once; `drengine runbook validate` says the rest.
"""

from __future__ import annotations

import ast
import inspect
import json
from typing import Any

import msgspec

from drengine.failover.runbook import values
from drengine.failover.runbook.check import ACTIONS, RETRIES_MAX
from drengine.failover.runbook.values import Runbook

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
    ("Step", "command"): _ARGV,
    ("Step", "modes"): {"minItems": 1},
    ("Fence", "command"): _ARGV,
    ("Fence", "retries"): {"minimum": 0, "maximum": RETRIES_MAX},
    ("Launch", "retries"): {"minimum": 0, "maximum": RETRIES_MAX},
    ("HttpCheck", "status"): {"minimum": 100, "maximum": 599},
    ("TcpCheck", "port"): {"minimum": 1, "maximum": 65535},
    ("SqlCheck", "dsn"): {"pattern": "^(postgresql|sqlite)://"},
    ("DnsChange", "values"): {"minItems": 1},
    ("DnsChange", "ttl"): {"minimum": 0, "maximum": 2**31 - 1},
}
"""What the types do not say, by class and key."""


def runbook_schema() -> dict[str, Any]:
    """The schema."""
    made = msgspec.json.schema(Runbook)
    definitions: dict[str, Any] = made["$defs"]
    told = _field_descriptions()
    for name, definition in definitions.items():
        for key, each in definition.get("properties", {}).items():
            definition["properties"][key] = _property(name, key, each, told)
    definitions["Step"]["oneOf"] = [{"required": [action]} for action in ACTIONS]
    definitions["Notification"]["oneOf"] = [{"required": ["url"]}, {"required": ["command"]}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "drengine runbook",
        "$ref": made["$ref"],
        "$defs": definitions,
    }


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(runbook_schema(), indent=1) + "\n"


def _property(name: str, key: str, found: dict[str, Any], told: dict[tuple[str, str], str]) -> dict[str, Any]:
    options = [each for each in found.get("anyOf", ()) if each.get("type") != "null"]
    if len(options) == 1:  # what may be left out may not be written as null
        found = options[0]
    described = {"description": told[name, key]} if (name, key) in told else {}
    return {**described, **found, **_MORE.get((name, key), {})}


def _field_descriptions() -> dict[tuple[str, str], str]:
    """The texts under the fields of the classes, by class and key."""
    found = {}
    for node in ast.parse(inspect.getsource(values)).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    key = _WRITTEN.get(field.target.id, field.target.id)
                    found[node.name, key] = " ".join(str(text.value.value).split())
    return found


_WRITTEN = {"before_steps": "before", "after_steps": "then"}
