"""Each public method says what it does, unless the method that it overrides says it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parents[2]
TREES = ("drengine", "agents/drengine_agent")
Method = ast.FunctionDef | ast.AsyncFunctionDef


def test_each_public_method_has_a_docstring_or_overrides_one_that_has() -> None:
    classes = {found.name: found for _, found in _classes()}
    mute = {
        f"{path}:{each.lineno} {found.name}.{each.name}" for path, found in _classes() for each in _mute(found, classes)
    }
    assert mute == set(), "say what it does"


def test_the_search_finds_methods_without_docstring() -> None:
    source = '''
class Base:
    def told(self):
        """Say it."""
class Child(Base):
    def told(self): ...
    def silent(self): ...
    def _private(self): ...
'''
    classes = {each.name: each for each in ast.parse(source).body if isinstance(each, ast.ClassDef)}
    assert [each.name for each in _mute(classes["Child"], classes)] == ["silent"]


def _classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for tree in TREES:
        for path in (TOP / tree).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    yield path.relative_to(TOP), node


def _methods(found: ast.ClassDef) -> Iterator[Method]:
    return (each for each in found.body if isinstance(each, Method) and not each.name.startswith(("_", "test_")))


def _mute(found: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[Method]:
    told = set(_told(found, classes))
    return (each for each in _methods(found) if each.name not in told and not _is_overload(each))


def _told(found: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[str]:
    """Names of the methods that a class or one above it documents."""
    yield from (each.name for each in _methods(found) if ast.get_docstring(each))
    for base in found.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        last = name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")
        if last in classes:
            yield from _told(classes[last], classes)


def _is_overload(method: Method) -> bool:
    return any("overload" in ast.unparse(each) or "setter" in ast.unparse(each) for each in method.decorator_list)
