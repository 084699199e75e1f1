"""Mirrored pairs that a judge needs until it rolls a worse canary back, before any user has an answer of it.

    python -m benchmarks.judged_pairs --runs 200 --out benchmarks/results/judged_pairs.json

Both answers of a pair are judged by themselves; the judge finds 80 % of the wrong ones and calls 5 % of the
right ones wrong. The verdicts go through the controller's own test of pairs, under the preset `default` with
`mirror` and a judge. Of pairs whose answers have one text one question is asked, whose verdict is of both.

worse: 3 % of stable's answers are wrong, 14 % of the canary's, whichever question it is.
worse, half alike: of the pairs that are right or wrong on both sides, half have one text.
twin: both 3 %. tolerated: the canary's verdicts are worse by just what `default` tolerates, the hardest case
that must not be rolled back. `MOST_PAIRS` pairs a run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judged import JUDGE, SEED, TOLERATED, WRONG, show
from controller.planning.judged import with_judge
from controller.planning.unjudged import Unjudged, without
from controller.spec.judge import JudgeSpec
from controller.spec.service import parse_policy
from evaluation.judging.mirrored import WAIT_S, MirroredVerdicts
from evaluation.policy.alpha_split import channel_alphas
from evaluation.policy.policy import GatePolicy

MOST_PAIRS = 2_000
CHUNK = 250
RATE_S = 1.0  # between two pairs


@dataclass(frozen=True, slots=True)
class Case:
    """wrong: shares of both versions' wrong answers. alike: of the pairs that are equally right."""

    wrong: tuple[float, float]
    alike: float = 0.0


CASES = {
    "worse": Case(WRONG),
    "worse, half alike": Case(WRONG, 0.5),
    "twin": Case((WRONG[0], WRONG[0])),
    "tolerated": Case((WRONG[0], WRONG[0] + TOLERATED / (JUDGE.found - JUDGE.false))),
}


def policy_of_pairs() -> GatePolicy:
    """The preset's gates as a rollout with `mirror` and a judge has them."""
    judge = JudgeSpec(url="http://127.0.0.1:8000/v1", model="judge")
    spec = parse_policy({"base": "default", "mirror": {}})
    spec = without(spec, [Unjudged("hallucination", "hallucinated", "reason", 1000)])
    return with_judge(spec, judge).gate_policy()


def until_rollback(policy: GatePolicy, case: Case, seed: int) -> int | None:
    """Pairs until one run is rolled back; None: it is not."""
    rng = np.random.default_rng(seed)
    wrong = rng.random((MOST_PAIRS, 2)) < np.array(case.wrong)
    bad = rng.random((MOST_PAIRS, 2)) < np.where(wrong, JUDGE.found, JUDGE.false)
    is_alike = (wrong[:, 0] == wrong[:, 1]) & (rng.random(MOST_PAIRS) < case.alike)
    bad[is_alike, 1] = bad[is_alike, 0]
    verdicts = MirroredVerdicts(policy, "quality")
    for n in range(MOST_PAIRS):
        verdicts.add(f"u{n}", RATE_S * n, (bool(bad[n, 0]), bool(bad[n, 1])))
        if n % CHUNK == CHUNK - 1:
            verdicts.advance(RATE_S * n + 0.5 + WAIT_S)
            found = verdicts.rollback
            if found is not None and found.decided_at_s is not None:
                return round(found.decided_at_s / RATE_S) + 1
    return None


def figures(policy: GatePolicy, name: str, runs: int) -> dict[str, Any]:
    """Of one case."""
    case = CASES[name]
    found = [until_rollback(policy, case, SEED + run) for run in range(runs)]
    rolled_back = [one for one in found if one is not None]
    known = sorted(math.inf if one is None else float(one) for one in found)
    quantiles = statistics.median(known), known[min(runs - 1, math.floor(0.9 * runs))]
    return {
        "case": name,
        "wrong": [round(share, 4) for share in case.wrong],
        "called_wrong": [round(JUDGE.bad_rate(share), 4) for share in case.wrong],
        "alike": case.alike,
        "runs": runs,
        "pairs_at_most": MOST_PAIRS,
        "rolled_back": len(rolled_back),
        "pairs_median": quantiles[0] if math.isfinite(quantiles[0]) else None,
        "pairs_p90": quantiles[1] if math.isfinite(quantiles[1]) else None,
        "within_200": sum(one <= 200 for one in rolled_back),
    }


def main(arguments: Sequence[str] | None = None) -> Mapping[str, Any]:
    """Measure, print and, with --out, write."""
    parser = argparse.ArgumentParser(prog="benchmarks.judged_pairs", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    policy = policy_of_pairs()
    gate = policy.gates_for("quality")[0]
    report: dict[str, Any] = {
        "seed": SEED,
        "judge": {"found": JUDGE.found, "false": JUDGE.false},
        "alpha_of_pairs": round(channel_alphas(policy, gate, sticky=False).pairs, 6),
        "cases": [],
    }
    for name in CASES:
        report["cases"].append(figures(policy, name, given.runs))
        sys.stderr.write(json.dumps(report["cases"][-1]) + "\n")
    show(report, given.out)
    return report


if __name__ == "__main__":
    main()
