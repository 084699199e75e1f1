"""A table that fits any width: cells wrap between words, then columns are dropped; no word is ever cut.

A word is a number, an id, a name: cut in two, it is another one. Where even the kept columns do not fit, each
row becomes a block of lines, `COLUMN value`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from controller.cli.output import visible

GAP = 2  # between two columns


class Grid(Table):
    """An empty table without borders. drop: columns to leave out where it is narrow, the first one first."""

    def __init__(self, *columns: str, drop: Sequence[str] = ()) -> None:
        super().__init__(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
        self._drop = tuple(name.upper() for name in drop)
        for index, column in enumerate(columns):
            self.add_column(column.upper(), style="bold" if index == 0 else "")

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """A row whose texts are `visible`: replaced later, a character would be wider than was measured."""
        super().add_row(*(_visible(cell) for cell in cells), **options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        kept, widths = list(self.columns), None
        for name in (*self._drop, None):
            widths = fitted([_words(column) for column in kept], options.max_width)
            if widths is not None:
                break
            kept = [column for column in kept if column.header != name]
        if widths is None:
            yield from self._blocks(kept)
            return
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
        for column, width in zip(kept, widths, strict=True):
            table.add_column(column.header, style=column.style, width=width)
        for cells in zip(*(column.cells for column in kept), strict=True):
            table.add_row(*cells)
        yield table

    def _blocks(self, columns: Sequence[Column]) -> Iterator[RenderableType]:
        for number, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
            if number:
                yield Text()
            for column, cell in zip(columns, cells, strict=True):
                line = Text(f"{column.header} ", style="dim", overflow="fold")
                yield line.append(cell if isinstance(cell, Text) else Text(str(cell), style=column.style))


def _visible(cell: RenderableType | None) -> RenderableType | None:
    if isinstance(cell, Text):
        shown = cell.copy()
        shown.plain = visible(cell.plain)
        return shown
    return visible(cell) if isinstance(cell, str) else cell


def fitted(columns: Sequence[tuple[int, int]], width: int) -> list[int] | None:
    """Widths that fit into `width`, gaps included; None: there are none.

    columns: of each, the width of its longest word, which it needs, and of its longest line.
    """
    widths = [line for _, line in columns]
    excess = sum(widths) + GAP * max(0, len(widths) - 1) - width
    while excess > 0:
        slack = [width - word for width, (word, _) in zip(widths, columns, strict=True)]
        most = max(range(len(slack)), key=slack.__getitem__, default=0)
        if not slack or slack[most] <= 0:
            return None
        widths[most] -= 1
        excess -= 1
    return widths


def _words(column: Column) -> tuple[int, int]:
    """Widths of the column's longest word and longest line."""
    texts = [cell.plain if isinstance(cell, Text) else str(cell) for cell in (column.header, *column.cells)]
    words = [cell_len(word) for text in texts for word in text.split()]
    return max(words, default=1), max(
        (cell_len(line) for text in texts for line in text.splitlines()), default=1
    )
