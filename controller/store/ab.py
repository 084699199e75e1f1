"""A/B tests in SQL: the spec, how far the log was read, and every outcome, appended and never changed.

The outcomes are the state: a restarted controller replays them and gets the same result, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from controller.errors import Conflict
from controller.store import schema as t
from controller.store.rows import AbOutcome, AbRow


class AbStore:
    """The tests of one database. Safe to use from several threads."""

    def __init__(self, url: str, *, mounts: Path = Path("/proc/self/mounts")) -> None:
        """Open the tables, creating them on first use. Raises BadInput or Unreachable."""
        self._engine = t.open_engine(url, mounts=mounts)
        self._writes = t.writing(self._engine)

    def create(self, row: AbRow) -> None:
        """Store a new test. Raises Conflict while another runs on the service."""
        try:
            with self._writes.begin() as db:
                db.execute(sa.insert(t.ab_tests).values(**t.values_of(row)))
        except sa.exc.IntegrityError as exc:
            raise Conflict(
                f"{row.service} has an A/B test already; end it: canaryctl ab stop {row.service}"
            ) from exc

    def newest(self, service: str) -> AbRow | None:
        """The service's newest test; None: it never had one."""
        c = t.ab_tests.c
        # The running one is the newest, even if the clock was set back.
        newest_first = (c.ended_at_s.is_not(None), c.created_at_s.desc())
        query = sa.select(t.ab_tests).where(c.service == service).order_by(*newest_first).limit(1)
        with self._engine.begin() as db:
            row = db.execute(query).first()
        return AbRow(**row._asdict()) if row is not None else None

    def outcomes(self, test: str) -> tuple[AbOutcome, ...]:
        """Every outcome counted so far, in order."""
        columns = [t.ab_outcomes.c[name] for name in AbOutcome.__slots__]
        query = sa.select(*columns).where(t.ab_outcomes.c.test == test).order_by(t.ab_outcomes.c.place)
        with self._engine.begin() as db:
            return tuple(AbOutcome(*row) for row in db.execute(query))

    def append(
        self, test: str, rows: Sequence[AbOutcome], *, first: int, resume_seq: int, settled_through_s: float
    ) -> None:
        """Append outcomes from place `first` on, and how far the log was read, in one transaction."""
        values = [{"test": test, "place": first + i, **t.values_of(row)} for i, row in enumerate(rows)]
        with self._writes.begin() as db:
            if values:
                db.execute(sa.insert(t.ab_outcomes), values)
            db.execute(
                sa.update(t.ab_tests)
                .where(t.ab_tests.c.id == test)
                .values(resume_seq=resume_seq, settled_through_s=settled_through_s)
            )

    def end(self, test: str, *, at_s: float) -> None:
        """End the test; its outcomes stay."""
        with self._writes.begin() as db:
            db.execute(
                sa.update(t.ab_tests)
                .where(t.ab_tests.c.id == test, t.ab_tests.c.ended_at_s.is_(None))
                .values(ended_at_s=at_s)
            )
