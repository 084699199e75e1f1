"""Work in a child process, so that no thread of this one waits for the interpreter while it computes.

Invariant: a process that fails, hangs, is killed or cannot be started becomes one `ChildFailed`, and none is
left behind.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

NICE = 10
STOP_S = 2.0

T = TypeVar("T")


class ChildFailed(Exception):
    """The work raised something, or no process could be started; one line says what."""


class ChildLate(ChildFailed):
    """It was not done within its limit."""


class ChildEnded(ChildFailed):
    """The process ended without a result, as one that is killed does."""


def in_child(
    work: Callable[[], T], *, name: str, limit_s: float, passed_on: tuple[type[Exception], ...] = ()
) -> T:
    """Result of `work()` in a child process, which must be able to import it. Waits for it.

    passed_on: exceptions of the work that are raised here as they are; they must survive pickling.
    Raises ChildFailed.
    """
    _leave_deleted_folder()
    context = multiprocessing.get_context("spawn")  # a fork would copy the controller's threads' locks
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, work, passed_on), name=name, daemon=True)
    try:
        try:
            process.start()
        except OSError as exc:  # the system has no more processes
            raise ChildFailed(f"no process can be started: {exc}") from exc
        finally:
            sender.close()
        if not receiver.poll(limit_s):
            raise ChildLate(f"took longer than {limit_s:.0f} s")
        result, error = receiver.recv()
    except EOFError as exc:
        process.join(STOP_S)
        raise ChildEnded(f"ended with exit code {process.exitcode}") from exc
    finally:
        receiver.close()
        _stop(process)
    if isinstance(error, Exception):
        raise error
    if error is not None:
        raise ChildFailed(error)
    done: T = result
    return done


def _leave_deleted_folder() -> None:
    """A child begins in this process's working folder: go to another where that one was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


def _work(sender: Connection, work: Callable[[], T], passed_on: tuple[type[Exception], ...]) -> None:
    """In the child process: send (result, None), or (None, error)."""
    os.nice(NICE)
    try:
        outcome: tuple[T | None, str | Exception | None] = (work(), None)
    except passed_on as exc:
        outcome = (None, exc)
    except Exception as exc:  # noqa: BLE001 - any error is sent to the parent
        outcome = (None, f"{type(exc).__name__}: {exc}".splitlines()[0][:200])
    sender.send(outcome)


def _stop(process: multiprocessing.process.BaseProcess) -> None:
    if process.pid is None:
        return  # it never started
    process.join(0.2)
    for stop in (process.terminate, process.kill):
        if process.is_alive():
            stop()
            process.join(STOP_S)
