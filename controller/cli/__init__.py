"""The command line. `main` is the entry point: it ends with one of the exit codes of `controller.errors`."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run `canaryctl` on this process's arguments and end the process."""
    from controller.cli.main import run

    raise SystemExit(run())
