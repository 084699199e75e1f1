"""Command `python -m serving.checkpoints [--out DIR]`: train the missing checkpoints, with a progress bar."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from serving.checkpoints.cache import RECIPES, TOTAL_STEPS, default_dir, ensure, find


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when every checkpoint exists, 2 when the folder cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m serving.checkpoints", description=__doc__)
    parser.add_argument("--out", type=Path, default=default_dir(), help="folder for the checkpoints")
    out: Path = parser.parse_args(arguments).out
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as progress:
            done = sum(recipe.steps for recipe in RECIPES if find(recipe.name, out))
            task = progress.add_task("checkpoints", total=TOTAL_STEPS, completed=done)

            def on_step(name: str, loss: float) -> None:
                progress.update(task, advance=1, description=f"training {name}, loss {loss:.3f}")

            checkpoints = ensure(out, on_step)
            progress.update(task, completed=TOTAL_STEPS, description="checkpoints")
    except OSError as exc:
        print(f"cannot write checkpoints under {out}: {exc.strerror}; choose another --out", file=sys.stderr)
        return 2
    for checkpoint in checkpoints:
        console.print(
            f"{checkpoint.name:8} {checkpoint.accuracy_ratio:6.1%} correct"
            f"   {checkpoint.training_s:5.1f} s   {checkpoint.path}",
            soft_wrap=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
