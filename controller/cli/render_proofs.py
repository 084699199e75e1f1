"""Rendering of what each passed stage proved, without I/O: a promotion must not read like an unproven one."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from controller.quantities import duration, percent
from controller.views.models import PassView, RolloutView

UNPROVEN = {"waived": "waived by a person", "point_estimates": "promoted on point estimates"}


def proof_lines(view: RolloutView) -> list[Text]:
    """A line for each stage that was left forward, and one for each gate that it had to prove.

    While a stage runs, its own gates are what matters: of those before, one line each.
    """
    passed = {one.number: one for one in view.passed}
    lines = []
    for stage in view.stages:
        one = passed.get(stage.number)
        if one is not None:
            lines.append(_stage(one))
            lines += _gates(one) if view.stage is None else []
        elif stage.status == "done" and passed:
            text = f"stage {stage.number}, {percent(stage.weight_bp)}: NOT PROVEN, skipped"
            lines.append(Text(text, style="yellow"))
    return lines


def summary(view: RolloutView) -> str:
    """`10 % proven: error, quality; 50 % NOT PROVEN`; empty: no stage was left forward."""
    return "; ".join(map(_short, view.passed))


def proven_at(view: RolloutView) -> Mapping[str, str]:
    """By gate, the weights at which it was proven, once no stage runs; empty while one does."""
    if view.stage is not None:
        return {}
    found: dict[str, list[str]] = {}
    for one in view.passed:
        for proof in one.proofs:
            found.setdefault(proof.gate, []).extend([percent(one.weight_bp)] if proof.is_proven else [])
    return {gate: ", ".join(weights) for gate, weights in found.items()}


def _stage(one: PassView) -> Text:
    head, held = f"stage {one.number}, {percent(one.weight_bp)}", duration(round(one.held_s))
    if one.how in UNPROVEN:
        return Text(f"{head}: NOT PROVEN, {UNPROVEN[one.how]} after {held} at this weight", style="yellow")
    if one.proven_canary is None:
        after = f"{one.canary_requests} canary requests in all and {held} at this weight"
        return Text(f"{head}: passed after {after}, no gate to prove")
    by = f", last by {one.last_gate}" if one.last_gate is not None else ""
    after = f"{one.proven_canary} canary requests in all and {held} at this weight"
    # The proofs below are as of the moment when the stage was left, which waits for more than the proof.
    more = f"; figures: of all {one.canary_requests} when it was left" if _has_more(one) else ""
    return Text(f"{head}: proven after {after}{by}{more}", style="green")


def _has_more(one: PassView) -> bool:
    return one.canary_requests is not None and one.canary_requests != one.proven_canary


def _gates(one: PassView) -> list[Text]:
    return [
        Text(f"  {proof.text}") if proof.is_proven else Text(f"  open: {proof.text}", style="yellow")
        for proof in one.proofs
    ]


def _short(one: PassView) -> str:
    weight = percent(one.weight_bp)
    if one.how in UNPROVEN:
        return f"{weight} NOT PROVEN ({UNPROVEN[one.how]})"
    gates = ", ".join(proof.gate for proof in one.proofs if proof.is_proven) or one.last_gate
    return f"{weight} proven: {gates}" if gates else f"{weight} passed, no gate to prove"
