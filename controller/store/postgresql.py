"""Connections to PostgreSQL that wait a bounded time for every answer, and none that cannot write.

The server's own time limits do not help when the server itself stands still (a stopped process, a disk that
hangs): its host goes on acknowledging packets, so TCP's do not either. After a switchover a pool may hold
connections to the primary of before, which answers as a standby, for as long as it runs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa

from controller.errors import BadInput

ANSWER_S = 12.0  # more than the server's lock_timeout, which has the better message

# Options of other clients, such as Prisma's `pgbouncer` and asyncpg's `statement_cache_mode`.
_UNKNOWN_OPTION = re.compile(r'invalid (?:connection|URI query) (?:option|parameter):? "([^"]*)"')

T = TypeVar("T")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed, with an OperationalError, when an answer takes over `answer_s`.

    answer_s None: it waits without limit.
    """

    answer_s: float | None = ANSWER_S

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Run one exchange with the server; psycopg resumes it every 0.1 s while nothing arrives."""
        if self.answer_s is None:
            return super().wait(gen, *args, **kwargs)
        return super().wait(self._bounded(gen, self.answer_s), *args, **kwargs)

    def _bounded(self, gen: Generator[Any, Any, T], answer_s: float) -> Generator[Any, Any, T]:
        ends_at_s = time.monotonic() + answer_s
        try:
            state = next(gen)
            while True:
                ready = yield state
                if not ready and time.monotonic() > ends_at_s:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {answer_s:g} s")
                state = gen.send(ready)
        except StopIteration as done:
            result: T = done.value
            return result


def bound_answers(engine: sa.Engine) -> None:
    """Let the engine open bounded connections. To open one raises BadInput for an unknown option."""

    @sa.event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, args: list[Any], given: dict[str, Any]) -> Any:
        try:
            return BoundedConnection.connect(*args, **given)
        except psycopg.ProgrammingError as exc:
            if (unknown := _UNKNOWN_OPTION.search(str(exc))) is None:
                raise
            raise BadInput(
                f"the database URL has an option that PostgreSQL does not know: {unknown[1]}; leave it out"
            ) from exc


def leave_read_only(engines: Sequence[sa.Engine]) -> None:
    """Let the engines give up all their connections when a write meets a server that takes none (a standby),
    so that each reaches whoever stands behind the address by then."""

    def give_up(context: sa.engine.ExceptionContext) -> None:
        if isinstance(context.original_exception, psycopg.errors.ReadOnlySqlTransaction):
            context.is_disconnect = True  # ends the connections of its own pool
            for engine in engines:
                if context.engine is None or engine.pool is not context.engine.pool:
                    engine.dispose()

    for engine in engines:
        sa.event.listen(engine, "handle_error", give_up)


def wait_without_limit(db: sa.Connection) -> None:
    """Let this connection wait for as long as the server takes, for a migration."""
    if isinstance(connection := db.connection.dbapi_connection, BoundedConnection):
        connection.answer_s = None


def wait_bounded(db: sa.Connection) -> None:
    """Undo `wait_without_limit`."""
    if isinstance(connection := db.connection.dbapi_connection, BoundedConnection):
        connection.answer_s = BoundedConnection.answer_s
