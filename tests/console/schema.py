"""JSON Schema as far as OpenAPI uses it here: does a value fit, and values that might."""

from __future__ import annotations

import math
import re
from typing import Any

from hypothesis import strategies as st

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
KNOWN = {
    *("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "properties", "required", "additionalProperties"),
    *("items", "minItems", "minProperties", "propertyNames", "pattern", "minLength", "maxLength", "minimum", "maximum"),
    *("title", "description", "default", "examples", "$schema", "$id", "$defs", "contentMediaType"),
}


def mistakes(value: Any, schema: Any, root: Any, at: str = "$") -> list[str]:
    """Where `value` does not fit."""
    if schema is True or schema == {}:
        return []
    assert set(schema) <= KNOWN, f"unknown words in a schema: {set(schema) - KNOWN}"
    if "$ref" in schema:
        return mistakes(value, follow(schema["$ref"], root), root, at)
    found: list[str] = []
    for word, wanted in (("anyOf", any), ("oneOf", lambda fits: sum(fits) == 1), ("allOf", all)):
        if word in schema and not wanted([not mistakes(value, each, root, at) for each in schema[word]]):
            found.append(f"{at}: {word}")
    if "type" in schema:
        fits = isinstance(value, TYPES[schema["type"]]) and not (
            isinstance(value, bool) and schema["type"] != "boolean"
        )
        if not fits:
            return [*found, f"{at}: {value!r} is no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r} is none of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: {value!r} is not {schema['const']}")
    if isinstance(value, dict):
        found += [f"{at}: {each} is missing" for each in schema.get("required", ()) if each not in value]
        properties = schema.get("properties", {})
        for key, each in value.items():
            if key in properties:
                found += mistakes(each, properties[key], root, f"{at}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{at}: {key} is unknown")
            elif isinstance(schema.get("additionalProperties"), dict):
                found += mistakes(each, schema["additionalProperties"], root, f"{at}.{key}")
            found += mistakes(key, schema.get("propertyNames", {}), root, f"{at}.{key}")
        if len(value) < schema.get("minProperties", 0):
            found.append(f"{at}: too few")
    if isinstance(value, list):
        for number, each in enumerate(value):
            found += mistakes(each, schema.get("items", {}), root, f"{at}[{number}]")
        if len(value) < schema.get("minItems", 0):
            found.append(f"{at}: too few")
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            found.append(f"{at}: {value!r} does not match")
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
            found.append(f"{at}: too long or short")
    if isinstance(value, (int, float)) and not schema.get("minimum", -math.inf) <= value <= schema.get(
        "maximum", math.inf
    ):
        found.append(f"{at}: {value} is out of range")
    return found


def follow(reference: str, root: Any) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        root = root[part]
    return root


def values(schema: Any, root: Any) -> st.SearchStrategy[Any]:
    """Values that fit, and for strings some that nearly do."""
    if "$ref" in schema:
        return values(follow(schema["$ref"], root), root)
    if "anyOf" in schema:
        return st.one_of([values(each, root) for each in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "string":
            plain = st.text(max_size=min(40, schema.get("maxLength", 40)))
            return st.one_of(st.from_regex(schema["pattern"], fullmatch=True), plain) if "pattern" in schema else plain
        case "integer":
            return st.integers(schema.get("minimum", -(2**40)), schema.get("maximum", 2**40))
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "object":
            needed = {key: values(each, root) for key, each in schema.get("properties", {}).items()}
            must = {key: each for key, each in needed.items() if key in schema.get("required", ())}
            return st.fixed_dictionaries(must, optional={k: v for k, v in needed.items() if k not in must})
        case _:
            return st.none() | st.integers() | st.text(max_size=5)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
