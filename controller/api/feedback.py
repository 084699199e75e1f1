"""Feedback scores of a request body: checked, all or none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from controller.errors import BadInput
from evaluation.metrics import CATALOGUE

MAX_SCORES = 1000
MAX_ID_LENGTH = 200

Score = tuple[str, str, float, float]  # id, metric, value, at_s


def parse_scores(items: Sequence[Mapping[str, Any]], *, now_s: float) -> list[Score]:
    """The scores. Raises BadInput, naming the first item that is wrong."""
    if not 1 <= len(items) <= MAX_SCORES:
        raise BadInput(f"{len(items)} scores in one request; send 1 to {MAX_SCORES}")
    return [_score(index, item, now_s) for index, item in enumerate(items)]


def _score(index: int, item: Mapping[str, Any], now_s: float) -> Score:
    unknown = sorted(set(item) - {"id", "metric", "score"})
    if unknown:
        raise BadInput(f"feedback {index}: unknown key {unknown[0]!r}; use id, metric, score")
    name, metric, value = item.get("id"), item.get("metric"), item.get("score")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_LENGTH:
        raise BadInput(
            f"feedback {index}: id is not 1 to {MAX_ID_LENGTH} characters; give the answer's id or its "
            "request id"
        )
    scored = sorted(one.name for one in CATALOGUE.values() if one.arrives_later)
    if metric not in scored:
        raise BadInput(f"feedback {index}: metric {metric!r} is unknown; use one of {', '.join(scored)}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"feedback {index}: score {value!r} is not a number; use 0 to 1")
    if not 0 <= value <= 1:
        raise BadInput(f"feedback {index}: score {value:g} is outside 0 to 1; rescale it")
    return name, metric, float(value), now_s
