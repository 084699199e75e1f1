"""A command group whose modules are imported only when one of their commands is run.

Invariant: listing the commands imports none of them, so `--help` loads no library that a command needs.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperGroup


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command by the name of its module and function. `help` is the first line of its docstring."""

    module: str
    function: str  # a function, or a Typer application with subcommands
    help: str

    def load(self) -> Any:
        """The function or the Typer application; imports its module."""
        return getattr(import_module(self.module), self.function)

    def build(self, name: str) -> Any:
        """The command as Typer runs it."""
        loaded = self.load()
        if not gc.isenabled():  # see `main` of this package
            gc.freeze()  # what is imported stays
            gc.enable()
        if not isinstance(loaded, typer.Typer):
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            single.command(name)(loaded)
            loaded = single
        return typer.main.get_command(loaded)


class LazyCommands(Mapping[str, Any]):
    """Commands by name, each built when it is first looked up."""

    def __init__(self, commands: Mapping[str, LazyCommand]) -> None:
        self._lazy = commands
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._lazy[name].build(name)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lazy)

    def __len__(self) -> int:
        return len(self._lazy)


def lazy_group(commands: Mapping[str, LazyCommand], groups: Mapping[str, Sequence[str]]) -> type[TyperGroup]:
    """The class of a group of these commands, for `typer.Typer(cls=...)`. groups: of `--help`, by title.

    Each command is built once in a process, however often it is run.
    """
    lazy = LazyCommands(commands)

    class LazyGroup(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.commands = cast(Any, lazy)  # typer only reads it

        def list_commands(self, ctx: Any) -> list[str]:
            return list(commands)

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            wide = max(map(len, commands))
            for title, names in groups.items():
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(wide), commands[name].help) for name in names])

    return LazyGroup
