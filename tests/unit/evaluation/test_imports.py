"""Structure of evaluation/: no import circles, and every import at module level."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
IMPORTS = (ast.Import, ast.ImportFrom)


@cache
def modules() -> dict[str, ast.Module]:
    """The parsed modules of evaluation/, by dotted name."""
    paths = (ROOT / "evaluation").rglob("*.py")
    names = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in paths}
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text("utf-8")) for name, path in names.items()
    }


def imported(node: ast.AST) -> set[str]:
    """Dotted names that an import statement may refer to."""
    if isinstance(node, ast.ImportFrom):
        return {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()


@pytest.mark.slow
def test_no_module_of_evaluation_is_part_of_an_import_circle() -> None:
    trees = modules()
    graph = {
        name: {target for node in ast.walk(tree) for target in imported(node) if target in trees} - {name}
        for name, tree in trees.items()
    }

    assert len(list(TopologicalSorter(graph).static_order())) == len(trees)


@pytest.mark.slow
def test_every_import_of_evaluation_is_at_module_level() -> None:
    nested = [
        (name, node.lineno)
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, IMPORTS) and node not in tree.body
    ]

    assert nested == []
