"""The code map in README.md is complete, and what docs and docstrings call a file is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("evaluation", "serving", "controller")
ROOMS = sorted(
    str(found.parent.relative_to(ROOT))
    for name in PACKAGES
    for pattern in ("*/__init__.py", "*/*/__init__.py")
    for found in (ROOT / name).glob(pattern)
)
PAGES = ["README.md", "CONTRIBUTING.md", "docs/policy.md"]
FILES = [path for name in (*PACKAGES, "tests", "benchmarks") for path in (ROOT / name).rglob("*")]


def code_map() -> str:
    return (ROOT / "README.md").read_text().split("## Code map\n", 1)[1]


def named_files(text: str) -> set[str]:
    """Every Python file named in backticks, with or without its folder."""
    return set(re.findall(r"`((?:\w+/)*\w+\.py)`", text))


def exists(name: str) -> bool:
    return any(str(path).endswith(f"/{name}") for path in FILES)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_on_the_code_map(room: str) -> None:
    package, *_, name = room.split("/")

    assert re.search(rf"\b{name}\b", code_map().split(f"### `{package}/`", 1)[1].split("\n### ", 1)[0])


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    assert {name for name in named_files((ROOT / page).read_text()) if not exists(name)} == set()


@pytest.mark.parametrize("package", [*PACKAGES, "tests", "benchmarks"])
def test_every_file_that_a_docstring_or_comment_names_exists(package: str) -> None:
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in named_files(path.read_text())
        if not exists(name)
    }

    assert missing == set()


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_is(room: str) -> None:
    text = (ROOT / room / "__init__.py").read_text()

    assert text.startswith('"""'), f"{room}/__init__.py has no docstring"
