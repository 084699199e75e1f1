"""Every `canaryctl` command that a message, a page or a docstring names exists, with its options."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from controller.cli.main import app

ROOT = Path(__file__).parents[3]
PACKAGES = ("controller", "evaluation", "serving", "benchmarks")
PAGES = ("README.md", "CONTRIBUTING.md", "docs", "examples")
VALUE = "VALUE"  # stands for what an f-string inserts
# What comes before a command; elsewhere "canaryctl reads" is the product's name and a verb.
LEADS = ("    ", ": ", "`", "$ ", "run ", "see ", "(", "; ", "or ", "then ")
CHANGES = ("--model", "--url", "--engine", "--twin", VALUE)  # one of them is what `deploy` deploys
# Where a command ends in running text.
END = re.compile(r"[;,`()\"'|<>]|\.(?=\s|$)|: | \+ |\\n|\n| #| -> | && ")


def strings(tree: ast.AST) -> Iterator[str]:
    """Texts of a module; adjoining literals are one, what is inserted is VALUE."""
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in ast.walk(node)} - {id(node)}
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def named(text: str) -> Iterator[str]:
    """Commands in a text, each up to the end of its clause."""
    known = group().commands
    for match in re.finditer(r"(?<![\w/.-])canaryctl (?=[a-z])", text):
        rest = text[match.end() :]
        end = END.search(rest)
        command = (rest[: end.start()] if end else rest).strip()
        line = text[: match.start()].rpartition("\n")[2]
        if line.endswith(LEADS) or command.split()[0] in known:
            yield command


def words(command: str) -> list[str]:
    """The words that belong to the command: its name, then up to the first one of prose."""
    first, *rest = shlex.split(command, posix=False)
    found = [first, *rest[:1]] if first == "ab" else [first]
    rest = rest[len(found) - 1 :]
    for word, following in zip(rest, [*rest[1:], ""], strict=False):
        is_argument = word.startswith(("-", "[", "/", ".", "http")) or word.isupper() or VALUE in word
        if not (is_argument or found[-1].startswith("-") or following.startswith("--")):
            break
        found.append(word)
    return found


@cache
def group() -> Any:
    return typer.main.get_command(app)


def problem(command: str) -> str | None:
    """What is wrong with a command; None: it exists, with its options."""
    found, rest = group(), words(command)
    while getattr(found, "commands", None) is not None and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in found.commands:
            return f"no command {name}"
        found = found.commands[name]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
    missing = [option for option in unknown if option not in known | {"--help"}]
    return f"no option {missing[0]}" if missing else None


def messages(path: Path) -> Iterator[str]:
    """Texts of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [one for one in node.body if not is_text(one)] or [ast.Pass()]
    yield from strings(tree)


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def sources() -> list[Path]:
    modules = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    pages = [path for page in PAGES for path in sorted([ROOT / page, *(ROOT / page).rglob("*")])]
    return modules + [path for path in pages if path.is_file() and path.suffix in (".md", ".yaml", ".py")]


def texts(path: Path) -> Iterator[str]:
    if path.suffix == ".py":
        yield from strings(ast.parse(path.read_text()))
    else:
        yield path.read_text()


@pytest.mark.slow
def test_every_command_that_is_named_exists() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: canaryctl {command}: {why}"
        for path in sources()
        for text in texts(path)
        for command in named(text)
        if (why := problem(command)) is not None
    ]

    assert wrong == []


@pytest.mark.slow
def test_a_deploy_in_a_message_says_what_to_deploy() -> None:
    without = [
        f"{path.relative_to(ROOT)}: canaryctl {command}"
        for path in sources()
        if path.suffix == ".py" and path.is_relative_to(ROOT / "controller")
        for text in messages(path)
        for command in named(text)
        if command.split()[0] == "deploy" and not any(change in command for change in CHANGES)
    ]

    assert without == []


@pytest.mark.slow
def test_commands_are_found_in_messages_and_pages() -> None:
    found = {
        path.relative_to(ROOT).parts[0] for path in sources() for text in texts(path) for _ in named(text)
    }

    assert {"controller", "serving", "README.md", "docs"} <= found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("end it: canaryctl frobnicate chat", "no command frobnicate"),
        ("run `canaryctl deploy chat --modle DIR`", "no option --modle"),
        ("see canaryctl ab sise", "no command sise"),
        ("end it: canaryctl rollback chat --wait; or wait", None),
        ("canaryctl up --service NAME --model DIR", None),
    ],
)
def test_a_wrong_command_is_noticed(text: str, why: str | None) -> None:
    assert [problem(command) for command in named(text)] == [why]
