"""How results are printed: tables for people, JSON and YAML for programs, notes and errors on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

from controller.errors import CanaryctlError, document_of
from controller.quantities import figure
from serving.files.plain_text import REPLACEMENT

if TYPE_CHECKING:  # imported where used: each takes longer to import than `--help` takes to run
    from pydantic import BaseModel
    from rich.console import Console, RenderableType
    from rich.table import Table

JSON_INDENT = 2
PIPE_WIDTH = 200
LINES_AFTER = 4  # the next step and the shell's prompt, beneath what is printed
# Control characters but tab and line feed, lone surrogates, and marks that change the direction of writing.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BLANKS = re.compile(r"[ \t]+$", re.MULTILINE)
NO_ANSWER = "no answer"


class Output(StrEnum):
    """Formats of `-o`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_text(self) -> bool:
        return self in (Output.TABLE, Output.WIDE)


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="Output format.")]


def console(*, stderr: bool = False) -> Console:
    """Standard output, or standard error. Lines in a pipe are not cut to a terminal's width, nor filled up
    with blanks."""
    from controller.cli.plain_console import PlainConsole

    if (sys.stderr if stderr else sys.stdout).isatty():
        return PlainConsole(stderr=stderr)
    return PlainConsole(width=PIPE_WIDTH, file=cast("TextIO", _Unpadded(stderr)))


def visible(text: str) -> str:
    """The text with U+FFFD for each character that a terminal would obey: of names, files and engines, none
    may move the cursor, hide text or write from right to left. Lines and tabs stay."""
    return _OBEYED.sub(REPLACEMENT, text)


