"""Words of the reports: what harms, what a margin means, and which requests showed it."""

from __future__ import annotations

import math

from evaluation.metrics import CATALOGUE, Kind
from evaluation.policy.gates import Gate, Proof


def harm(gate: Gate) -> str:
    return f"{gate.name} {beyond(gate)}"


def beyond(gate: Gate) -> str:
    """What is worse, without the gate's name."""
    if gate.kind is Kind.SCORE:
        return f"more than {gate.tolerance:g} below stable"
    return f"above {1 + gate.tolerance:g}x"


USES = {
    "first": "first requests",
    "session": "sessions",
    "pairs": "mirrored pairs",
    "later": "later requests of the same units",
}


def margin(gate: Gate, proof: Proof, proofs: int) -> str:
    """What a proof shows, in words; with its units where a stage has two proofs of one gate."""
    text = _in_words(gate, proof.margin, proof.floor)
    if proofs == 1:
        return text
    return f"{text} over the {'rollout' if proof.is_whole else 'stage'}"


def _in_words(gate: Gate, margin: float, floor: float) -> str:
    match gate.kind:
        case Kind.RATE:
            return f"{gate.name} < {margin:g}x or < +{floor:g}"
        case Kind.SCORE:
            return f"{gate.name} > -{margin:g}"
        case Kind.SHAPE:
            word = "slower" if CATALOGUE[gate.metric].unit == "ms" else "higher"
            return f"{gate.name}: not {word} throughout than {margin:g}x"
        case Kind.PERCENTILE | Kind.MEAN:
            return f"{gate.name} < {margin:g}x"


def requests_text(
    gate: Gate, proof: Proof, stable: float | None, canary: float | None, *, requests_per_unit: float
) -> str:
    """What all requests together say where that is beyond a proven margin; empty: it is not, or each request
    is its own unit. A proof is of units, each of which counts alike: harm in the longest conversations weighs
    by the users who have them. The proof stays one.

    stable, canary: estimates of all requests (`points.py`), in the metric's unit; None: no values.
    Check: quality, margin 0.05, 0.75 and 0.685: `; over all requests it is -0.065 (users with many ...)`.
    """
    if stable is None or canary is None or not (math.isfinite(stable) and math.isfinite(canary)):
        return ""
    if requests_per_unit < 1.01:
        return ""
    if gate.kind is Kind.SCORE:
        is_beyond, figure = canary - stable < -proof.margin, f"{canary - stable:+.3f}"
    else:
        floor = proof.floor if gate.kind is Kind.RATE else 0.0
        is_beyond = canary > max(proof.margin * stable, stable + floor)
        figure = f"{canary / stable:.3g}x" if stable > 0.0 else f"{canary - stable:+.3f}"
    if not is_beyond:
        return ""
    return f" for users; over all requests it is {figure} (users with many requests may differ)"
