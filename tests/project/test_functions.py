"""A function fits on a screen, or its docstring says why it can't."""

from __future__ import annotations

import ast

from tests.project.imports import product_files

LINES_MAX = 60
REASON = "Long because"
"""Begins the line of a docstring that says why a function is longer."""


def test_no_function_is_longer_than_a_screen_without_a_reason() -> None:
    found = {
        f"{module.rpartition('.')[2]}.{name}"
        for module, path in product_files().items()
        for name in long_functions(path.read_text())
    }
    assert found == set(), f"part it, or write a line `{REASON} ...` into its docstring"


def long_functions(text: str) -> set[str]:
    """Names of the functions of a module that are too long and do not say why."""
    return {
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LINES_MAX
        and not any(line.strip().startswith(REASON) for line in (ast.get_docstring(node) or "").splitlines())
    }


def test_the_measure_counts_lines_and_reads_reasons() -> None:
    body = "    pass\n" * LINES_MAX
    assert long_functions(f"def f():\n{body}") == {"f"}
    assert long_functions(
        f"class C:\n    async def f(self):\n        pass\n{body.replace('    pass', '        pass')}"
    ) == {"f"}
    assert long_functions("def f():\n" + "    pass\n" * (LINES_MAX - 1)) == set()
    assert long_functions(f'def f():\n    """Does it.\n\n    Long because it is one table.\n    """\n{body}') == set()