class _Unpadded:
    """A standard stream as a file that drops the blanks at the ends of lines, which fill up a width."""

    def __init__(self, stderr: bool) -> None:
        self._stderr = stderr

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self._stderr else sys.stdout

    def write(self, text: str) -> int:
        self._stream.write(_BLANKS.sub("", text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Say what is being waited for: a spinner on a terminal, whose text may be changed, else one line. An
    empty text says nothing."""
    if not text or not sys.stderr.isatty():
        if text:
            note(text)
        yield lambda text: None
        return
    from rich.text import Text

    from controller.cli.plain_console import PlainConsole

    # Of a plain `str`, a spinner would read markup whatever its console does.
    with PlainConsole(stderr=True, soft_wrap=True).status(Text(text)) as spinner:
        yield lambda text: spinner.update(Text(text))


def emit(
    data: BaseModel | Sequence[BaseModel],
    output: Output,
    render: Callable[[bool], RenderableType],
    *,
    decision: str = "",
) -> None:
    """Print `render(is_wide)` for people, or `data` for programs. decision: see `print_decided`."""
    if output.is_text:
        print_decided(render(output is Output.WIDE), decision)
    else:
        emit_data(data, output)


def print_line(line: RenderableType) -> None:
    """Print one line: on a terminal no word is cut, in a pipe it stays one line."""
    out = console()
    out.print(line, soft_wrap=not out.is_terminal)


def print_decided(shown: RenderableType, decision: str) -> None:
    """Print it; where it is higher than the terminal, then its decision once more, which has scrolled away.

    decision: one line, which stands at the top of what is shown; empty: there is none.
    """
    from rich.text import Text

    out = console()
    lines = out.render_lines(shown, pad=False) if decision and out.is_terminal else []
    out.print(shown)
    if len(lines) > out.height - LINES_AFTER:
        out.print(Text(decision, style="bold"))


def emit_data(data: BaseModel | Sequence[BaseModel] | Mapping[str, object], output: Output) -> None:
    """Print `data` as JSON or YAML. A mapping must hold what JSON can express."""
    plain: object = data
    if isinstance(data, Sequence):
        plain = [item.model_dump(mode="json") for item in data]
    elif not isinstance(data, Mapping):
        plain = data.model_dump(mode="json")
    if output is Output.JSON:
        print(_json(plain, indent=JSON_INDENT))
    else:
        print(_yaml(plain), end="")


def table(*columns: str, drop: Sequence[str] = ()) -> Table:
    """An empty table without borders, its first column bold. drop: columns to leave out where it is narrow,
    the least important first."""
    from controller.cli.grid import Grid

    return Grid(*columns, drop=drop)


def number(value: float | None) -> str:
    """Four significant digits; `-` for None, `no answer` for a percentile among requests without one."""
    if value is None:
        return "-"
    return NO_ANSWER if math.isinf(value) else figure(value, 4)


def slowest_line(shares: Mapping[str, tuple[float, float] | None]) -> str | None:
    """What the table of gates does not show of those on values: the requests without an answer. By gate, the
    shares of stable and of the canary; None: none of them has any."""
    known = {gate: pair for gate, pair in shares.items() if pair is not None and max(pair) > 0.0}
    if not known:
        return None
    stable, canary = next(iter(known.values()))
    return (
        f"{', '.join(known)}: requests without an answer count as slowest: {_share(stable)} of stable's, "
        f"{_share(canary)} of the canary's"
    )


def _share(ratio: float) -> str:
    return f"{figure(100 * ratio, 3)} %"


def gate_title(gate: str, statistic: str, metric: str = "") -> str:
    """The gate with the figure that its row shows and its unit: `latency_shape p50 ms`; a mean, or one that
    its name says, needs none."""
    unit = " ms" if metric.endswith("_ms") else ""
    return gate + unit if statistic == "mean" or statistic in gate else f"{gate} {statistic}{unit}"


def note(text: str) -> None:
    """Print one line for people on stderr; stdout carries only results. On a terminal no word is cut."""
    typer.echo(_wrapped(visible(text)), err=True)


def _wrapped(text: str, taken: int = 0) -> str:
    """The text in lines of the terminal's width; unchanged where stderr is none. taken: columns before it."""
    width = _stderr_width()
    if width is None:
        return text
    wrapper = textwrap.TextWrapper(
        width, initial_indent=" " * taken, break_long_words=False, break_on_hyphens=False,
        replace_whitespace=False, expand_tabs=False,
    )  # fmt: skip
    lines = [wrapper.fill(line) if len(line) + taken > width else line for line in text.split("\n")]
    return "\n".join([lines[0].removeprefix(" " * taken), *lines[1:]])


def _stderr_width() -> int | None:
    """Columns of the terminal behind stderr; None: there is none, or it does not say."""
    if not sys.stderr.isatty():
        return None
    if (given := os.environ.get("COLUMNS", "")).isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or None
    except (OSError, ValueError):
        return None


class _Told(KeyboardInterrupt):
    """An interruption of which the user knows what goes on."""


@contextmanager
def told_on_interrupt(text: str | Callable[[], str]) -> Iterator[None]:
    """Print `text` on Ctrl-C: what goes on without this command, and how to follow or end it. Of several, one
    inside another, the innermost tells."""
    try:
        yield
    except _Told:
        raise
    except KeyboardInterrupt as exc:
        note(text if isinstance(text, str) else text())
        raise _Told from exc


def requested_output(arguments: Sequence[str]) -> Output:
    """The format that a command line asks for, also one that cannot be parsed; TABLE if none is valid."""
    found = Output.TABLE
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument == "--":
            break
        if argument in ("-o", "--output"):
            value = following
        elif argument.startswith("--output="):
            value = argument.removeprefix("--output=")
        elif argument.startswith("-o"):
            value = argument.removeprefix("-o")
        else:
            continue
        found = Output(value) if value in list(Output) else found
    return found


def print_error(
    error: CanaryctlError, output: Output, *, known: Sequence[str] = (), traceback: Sequence[str] = ()
) -> None:
    """Print the error on stderr: lines for people, one problem document (RFC 9457) for programs.

    For programs only: known: what is known all the same; traceback: of an error that nobody foresaw.
    """
    if not output.is_text:
        more = {"known": list(known), "traceback": list(traceback)}
        document = document_of(error) | {name: lines for name, lines in more.items() if lines}
        typer.echo(visible(_json(document) if output is Output.JSON else _yaml(document).rstrip()), err=True)
        return
    for line in error.details:
        typer.secho("error:", fg="red", bold=True, err=True, nl=False, color=_color())
        typer.echo(f" {_wrapped(visible(line), len('error: '))}", err=True)


def _json(plain: object, *, indent: int | None = None) -> str:
    text = json.dumps(plain, indent=indent, ensure_ascii=False)
    # What stands for itself in JSON, and would still be obeyed by a terminal.
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _yaml(plain: object) -> str:
    import yaml

    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110))


def _color() -> bool | None:
    """False: NO_COLOR is set (no-color.org). None: colours on a terminal only."""
    return False if os.environ.get("NO_COLOR") else None
