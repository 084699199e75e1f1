"""Words of the reports: what harms, what a margin means, and which requests showed it."""

from __future__ import annotations

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
        case Kind.PERCENTILE:
            return f"{gate.name} < {margin:g}x"
