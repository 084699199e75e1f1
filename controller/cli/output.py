"""How answers are printed: tables for people, JSON and YAML for programs, errors as single lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.table import Table

from controller.errors import BadSpec, CanaryctlError

JSON_INDENT = 2


class Output(StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How to print the answer.")]


def console() -> Console:
    """Standard output. Lines of a pipe are never cut to a terminal's width."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def emit(
    data: BaseModel | Sequence[BaseModel], output: Output, render: Callable[[bool], RenderableType]
) -> None:
    """Print `data` as JSON or YAML, or what `render(wide)` makes of it."""
    if output in (Output.TABLE, Output.WIDE):
        console().print(render(output is Output.WIDE))
        return
    plain = _plain(data)
    if output is Output.JSON:
        print(json.dumps(plain, indent=JSON_INDENT, ensure_ascii=False))
    else:
        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")


def table(*columns: str) -> Table:
    """A table without lines, its first column bold."""
    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        grid.add_column(column.upper(), style="bold" if index == 0 else "", overflow="fold")
    return grid


def say(text: str) -> None:
    """One line for people, on standard error: standard output is the answer's."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def complain(exc: CanaryctlError) -> None:
    """The error's line or lines, on standard error."""
    lines = exc.lines if isinstance(exc, BadSpec) else (str(exc),)
    for line in lines:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            "[bold red]error:[/] ", end="", markup=True
        )
        say(line)


def _plain(data: BaseModel | Sequence[BaseModel]) -> Any:
    if isinstance(data, BaseModel):
        return data.model_dump(mode="json")
    return [one.model_dump(mode="json") for one in data]
