"""`--help`: commands in groups; of each option with a value, what to write and what holds without it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from controller.cli.main import COMMANDS, GROUPS, app, run

PLAIN = re.compile(r"<(str|int|float|path|int range|float range)>")
# Commands where the option selects what is done, so that nothing holds without it, or what is inherited.
DEFAULTS = re.compile(r"default|required|without|none|optional|repeatable", re.IGNORECASE)


def commands(group: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Path and command of each, those of groups within it too."""
    ctx = typer.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command, typer.Context(command)


def options() -> Iterator[tuple[str, str, str]]:
    """Of each option with a value: name, how its value is written, and the help with its default."""
    for path, command, ctx in commands(typer.main.get_command(app), "canaryctl"):
        for param in command.params:
            record = param.get_help_record(ctx)
            if record is None or getattr(param, "is_flag", False) or param.param_type_name != "option":
                continue
            yield f"{path} {param.opts[-1]}", record[0], record[1]


@pytest.mark.slow
def test_every_option_says_what_its_value_is() -> None:
    """`--window <str>`: a number of what?"""
    assert [name for name, written, _ in options() if PLAIN.search(written)] == []


@pytest.mark.slow
def test_every_option_says_what_holds_without_it() -> None:
    assert [name for name, _, text in options() if not DEFAULTS.search(text)] == []


def test_the_commands_stand_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    lines = capsys.readouterr().out.splitlines()

    titles = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options", *GROUPS]
    assert max(map(len, lines)) <= 80


def test_every_command_stands_in_one_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
