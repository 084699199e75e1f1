"""Supervised background loops of a process: one that ends is logged, restarted after a pause, and shown.

A loop handles the errors that it foresees. An unforeseen one would end it in silence: a table that posts no
fence, a router whose lease runs out, an engine that reports nothing, each looking alive.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

PAUSE_S = 0.2  # before a loop is started again; below the lease of a router (1 s)
ERROR_LENGTH = 200  # characters

log = logging.getLogger("canaryctl.loops")

Loop: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class LoopState:
    """One loop: how often it was started again, and why the last time."""

    name: str
    restarts: int = 0
    error: str | None = None  # one line; None: it never ended


class SupervisedLoops:
    """Loops of one process, in its event loop. `stop` is the only way to end them."""

    def __init__(self, *, pause_s: float = PAUSE_S) -> None:
        self._pause_s = pause_s
        self._states: dict[str, LoopState] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, loop: Loop) -> None:
        """Run `loop()` from now on, and again whenever it ends."""
        self._states[name] = LoopState(name)
        self._tasks.append(asyncio.get_running_loop().create_task(self._supervise(name, loop)))

    async def stop(self) -> None:
        """Cancel all loops and wait until they have ended."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def cancel(self) -> None:
        """Cancel all loops."""
        for task in self._tasks:
            task.cancel()

    @property
    def states(self) -> tuple[LoopState, ...]:
        """Every loop that was started."""
        return tuple(self._states.values())

    @property
    def are_running(self) -> bool:
        """True after `start` and before `stop`."""
        return bool(self._tasks)

    async def _supervise(self, name: str, loop: Loop) -> None:
        while True:
            try:
                await loop()
                error = "it returned"
            except Exception as exc:  # noqa: BLE001 - whatever it is, the loop must go on
                error = (str(exc).strip() or type(exc).__name__).splitlines()[0][:ERROR_LENGTH]
                self._log(name, error, exc)
            else:
                self._log(name, error, None)
            before = self._states[name]
            self._states[name] = replace(before, restarts=before.restarts + 1, error=error)
            await asyncio.sleep(self._pause_s)

    def _log(self, name: str, error: str, exc: Exception | None) -> None:
        """The trace once for each new error: a loop that fails at every start must not fill the disk."""
        if error != self._states[name].error:
            log.error("loop ended", exc_info=exc, extra={"loop": name, "error": error})
