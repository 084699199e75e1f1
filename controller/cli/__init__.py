"""The command line. `main` is the installed entry point; it exits with a code of `controller.errors`."""

from __future__ import annotations

import gc

__all__ = ["main"]


def main() -> None:
    """Run `canaryctl` with this process's arguments, then exit."""
    # Importing allocates much and frees little: collections would take a tenth of a short command's time.
    # `lazy_group.py` enables them again once the command's module is imported.
    gc.disable()
    from controller.cli.main import run

    raise SystemExit(run())
