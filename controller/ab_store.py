"""A/B tests in SQL: the question, how far the log was read, and every outcome, appended and never changed.

The outcomes are the state: a restarted controller replays them and goes on to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from controller.ab import AbSpec, Outcome
from controller.errors import Conflict
from controller.store_schema import open_engine, writing

_metadata = sa.MetaData()

_tests = sa.Table(
    "ab_tests",
    _metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("service", sa.String, nullable=False),
    sa.Column("rollout", sa.String, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("ended_at_s", sa.Float),
    sa.Column("resume_seq", sa.BigInteger, nullable=False, default=0),
    sa.Column("settled_through_s", sa.Float, nullable=False, default=0.0),
)
sa.Index(
    "one_ab_test_a_service",
    _tests.c.service,
    unique=True,
    sqlite_where=_tests.c.ended_at_s.is_(None),
    postgresql_where=_tests.c.ended_at_s.is_(None),
)
_outcomes = sa.Table(
    "ab_outcomes",
    _metadata,
    sa.Column("test", sa.String, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("unit", sa.BigInteger, nullable=False),
    sa.Column("is_b", sa.Boolean, nullable=False),
    sa.Column("w", sa.Float, nullable=False),
    sa.Column("y", sa.Float),
    sa.Column("at_s", sa.Float, nullable=False),
)


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
        self._engine = open_engine(url, mounts=mounts)
        self._writes = writing(self._engine)
        with self._writes.begin() as db:
            _metadata.create_all(db)

    def close(self) -> None:
        """Gives the connections back."""
        self._engine.dispose()

    def create(self, row: AbRow) -> None:
        """Store a new test. Raises Conflict while another runs on the service."""
        values = {
            "id": row.id,
            "service": row.service,
            "rollout": row.rollout,
            "spec": row.spec.model_dump_json(),
            "created_at_s": row.created_at_s,
        }
        try:
            with self._writes.begin() as db:
                db.execute(sa.insert(_tests).values(**values))
        except sa.exc.IntegrityError as exc:
            raise Conflict(
                f"{row.service} has an A/B test already; end it: canaryctl ab stop {row.service}"
            ) from exc

    def newest(self, service: str) -> AbRow | None:
        """The service's newest test; None: it never had one."""
        query = sa.select(_tests).where(_tests.c.service == service).order_by(_tests.c.created_at_s.desc())
        with self._engine.begin() as db:
            found = db.execute(query.limit(1)).first()
        if found is None:
            return None
        return AbRow(
            found.id,
            found.service,
            found.rollout,
            AbSpec.model_validate_json(found.spec),
            found.created_at_s,
            found.ended_at_s,
            found.resume_seq,
            found.settled_through_s,
        )

    def outcomes(self, test: str) -> tuple[Outcome, ...]:
        """Everything counted so far, in order."""
        query = sa.select(_outcomes).where(_outcomes.c.test == test).order_by(_outcomes.c.place)
        with self._engine.begin() as db:
            rows = db.execute(query).all()
        return tuple(Outcome(row.unit, row.is_b, row.w, row.y, row.at_s) for row in rows)

    def append(
        self, test: str, outcomes: Sequence[Outcome], *, first: int, resume_seq: int, settled_through_s: float
    ) -> None:
        """Add outcomes from place `first` on, and how far the log was read, in one transaction."""
        rows = [
            {
                "test": test,
                "place": first + i,
                "unit": o.unit,
                "is_b": o.is_b,
                "w": o.w,
                "y": o.y,
                "at_s": o.at_s,
            }
            for i, o in enumerate(outcomes)
        ]
        with self._writes.begin() as db:
            if rows:
                db.execute(sa.insert(_outcomes), rows)
            db.execute(
                sa.update(_tests)
                .where(_tests.c.id == test)
                .values(resume_seq=resume_seq, settled_through_s=settled_through_s)
            )

    def end(self, test: str, *, at_s: float) -> None:
        """The test is over; what it says stays."""
        with self._writes.begin() as db:
            db.execute(
                sa.update(_tests)
                .where(_tests.c.id == test, _tests.c.ended_at_s.is_(None))
                .values(ended_at_s=at_s)
            )
