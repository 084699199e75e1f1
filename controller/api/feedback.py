"""Feedback scores: a request body checked, all or none, and each score written to its service's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from controller.api.bodies import FeedbackResult
from controller.errors import BadInput, Unreachable
from controller.planning.baseline import JUDGED
from controller.quantities import finite, shown
from serving.messages import ANSWER_ID_LIMIT

MAX_SCORES = 1000
DEFAULT_METRIC = "quality"

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
    name, metric, value = item.get("id"), item.get("metric", DEFAULT_METRIC), item.get("score")
    if not isinstance(name, str) or not 1 <= len(name) <= ANSWER_ID_LIMIT:
        raise BadInput(
            f"feedback {index}: id is not 1 to {ANSWER_ID_LIMIT} characters; give the answer's id or its "
            "request id"
        )
    if metric not in JUDGED:
        known = ", ".join(sorted(JUDGED))
        raise BadInput(f"feedback {index}: metric {shown(metric)} is unknown; use one of {known}")
    number = finite(value)
    if number is None:
        raise BadInput(f"feedback {index}: score {shown(value)} is not a number; use 0 to 1")
    if not 0 <= number <= 1:
        raise BadInput(f"feedback {index}: score {number:g} is outside 0 to 1; rescale it")
    return name, metric, number, now_s


class ScoreLogs(Protocol):
    """The services' records logs."""

    def append_scores(self, service: str, scores: Sequence[Score]) -> bool: ...
    def has_request(self, service: str, id: str) -> bool | None: ...
    def has_score(self, service: str, id: str, metric: str) -> bool: ...
    def forgotten_after_s(self, service: str) -> float | None: ...


def write_scores(logs: ScoreLogs, services: Sequence[str], scores: Sequence[Score]) -> FeedbackResult:
    """Write each score to the log of the service that answered its request, or to all while that is unknown.

    The first score of a request and metric counts; a later one is taken as well, and counted as repeated.
    Raises Unreachable when no log took any of them.
    """
    owners = {score: [logs.has_request(service, score[0]) for service in services] for score in scores}
    taken: set[Score] = set()
    unreachable = []
    for index, service in enumerate(services):
        due = [score for score in scores if owners[score][index] or True not in owners[score]]
        if not due:
            continue
        if logs.append_scores(service, due):
            taken.update(due)
        else:
            unreachable.append(service)
    if not taken:
        raise Unreachable(
            f"the records log of {', '.join(unreachable)} does not answer; send the scores again"
        )
    is_read = all(True in found or None not in found for found in owners.values())
    matched = sum(True in owners[score] for score in scores if score in taken) if is_read else None
    count = sum(score in taken for score in scores)
    known = {
        (id, metric) for id, metric, _, _ in scores if any(logs.has_score(s, id, metric) for s in services)
    }
    repeated = 0
    for id, metric, _, _ in (score for score in scores if score in taken):
        repeated += (id, metric) in known
        known.add((id, metric))
    ages_s = [age_s for service in services if (age_s := logs.forgotten_after_s(service)) is not None]
    return FeedbackResult(
        taken=count,
        matched=matched,
        waiting=count - matched if matched is not None else None,
        repeated=repeated if is_read else None,
        forgotten_after_s=min(ages_s, default=None),
        unreachable=tuple(unreachable),
    )
