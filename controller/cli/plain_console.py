"""What is printed for people: text from files, names and engines is shown as it is, and obeyed by nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from controller.cli.output import visible


class PlainConsole(Console):
    """A console for which `[bold]` and `:fire:` in a text are these characters; styles are given as `Text`.

    Control characters of a text are shown as U+FFFD; what rich itself writes to the terminal is not touched.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Who reads stdout has left: the command ends as `main.py` says, not with rich's own exit code 1."""
        raise BrokenPipeError

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The renderable's segments, with text that is `visible` only."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
