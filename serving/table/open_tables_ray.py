"""The services that have a route table in this Ray cluster, for who has no database to ask."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from ray.util import list_named_actors

from serving.actor_calls_ray import Deadline, in_thread
from serving.actor_names import table_name


class OpenTables:
    """Asks Ray's head. Safe in several threads, which share one look-up: a head that hangs leaves no pile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: Future[tuple[str, ...]] | None = None

    def services(self, timeout_s: float) -> tuple[str, ...]:
        """Names of the services with a route table, sorted. The caller has called `ray.init`.

        Raises GetTimeoutError where the head does not answer in time, and what Ray raises.
        """
        return Deadline(timeout_s).wait(self._look_up())

    def _look_up(self) -> Future[tuple[str, ...]]:
        with self._lock:
            if self._pending is None or self._pending.done():
                self._pending = in_thread(_open_services)
            return self._pending


def _open_services() -> tuple[str, ...]:
    prefix = table_name("")
    return tuple(sorted(name.removeprefix(prefix) for name in list_named_actors() if name.startswith(prefix)))
