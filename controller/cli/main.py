"""The `canaryctl` app: table of commands, and the one place where an error becomes a line and an exit code.

A command's module is imported when the command is run (`lazy_group.py`), and what is slow to load (numpy,
Ray, the evaluation) inside the command, so that `--help` and `status` stay fast.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from traceback import format_exception
from typing import cast

import typer

from controller import telemetry
from controller.cli.lazy_group import LazyCommand, lazy_group
from controller.cli.output import Output, print_error, requested_output
from controller.errors import BadInput, CanaryctlError, Unreachable

INTERRUPTED = 130
READER_LEFT = 141  # what a shell shows of a process that SIGPIPE ended
# Typer vendors click or uses the installed one; either way this is the base class of its usage errors.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])

# Module, function, and the first line of its docstring.
COMMANDS: Mapping[str, LazyCommand] = {
    name: LazyCommand(f"controller.cli.{module}", function, line)
    for name, module, function, line in (
        ("up", "services", "up", "Serve a model and print the base URL for OpenAI clients."),
        ("down", "removal", "down", "Remove a service, or all of them."),
        ("plan", "rollouts", "plan", "Preview a deploy: risk, stages, duration, memory."),
        ("deploy", "rollouts", "deploy", "Roll out a new version beside stable."),
        ("status", "services", "status", "Show a service: its versions, its rollout and the evidence."),
        ("list", "services", "list_services", "List all services."),
        ("watch", "rollouts", "watch", "Watch the running rollout until it ends."),
        ("rollback", "rollouts", "rollback", "Return to the version before, immediately."),
        ("undo", "rollouts", "undo", "Serve an earlier version again, without proof."),
        ("history", "history", "history", "List the rollouts of a service, newest first."),
        ("backup", "backup", "backup", "Copy the database while it is in use."),
        ("validate", "validate", "validate", "Check a checkpoint, policy or service file offline."),
        ("controller", "foreground", "controller", "Run the controller in the foreground."),
        ("router", "foreground", "router", "Split traffic between endpoints by a table file."),
        ("demo", "demo", "demo", "Demonstrate a promotion and a rollback on real engines."),
        ("version", "version", "version", "Print the version."),
        ("backtest", "backtest", "backtest", "Replay a recorded rollout through the gates."),
        ("replay", "replay", "replay", "Send recorded requests to two endpoints, and judge the answers."),
        ("observed", "observed", "observed", "Write the policy entry of an observed range."),
        ("ab", "ab", "ab", "A/B tests: is B better than A?"),
        ("smoke", "smoke", "smoke", "Check an endpoint before it gets a user: smoke prompts, golden sets."),
        ("judge", "judge", "judge", "Examine a judge of answers before it may vote."),
    )
}
# Of `canaryctl --help`, in the order in which they are needed.
GROUPS: Mapping[str, Sequence[str]] = {
    "Serve": ("up", "down", "list", "status"),
    "Roll out": ("plan", "smoke", "deploy", "watch", "rollback", "undo", "history"),
    "Judge recorded traffic, and compare": ("backtest", "replay", "observed", "ab", "judge"),
    "Operate": ("controller", "router", "backup", "validate"),
    "Learn": ("demo", "version"),
}
app = typer.Typer(
    name="canaryctl",
    help="Canary controller for LLM fleets: statistically proven promotions, immediate rollbacks.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=lazy_group(COMMANDS, GROUPS),
    callback=lambda: None,  # Typer refuses an application without commands of its own
)


_ALIASES = {(): ["--help"], ("--version",): ["version"]}  # what people type first


def run(arguments: Sequence[str] | None = None) -> int:
    """Exit code of `canaryctl ARGUMENTS`; an error is printed in the format that `-o` asks for."""
    if sys.stdout is None:  # closed by who began this (`>&-`)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    given = list(sys.argv[1:] if arguments is None else arguments)
    output = requested_output(given)
    telemetry.warn_people(sys.stderr)
    try:
        result = app(args=_ALIASES.get(tuple(given), given), prog_name="canaryctl", standalone_mode=False)
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except UsageError as exc:
        path = exc.ctx.command_path if exc.ctx is not None else _typed(given)
        if getattr(getattr(exc, "param", None), "name", None) == "output":
            output = Output.TABLE  # the command does not have the format, so it tells a person
        return _fail(BadInput(f"{exc.format_message()} (usage: {path} --help)"), output)
    except CanaryctlError as exc:
        return _fail(exc, output)
    except BrokenPipeError:
        _drop_output()
        return READER_LEFT
    except OSError as exc:
        if (full := _medium_advice(exc)) is not None:
            return _fail(Unreachable(full), output)
        if exc.filename is None:
            raise
        return _fail(BadInput(_advice(exc)), output)
    except Exception as exc:
        if output.is_text:
            raise  # a bug: the traceback is what its report needs
        return _fail(
            CanaryctlError(f"{type(exc).__name__}: {exc}; please report this"),
            output,
            traceback=format_exception(exc),
        )
    return result if isinstance(result, int) else 0


def _typed(arguments: Sequence[str]) -> str:
    """The command that was typed, of an error that does not say in which it was (an option without value)."""
    words = ["canaryctl"]
    if arguments and arguments[0] in COMMANDS:
        words.append(arguments[0])
        found = COMMANDS[arguments[0]].load()
        inner = found.registered_commands if isinstance(found, typer.Typer) else []
        named = {one.name or getattr(one.callback, "__name__", "") for one in inner}
        words += [name for name in arguments[1:2] if name in named]
    return " ".join(words)


def _medium_advice(error: OSError) -> str | None:
    """One line for a disk that takes nothing, whatever the file; None: it is something else."""
    remedies = {
        errno.ENOSPC: "free disk space",
        errno.EDQUOT: "free disk space, or raise the quota",
        errno.EROFS: "mount it writable again; the kernel's log says why it is not",
        errno.EIO: "the kernel's log says what is wrong with the disk",
    }
    remedy = remedies.get(error.errno or 0)
    if remedy is None:
        return None
    if error.filename is None:
        _drop_output()
    place = os.fsdecode(error.filename) if error.filename is not None else "what was to be written"
    return f"{place}: {error.strerror}; {remedy}"


def _drop_output() -> None:
    """Let what stdout still holds go nowhere: Python would write it, and fail once more, as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _advice(error: OSError) -> str:
    """One line for a file that cannot be used: the path, the cause, the remedy."""
    from controller.settings import state_folder

    path, cause = Path(os.fsdecode(error.filename)), error.strerror
    if path.is_relative_to(state_folder()):
        return f"{path}: {cause}; use a writable path (CANARYCTL_HOME sets the state folder)"
    if path.is_symlink() and not path.exists():
        target = os.readlink(path)
        return f"{path} is a link to {target}, which does not exist; copy it with links followed: cp -rL"
    return f"{path}: {cause}; give a path that this user may read"


def _fail(error: CanaryctlError, output: Output, *, traceback: Sequence[str] = ()) -> int:
    print_error(error, output, traceback=traceback)
    return error.exit_code
