"""docs/reference/cli.md, generated from the commands by `python -m controller.cli.reference`.

A test compares the file with the generated page, so that it cannot drift.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from controller.cli.main import app
from controller.cli.risk_reference import RISK_PAGE, risk_page

PAGE = Path("docs/reference/cli.md")
HEAD = """# Commands

Generated from the commands by `make reference`; do not edit.

Every command keeps its state in `$CANARYCTL_HOME` (default `~/.canaryctl`). SERVICE may be omitted when there
is only one. `-o` prints `table`, `wide`, `json` or `yaml`. Results go to stdout.

An error goes to stderr: as a line, or under `-o json` and `-o yaml` as one problem document (RFC 9457) with
`type`, `title`, `status`, `detail`, `lines` and `exit_code`.

| exit code | meaning |
|---|---|
| 0 | done; of `deploy`, `rollback` and `undo` without `--wait`: begun |
| 1 | internal error |
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
            for inner_name, inner in command.commands.items():
                yield f"{name} {inner_name}", inner
        else:
            yield name, command


def _section(path: list[str], command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    metavars = [str(argument.metavar or argument.name.upper()) for argument in arguments]
    usage = " ".join([*path, *metavars, *(["[OPTIONS]"] if options else [])])
    lines = [f"\n## {' '.join(path)}\n", f"```\n{usage}\n```\n", (command.help or "").strip(), ""]
    if options:
        lines += ["| option | |", "|---|---|"]
        context = command.make_context(path[-1], [], resilient_parsing=True)
        lines += [_row(option, context) for option in options if option.get_help_record(context)]
        lines.append("")
    return "\n".join(lines)


def _row(option: Any, context: Any) -> str:
    names, text = option.get_help_record(context)
    cells = (str(cell).replace("|", "\\|") for cell in (f"`{names}`", text))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
    RISK_PAGE.write_text(risk_page())
