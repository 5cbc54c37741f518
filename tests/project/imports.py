"""Which module imports which, read from the source: what a newcomer has to understand before what."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PRODUCT = {"drengine": ROOT / "drengine", "drengine_agent": ROOT / "agents/drengine_agent"}

Graph = Mapping[str, set[str]]


def product_files() -> dict[str, Path]:
    """Every module of the product, by its dotted name; a package is its ``__init__.py``."""
    found = {}
    for package, folder in PRODUCT.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """The imports of modules among each other, wherever they stand; `texts` holds the source of each, by name.

    ``from package import name`` counts as an import of ``package.name`` if that is a module, else of the package. That
    Python runs the ``__init__`` of a package before its modules is not counted: every package would import its parts.
    """
    return {name: set(_imports(ast.parse(text), texts.keys())) - {name} for name, text in texts.items()}


def _imports(tree: ast.Module, known: Set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports by a relative name"
            for alias in node.names:
                part = f"{node.module}.{alias.name}"
                yield from {part} & known or {str(node.module)} & known
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & known


def circles(graph: Graph) -> list[frozenset[str]]:
    """Sets of nodes each of which leads to every other of its set, in the order of their names."""
    reached = {node: set(_reachable(graph, node)) for node in graph}
    found = {
        frozenset({node, *(other for other in reached[node] if node in reached[other])})
        for node in graph
        if node in reached[node]
    }
    return sorted(found, key=sorted)


def _reachable(graph: Graph, start: str) -> Iterator[str]:
    seen: set[str] = set()
    left = list(graph[start])
    while left:
        node = left.pop()
        if node not in seen:
            seen.add(node)
            yield node
            left += graph.get(node, ())


def between_parts(graph: Graph, package: str) -> dict[str, set[str]]:
    """The graph of a package's parts: its direct modules and its packages, each of those as one node."""
    depth = package.count(".") + 2

    def part(name: str) -> str:
        return ".".join(name.split(".")[:depth])

    found: dict[str, set[str]] = {}
    for name, targets in graph.items():
        if name.startswith(f"{package}."):
            inside = {part(each) for each in targets if each.startswith(f"{package}.")}
            found.setdefault(part(name), set()).update(inside - {part(name)})
    return found
