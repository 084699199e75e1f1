"""The command line. `main` is the installed entry point; it exits with a code of `controller.errors`."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run `canaryctl` with this process's arguments, then exit."""
    from controller.cli.main import run

    raise SystemExit(run())
