"""docs/reference/cli.md from the commands themselves: `python -m controller.cli.reference` writes it.

A test compares the file with what the commands say now, so that it cannot drift.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from controller.cli.main import app

PAGE = Path("docs/reference/cli.md")
HEAD = """# Commands

Written by `make reference` from the commands themselves; do not edit.

Every command takes its state from `$CANARYCTL_HOME` (default `~/.canaryctl`). Where a command takes a
service, the only one there is need not be named. `-o` prints `table`, `wide`, `json` or `yaml`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | our error |
| 2 | bad input |
| 3 | conflict |
| 4 | unreachable |
| 5 | rolled back |
| 6 | timed out, undecided |
"""


def page() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(app)
    return HEAD + "".join(_section(["canaryctl", name], command) for name, command in _commands(root))


def _commands(root: Any) -> Iterator[tuple[str, Any]]:
    for name, command in root.commands.items():
        if isinstance(command, TyperGroup):
            for inner, one in command.commands.items():
                yield f"{name} {inner}", one
        else:
            yield name, command


def _section(path: list[str], command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = " ".join([*path, *(_metavar(one) for one in arguments), *(["[OPTIONS]"] if options else [])])
    lines = [f"\n## {' '.join(path)}\n", f"```\n{usage}\n```\n", (command.help or "").strip(), ""]
    if options:
        lines += ["| option | |", "|---|---|"]
        context = command.make_context(path[-1], [], resilient_parsing=True)
        lines += [_row(one, context) for one in options if one.get_help_record(context)]
        lines.append("")
    return "\n".join(lines)


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _row(option: Any, context: Any) -> str:
    names, text = option.get_help_record(context)
    cells = (str(cell).replace("|", "\\|") for cell in (f"`{names}`", text))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the page into the working directory's docs."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
