"""The `canaryctl` app: table of commands, and the one place where an error becomes a line and an exit code.

A command's module is imported when the command is run (`lazy_group.py`), and what is slow to load (numpy,
Ray, the evaluation) inside the command, so that `--help` and `status` stay fast.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import cast

import typer

from controller.cli.lazy_group import LazyCommand, lazy_group
from controller.cli.output import print_error
from controller.errors import BadInput, CanaryctlError

INTERRUPTED = 130
# Typer vendors click or uses the installed one; either way this is the base class of its usage errors.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])

# In the order of `canaryctl --help`: module, function, and the first line of its docstring.
COMMANDS: Mapping[str, LazyCommand] = {
    name: LazyCommand(f"controller.cli.{module}", function, line)
    for name, module, function, line in (
        ("up", "services", "up", "Serve a model and print the base URL for OpenAI clients."),
        ("down", "services", "down", "Remove a service, or all of them."),
        ("plan", "rollouts", "plan", "Preview a deploy: risk, stages, duration, memory."),
        ("deploy", "rollouts", "deploy", "Roll out a new version beside stable."),
        ("status", "services", "status", "Show a service: its versions, its rollout and the evidence."),
        ("list", "services", "list_services", "List all services."),
        ("watch", "rollouts", "watch", "Watch the running rollout until it ends."),
        ("rollback", "rollouts", "rollback", "Return all traffic to stable immediately."),
        ("history", "rollouts", "history", "List the rollouts of a service, newest first."),
        ("validate", "validate", "validate", "Check a checkpoint, policy or service file offline."),
        ("controller", "foreground", "controller", "Run the controller in the foreground."),
        ("router", "foreground", "router", "Split traffic between endpoints by a table file."),
        ("demo", "demo", "demo", "Demonstrate a promotion and a rollback on real engines."),
        ("version", "version", "version", "Print the version."),
        ("backtest", "backtest", "backtest", "Replay a recorded rollout through the gates."),
        ("observed", "observed", "observed", "Write the policy entry of an observed range."),
        ("ab", "ab", "ab", "A/B tests: is B better than A?"),
    )
}
app = typer.Typer(
    name="canaryctl",
    help="Canary controller for LLM fleets: statistically proven promotions, immediate rollbacks.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=lazy_group(COMMANDS),
    callback=lambda: None,  # Typer refuses an application without commands of its own
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
