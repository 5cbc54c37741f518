"""No circle of imports: each module can be understood, tested and moved with nothing but what lies below it.

Imports inside functions count, and so do those under TYPE_CHECKING: a circle that Python bears is still one that a
reader has to walk around.
"""

from __future__ import annotations

import pytest

from tests.project.imports import Graph, between_parts, circles, imports_of, product_files


@pytest.fixture(scope="module")
def graph() -> Graph:
    return imports_of({name: path.read_text() for name, path in product_files().items()})


def test_no_circle_between_modules(graph: Graph) -> None:
    assert circles(graph) == []


@pytest.mark.parametrize("package", ["drengine", "drengine.failover", "drengine.store", "drengine_agent"])
def test_no_circle_between_the_parts_of(package: str, graph: Graph) -> None:
    assert circles(between_parts(graph, package)) == []


LATE = "def work():\n    from p.a import f\n"
TYPED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a\n"


@pytest.mark.parametrize("text", ["import p.a", "from p import a", "from p.a import f", LATE, TYPED])
def test_a_circle_is_found_wherever_the_import_stands(text: str) -> None:
    graph = imports_of({"p": "", "p.a": "from p.b import g", "p.b": text})
    assert circles(graph) == [frozenset({"p.a", "p.b"})]


def test_what_only_leads_down_is_no_circle() -> None:
    assert circles(imports_of({"p": "from p.a import f", "p.a": "from p import b", "p.b": "import os"})) == []


def test_two_packages_may_not_know_each_other_even_where_their_modules_form_no_circle() -> None:
    texts = {"p.x.low": "", "p.x.high": "import p.y.part", "p.y.part": "import p.x.low"}
    assert circles(imports_of(texts)) == []
    assert circles(between_parts(imports_of(texts), "p")) == [frozenset({"p.x", "p.y"})]


def test_late_imports_are_few() -> None:
    late = {name: path.read_text().count("noqa: PLC0415") for name, path in product_files().items()}
    assert sum(late.values()) <= 16, {name: count for name, count in late.items() if count}
