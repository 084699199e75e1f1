"""How often each canary of a table file has been put in again: what its clients' tokens hold for."""

from __future__ import annotations

from dataclasses import replace

from serving.messages import RouteTable
from serving.router.standalone.table_reader import TableFile


class PuttingsIn:
    """How often each canary of a file has been put in again, as far as this process has seen.

    A token of a canary that was removed does not count for the same canary put in later. Routers that share a
    key of tokens, and one that was restarted, know of that only by `canary.since` of the file.
    """

    def __init__(self) -> None:
        self._current: dict[str, str] = {}  # generation in effect, by service
        self._times: dict[tuple[str, str], int] = {}  # by service and generation

    def use(self, file: TableFile) -> dict[str, RouteTable]:
        """The tables of a file that takes effect, each with the generation of its canary.

        A canary that is out because its key cannot be read has not left: its tokens hold when it is back. One
        that is off has left, also for a router that starts while it is.
        """
        tables, current = file.tables, {}
        for name, table in tables.items():
            is_waiting = file.is_without_key(name) and self._current.get(name) == table.generation
            if table.canary is not None or is_waiting:
                current[name] = table.generation
            elif file.is_off(name):
                self._times.setdefault((name, table.generation), 0)
        for one in current.items() - self._current.items():
            self._times[one] = self._times.get(one, -1) + 1
        self._current = current
        used = dict(tables)
        for name, generation in current.items():
            times = self._times[name, generation]
            if times:
                used[name] = replace(tables[name], generation=f"{generation}\n{times}")
        return used
