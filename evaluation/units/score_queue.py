"""Queue of settled requests that wait for the scores of one metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats
from evaluation.records import Draw, sampled_name
from evaluation.units.sessions import Rows
from evaluation.units.settlement import Settlement


class Queue:
    """Settled requests waiting for the scores of one metric, in order of assignment.

    `covariates`: those that the metric's gates name, one row each. `sampled`: of which a score was drawn for,
    before there was an answer.
    """

    def __init__(self, metric: str, covariates: Sequence[str] = ()) -> None:
        self.metric = metric
        self.names = tuple(covariates)
        self.requests: list[str] = []
        self.rows = Rows.none()
        self.failed = np.empty(0, dtype=np.bool_)
        self.sampled = np.empty(0, dtype=np.bool_)
        self.covariates = np.empty((len(covariates), 0))

    @property
    def __state__(self) -> tuple[str, ...]:
        kept = ("requests", "columns", "failed", "sampled")
        return (*kept, "covariates") if self.names else kept

    @property
    def columns(self) -> list[NDArray[Any]]:
        """The rows as plain arrays, for a snapshot."""
        return self.rows.columns()

    @columns.setter
    def columns(self, arrays: list[NDArray[Any]]) -> None:
        self.rows = Rows(*arrays)

    def push(self, draws: Sequence[Draw], rows: Rows, failed: NDArray[np.bool_]) -> None:
        """Append requests."""
        self.requests += [draw.request_id for draw in draws]
        if self.names:
            added = [[draw.covariates.get(name, math.nan) for draw in draws] for name in self.names]
            self.covariates = np.concatenate((self.covariates, np.array(added, dtype=np.float64)), axis=1)
        self.rows = self.rows.joined(rows)
        self.failed = np.concatenate((self.failed, failed))
        sampled = np.array([self.metric in draw.sampled for draw in draws], dtype=np.bool_)
        self.sampled = np.concatenate((self.sampled, sampled))

    def pop(
        self, deadline_s: float, settlement: Settlement
    ) -> tuple[list[str], Rows, dict[str, Floats], NDArray[np.bool_]]:
        """Remove the leading requests that have a score, or can get none any more (NaN): their deadline has
        passed, or the request failed. Returns their ids, rows, by name scores, covariates and which were
        sampled, and which failed."""
        values = []
        for request, at_s, failed in zip(
            self.requests, self.rows.at_s.tolist(), self.failed.tolist(), strict=True
        ):
            value = settlement.score_of(request, self.metric, at_s + deadline_s)
            if value is None and not failed and not at_s + deadline_s < settlement.now_s:
                break
            values.append(float("nan") if value is None else value)
        count = len(values)
        requests, rows, has_failed = self.requests[:count], self.rows.pick(slice(count)), self.failed[:count]
        self.requests, self.failed = self.requests[count:], self.failed[count:]
        self.rows = self.rows.pick(slice(count, None))
        raw = dict(zip(self.names, self.covariates[:, :count], strict=True))
        self.covariates = self.covariates[:, count:]
        raw[self.metric] = np.array(values, dtype=np.float64)
        if self.sampled[:count].any():
            raw[sampled_name(self.metric)] = self.sampled[:count].astype(np.float64)
        self.sampled = self.sampled[count:]
        return requests, rows, raw, has_failed
