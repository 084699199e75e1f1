"""Every Ray call to an actor of ours names a method that the actor has: neither Ray nor mypy checks that."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVING = Path(__file__).parents[3] / "serving"
ACTORS = {
    "TableActor": "table/table_actor.py",
    "RecordsActor": "table/records_actor.py",
    "FleetActor": "fleet/actor_ray.py",
}
CLIENTS = sorted(str(path.relative_to(SERVING)) for path in SERVING.rglob("*_ray.py"))


def methods() -> set[str]:
    found: set[str] = set()
    for name, file in ACTORS.items():
        [actor] = [
            node
            for node in ast.parse((SERVING / file).read_text()).body
            if isinstance(node, ast.ClassDef) and node.name == name
        ]
        found |= {node.name for node in actor.body if isinstance(node, ast.AsyncFunctionDef)}
    return found


def called(tree: ast.AST) -> Iterator[str]:
    """Methods in `actor.method.remote(...)`, and those that `_call` gets as text."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        target = node.func.value
        if node.func.attr == "remote" and isinstance(target, ast.Attribute):
            yield target.attr
        elif node.func.attr == "_call":
            texts = [one.value for one in node.args[:2] if isinstance(one, ast.Constant)]
            yield from (text for text in texts if isinstance(text, str))


def test_the_calls_of_the_clients_are_found() -> None:
    found = set(called(ast.parse((SERVING / "table/traffic_ray.py").read_text())))

    assert {"set_split", "observe", "tombstone", "run_router"} <= found


@pytest.mark.parametrize("file", CLIENTS)
def test_every_called_method_exists(file: str) -> None:
    assert set(called(ast.parse((SERVING / file).read_text()))) - methods() == set()
