"""A/B tests in SQL: the spec, how far the log was read, and every outcome, appended and never changed.

The outcomes are the state: a restarted controller replays them and gets the same result, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from controller.errors import StaleWrite
from controller.store import schema as t
from controller.store.database import Database
from controller.store.rows import AbOutcome, AbRow


class AbStore:
    """The tests of one database, which the caller closes. Safe to use from several threads.

    A test is stored with its rollout, in one transaction (`SqlStore.create_rollout`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, service: str) -> AbRow | None:
        """The service's newest test; None: it never had one."""
        c = t.ab_tests.c
        columns = [c[name] for name in AbRow.__slots__]
        query = sa.select(*columns).where(c.service == service).order_by(c.seq.desc()).limit(1)
        with self._database.read() as db:
            row = db.execute(query).first()
        return AbRow(*row) if row is not None else None

    def outcomes(self, test: str) -> tuple[AbOutcome, ...]:
        """Every outcome counted so far, in order."""
        columns = [t.ab_outcomes.c[name] for name in AbOutcome.__slots__]
        query = sa.select(*columns).where(t.ab_outcomes.c.test == test).order_by(t.ab_outcomes.c.place)
        with self._database.read() as db:
            return tuple(AbOutcome(*row) for row in db.execute(query))

    def append(
        self, test: str, rows: Sequence[AbOutcome], *, first: int, resume_seq: int, settled_through_s: float
    ) -> None:
        """Append outcomes from place `first` on, and how far the log was read, in one transaction.

        Raises StaleWrite unless `first` outcomes are stored: another controller has written, replay them.
        """
        values = [{"test": test, "place": first + i, **t.values_of(row)} for i, row in enumerate(rows)]
        c = t.ab_tests.c
        with self._database.write() as db:
            db.execute(sa.select(c.id).where(c.id == test).with_for_update())
            counted = sa.select(sa.func.count()).where(t.ab_outcomes.c.test == test)
            if (stored := db.execute(counted).scalar_one()) != first:
                raise StaleWrite(f"A/B test {test} has {stored} outcomes, not {first}; replay them")
            if values:
                db.execute(sa.insert(t.ab_outcomes), values)
            db.execute(
                sa.update(t.ab_tests)
                .where(c.id == test)
                .values(resume_seq=resume_seq, settled_through_s=settled_through_s)
            )

    def end(self, test: str, *, at_s: float) -> None:
        """End the test; its outcomes stay."""
        with self._database.write() as db:
            db.execute(
                sa.update(t.ab_tests)
                .where(t.ab_tests.c.id == test, t.ab_tests.c.ended_at_s.is_(None))
                .values(ended_at_s=at_s)
            )
