"""A/B tests in SQL: the question, how far the log was read, and every outcome, appended and never changed.

The outcomes are the state: a restarted controller replays them and goes on to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from controller.ab.outcomes import Outcome
from controller.ab.spec import AbSpec
from controller.errors import Conflict
from controller.store import schema as t


@dataclass(frozen=True, slots=True)
class AbRow:
    """A stored test. `resume_seq`: the log is read again from after this event."""

    id: str
    service: str
    rollout: str
    spec: AbSpec
    created_at_s: float
    ended_at_s: float | None  # None: it runs
    resume_seq: int = 0
    settled_through_s: float = 0.0


class AbStore:
    """The tests of one database. Safe to use from several threads."""

    def __init__(self, url: str, *, mounts: Path = Path("/proc/self/mounts")) -> None:
        """Opens (and on first use makes) the tables. Raises BadInput or Unreachable."""
        self._engine = t.open_engine(url, mounts=mounts)
        self._writes = t.writing(self._engine)

    def close(self) -> None:
        """Gives the connections back."""
        self._engine.dispose()

    def create(self, row: AbRow) -> None:
        """Store a new test. Raises Conflict while another runs on the service."""
        values = {**t.values_of(row), "spec": row.spec.model_dump_json()}
        try:
            with self._writes.begin() as db:
                db.execute(sa.insert(t.ab_tests).values(**values))
        except sa.exc.IntegrityError as exc:
            raise Conflict(
                f"{row.service} has an A/B test already; end it: canaryctl ab stop {row.service}"
            ) from exc

    def newest(self, service: str) -> AbRow | None:
        """The service's newest test; None: it never had one."""
        c = t.ab_tests.c
        # The one that runs is the newest, even after the clock was set back.
        newest_first = (c.ended_at_s.is_not(None), c.created_at_s.desc())
        query = sa.select(t.ab_tests).where(c.service == service).order_by(*newest_first).limit(1)
        with self._engine.begin() as db:
            found = db.execute(query).first()
        if found is None:
            return None
        return AbRow(**{**found._asdict(), "spec": AbSpec.model_validate_json(found.spec)})

    def outcomes(self, test: str) -> tuple[Outcome, ...]:
        """Everything counted so far, in order."""
        columns = [t.ab_outcomes.c[name] for name in Outcome.__slots__]
        query = sa.select(*columns).where(t.ab_outcomes.c.test == test).order_by(t.ab_outcomes.c.place)
        with self._engine.begin() as db:
            return tuple(Outcome(*row) for row in db.execute(query))

    def append(
        self, test: str, outcomes: Sequence[Outcome], *, first: int, resume_seq: int, settled_through_s: float
    ) -> None:
        """Add outcomes from place `first` on, and how far the log was read, in one transaction."""
        rows = [{"test": test, "place": first + i, **t.values_of(o)} for i, o in enumerate(outcomes)]
        with self._writes.begin() as db:
            if rows:
                db.execute(sa.insert(t.ab_outcomes), rows)
            db.execute(
                sa.update(t.ab_tests)
                .where(t.ab_tests.c.id == test)
                .values(resume_seq=resume_seq, settled_through_s=settled_through_s)
            )

    def end(self, test: str, *, at_s: float) -> None:
        """The test is over; what it says stays."""
        with self._writes.begin() as db:
            db.execute(
                sa.update(t.ab_tests)
                .where(t.ab_tests.c.id == test, t.ab_tests.c.ended_at_s.is_(None))
                .values(ended_at_s=at_s)
            )
