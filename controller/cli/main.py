"""The `canaryctl` app: table of commands, and the one place where an error becomes a line and an exit code.

Command modules import what is slow to load (numpy, Ray, the evaluation) inside the command, so that `--help`
stays fast.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import typer

from controller.cli import ab, backtest, demo, foreground, observed, rollouts, services, validate
from controller.cli.output import print_error
from controller.errors import BadInput, CanaryctlError
from controller.installed import own_version

INTERRUPTED = 130
# Typer vendors click or uses the installed one; either way this is the base class of its usage errors.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])

app = typer.Typer(
    name="canaryctl",
    help="Canary controller for LLM fleets: statistically proven promotions, immediate rollbacks.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Exit code of `canaryctl ARGUMENTS`; an error is printed as one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(args=given or ["--help"], prog_name="canaryctl", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except UsageError as exc:
        path = exc.ctx.command_path if exc.ctx is not None else "canaryctl"
        return _fail(BadInput(f"{exc.format_message()} (usage: {path} --help)"))
    except CanaryctlError as exc:
        return _fail(exc)
    except OSError as exc:
        if exc.filename is None:
            raise
        return _fail(
            BadInput(
                f"{exc.filename}: {exc.strerror}; use a writable path (CANARYCTL_HOME sets the state folder)"
            )
        )
    return result if isinstance(result, int) else 0


def _fail(error: CanaryctlError) -> int:
    print_error(error)
    return error.exit_code


def version() -> None:
    """Print the version."""
    print(own_version())


# In the order of `canaryctl --help`.
COMMANDS: Mapping[str, Callable[..., object]] = {
    "up": services.up,
    "down": services.down,
    "plan": rollouts.plan,
    "deploy": rollouts.deploy,
    "status": services.status,
    "list": services.list_services,
    "watch": rollouts.watch,
    "rollback": rollouts.rollback,
    "undo": rollouts.undo,
    "history": rollouts.history,
    "validate": validate.validate,
    "controller": foreground.controller,
    "router": foreground.router,
    "demo": demo.demo,
    "version": version,
    "backtest": backtest.backtest,
    "observed": observed.observed,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(ab.ab)
