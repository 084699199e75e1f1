"""Simple twin of the whole pipeline in plain Python: draws, sessions, columns, all channels of all gates.

One pass for each channel over lists of units; nothing is incremental, nothing is shared. It implements the
contract of `evaluation/records.py`. Excluded on purpose: settlement (the columns are in order).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.metrics import VALUES, Kind
from evaluation.pipeline import proofs_by_gate
from evaluation.policy.alpha_split import channel_alphas, log_limit
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import NOT_DRAWN, PER_REQUEST, PINNED
from evaluation.units.missingness import MISSING_ALPHA
from tests.fakes.evidence_maker import Columns
from tests.properties.reference_bets import (
    PlainFallback,
    PlainFirstEvents,
    PlainOdds,
    PlainPairs,
    PlainRateProof,
    PlainScore,
    PlainSessionCounts,
    PlainSessionMeans,
    PlainShape,
)
from tests.properties.reference_play import Bet, Past, Played, Unit, epoch_ends, play

Key = tuple[str, str, float]  # gate, use, margin
NAN = float("nan")


@dataclass
class Drawn:
    """One toss of the coin: P(canary), the arm, and its rows."""

    w: float
    arm: int
    at_s: float
    single: bool
    rows: list[int] = field(default_factory=list)


def draws_of(columns: Columns, policy: GatePolicy) -> list[Drawn]:
    """The draws in order: a unit is what is randomised, and w belongs to the draw."""
    buckets: dict[object, tuple[float, float]] = {}
    current: dict[object, Drawn] = {}
    out: list[Drawn] = []
    for row in range(len(columns["t_s"])):
        at_s, arm, w = float(columns["t_s"][row]), int(columns["arm"][row]), float(columns["w"][row])
        name, how = columns["unit"][row], str(columns["assigned_by"][row])
        if how in NOT_DRAWN:
            continue
        if how in PER_REQUEST:
            if w < 1.0:
                out.append(Drawn(w, arm, at_s, True, [row]))
            continue
        low, high = buckets.get(name, (0.0, 1.0))
        chance = min(max((min(w, high) - low) / (high - low), 0.0), 1.0)
        if how not in PINNED and name in buckets and chance == 1.0 - arm:
            continue  # the arm contradicts what is known of the bucket
        if how not in PINNED and (name not in buckets or 0.0 < chance < 1.0):
            buckets[name] = (low, min(max(w, low), high)) if arm else (min(max(w, low), high), high)
            current[name] = Drawn(chance, arm, at_s, False, [row])
            out.append(current[name])
        elif name in current:
            held = current[name]
            if len(held.rows) == policy.session_requests or at_s > held.at_s + policy.session_s:
                del current[name]
            elif arm == held.arm:
                held.rows.append(row)
    return [drawn for drawn in out if drawn.w < 1.0]


@dataclass
class Rollout:
    """The columns, with the derived values that all channels need."""

    columns: Columns
    policy: GatePolicy
    stages: Sequence[StagePlan]
    seed: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        self.draws = draws_of(self.columns, self.policy)
        self.owner = {row: drawn for drawn in self.draws for row in drawn.rows}
        self.rows = sorted(self.owner)
        size = len(self.columns["t_s"])
        counted = [
            int(
                self.columns["arm"][row] == 1
                and str(self.columns["assigned_by"][row]) not in NOT_DRAWN
                and self.columns["w"][row] > 0.0
            )
            for row in range(size)
        ]
        self.canary = [sum(counted[: row + 1]) for row in range(size)]
        given = self.columns.get("stage")
        self.stage = [0 if given is None else int(given[row]) for row in range(size)]
        failed = self.columns.get("error")
        self.failed = [failed is not None and failed[row] == 1.0 for row in range(size)]

    def is_cold(self, row: int) -> bool:
        """Within the warm-up of its stage, which begins with the stage's first drawn request."""
        w, stage = self.columns["w"], self.stage[row]
        if w[row] == 0.0:
            return False
        start = next(r for r in range(len(w)) if w[r] > 0.0 and self.stage[r] == stage)
        return bool(self.columns["t_s"][row] < self.columns["t_s"][start] + self.stages[stage].warmup_s)

    def coin(self, w: float, gate: Gate) -> float:
        """P(canary) given that the unit was judged."""
        canary, stable = w * gate.sampling.canary, (1.0 - w) * gate.sampling.stable
        return canary / (canary + stable)

    def unit(self, row: int, y: float, gate: Gate) -> Unit:
        drawn = self.owner[row]
        w = self.coin(drawn.w, gate)
        return Unit(drawn.arm, w, y, 1.0, row, self.canary[row], self.stage[row])

    def raw(self, metric: str) -> list[float]:
        values = [float(v) for v in self.columns[metric]]
        if metric in VALUES:
            return [NAN if self.is_cold(row) else v for row, v in enumerate(values)]
        if metric == "error":
            return values
        return [NAN if failed else v for v, failed in zip(values, self.failed, strict=True)]

    def firsts(self, values: Sequence[float], gate: Gate, *, by_event: bool) -> list[Unit]:
        """First requests; by event: the first event of each draw, or its first request if it has none."""
        chosen = []
        for drawn in self.draws:
            chosen += [drawn.rows[0]] if not (by_event and values[drawn.rows[0]] > 0.0) else []
            if by_event:
                chosen += [row for row in drawn.rows if values[row] > 0.0][:1]
        return [self.unit(row, values[row], gate) for row in sorted(chosen) if not math.isnan(values[row])]

    def sessions(self, values: Sequence[float], gate: Gate) -> list[Unit]:
        """The mean of each draw's session, in the order of the draws; first requests alone where the arms are
        sampled differently."""
        out, seq, canary = [], -1, 0
        first_only = gate.sampling.stable != gate.sampling.canary
        for drawn in self.draws:
            closed = self.closed_at(drawn)
            seq, canary = max(seq, closed), max(canary, self.canary[closed])
            rows = drawn.rows[:1] if first_only else drawn.rows
            present = [values[row] for row in rows if not math.isnan(values[row])]
            if present:
                unit = self.unit(drawn.rows[0], sum(present) / len(present), gate)
                unit.n, unit.seq, unit.canary = float(len(present)), seq, canary
                out.append(unit)
        return out

    def closed_at(self, drawn: Drawn) -> int:
        """The row that closes a session: its own, its tenth, or the last within its time."""
        if drawn.single:
            return drawn.rows[0]
        if len(drawn.rows) == self.policy.session_requests:
            return drawn.rows[-1]
        end = drawn.at_s + self.policy.session_s
        return max(row for row in self.rows if self.columns["t_s"][row] <= end)

    def exceeds(self, gate: Gate, times: float, *, proof: bool) -> list[float]:
        """1 for values above stable's past percentile, the canary's divided by `times`. A failed request
        is missing in rollback and slowest in promotion. NaN: missing, or no percentile yet."""
        assert gate.percentile is not None
        raw, past, out = self.raw(gate.metric), Past(), [NAN] * len(self.columns["t_s"])
        for value in self.seed.get(gate.metric, ()):
            past.learn(Unit(0, 0.0, value))
        threshold = self.threshold(past, gate.percentile)
        slowest = [math.inf if self.failed[row] and not self.is_cold(row) else raw[row] for row in self.rows]
        present = [row for row, value in zip(self.rows, slowest, strict=True) if not math.isnan(value)]
        ends = epoch_ends(len(present))
        for count, row in enumerate(present, start=1):
            value = (math.inf if proof else NAN) if self.failed[row] else raw[row]
            arm = self.columns["arm"][row]
            if not (math.isnan(threshold) or math.isnan(value)):
                out[row] = float((value / times if arm else value) > threshold)
            if not arm and not self.failed[row]:
                past.learn(Unit(0, 0.0, raw[row]))
            if count in ends:
                threshold = self.threshold(past, gate.percentile)
        return out

    @staticmethod
    def threshold(past: Past, share: float) -> float:
        return past.quantile(share) if len(past.logs) >= 50 else NAN


def plain_channels(
    columns: Columns,
    policy: GatePolicy,
    stages: Sequence[StagePlan],
    seed: Mapping[str, Sequence[float]] | None = None,
    *,
    sticky: bool,
) -> dict[Key, Played]:
    """All channels of all gates of a rollout, and those of the split."""
    rollout = Rollout(columns, policy, stages, seed or {})
    proofs = proofs_by_gate(policy, stages)
    out: dict[Key, Played] = {}
    for gate in policy.gates:
        out |= gate_channels(rollout, gate, proofs.get(gate.name, ()), sticky=sticky)
    return out | split_channels(rollout)


def gate_channels(
    rollout: Rollout, gate: Gate, proofs: Sequence[tuple[float, float]], *, sticky: bool
) -> dict[Key, Played]:
    """The channels of one gate."""
    policy = rollout.policy
    out: dict[Key, Played] = {}
    parts = channel_alphas(policy, gate, sticky=sticky)
    before = rollout.seed.get(gate.metric, ()) if gate.kind is Kind.SHAPE else ()
    values, by_event = rollback_values(rollout, gate)
    firsts, sessions = rollout.firsts(values, gate, by_event=by_event), rollout.sessions(values, gate)
    bets = rollback_bets(gate, policy)
    rollback = zip(("first", "session"), (firsts, sessions), bets, (parts.first, parts.session), strict=True)
    for use, units, bet, alpha in rollback:
        if alpha > 0.0:
            limit, share = log_limit(alpha), policy.restart_share
            out[gate.name, use, 0.0] = play(units, bet, limit=limit, share=share, seed=before)
    for margin, floor in proofs:
        bet, values = proof_bet(rollout, gate, margin, floor)
        out[gate.name, "proof", margin] = play(
            rollout.sessions(values, gate),
            bet,
            limit=log_limit(policy.promotion_alpha),
            min_canary=policy.proof_canary,
            staged=gate.kind in (Kind.SHAPE, Kind.PERCENTILE),
            seed=before,
        )
    out[gate.metric, "presence", 0.0] = presence_of(rollout, gate, policy)
    return out


def rollback_bets(gate: Gate, policy: GatePolicy) -> tuple[Bet, Bet]:
    """The bets on first requests and on sessions."""
    match gate.kind:
        case Kind.SCORE:
            effect = gate.threshold - gate.tolerance
            first, session = (PlainScore(gate.tolerance, effect, proof=False) for _ in range(2))
            return first, session
        case Kind.SHAPE:
            divisor = 1.0 + gate.tolerance
            return PlainShape(divisor, proof=False), PlainShape(divisor, proof=False)
        case Kind.PERCENTILE:
            return PlainFirstEvents(0.0), PlainSessionCounts(policy.session_requests)
    if gate.tolerance > 0.0:
        return PlainFirstEvents(gate.tolerance), PlainSessionMeans(gate.tolerance)
    return PlainFirstEvents(0.0), PlainSessionCounts(policy.session_requests)


def rollback_values(rollout: Rollout, gate: Gate) -> tuple[list[float], bool]:
    """The values for rollback, and whether first events count."""
    if gate.kind is Kind.PERCENTILE:
        return rollout.exceeds(gate, 1.0 + gate.tolerance, proof=False), True
    raw = rollout.raw(gate.metric)
    if gate.kind is Kind.SHAPE:
        return [NAN if failed else y for y, failed in zip(raw, rollout.failed, strict=True)], False
    return raw, gate.kind is Kind.RATE


def proof_bet(rollout: Rollout, gate: Gate, margin: float, floor: float) -> tuple[Bet, list[float]]:
    """The bet of one margin, and its values."""
    raw = rollout.raw(gate.metric)
    match gate.kind:
        case Kind.SCORE:
            return PlainScore(margin, margin, proof=True), raw
        case Kind.RATE:
            return PlainRateProof(margin, floor), raw
        case Kind.PERCENTILE:
            return PlainRateProof(1.0, 0.0), rollout.exceeds(gate, margin, proof=True)
    slowest = [
        math.inf if failed and not rollout.is_cold(row) else y
        for row, (y, failed) in enumerate(zip(raw, rollout.failed, strict=True))
    ]
    return PlainShape(margin, proof=True), slowest


def presence_of(rollout: Rollout, gate: Gate, policy: GatePolicy) -> Played:
    """The test that values are missing (of a sampled metric: present) equally on both arms."""
    gates = policy.gates_for(gate.metric)
    sampled = min(gate.sampling.stable, gate.sampling.canary) < 1.0 or any(g.presence_gated for g in gates)
    raw = rollout.raw(gate.metric)
    units = [
        rollout.unit(row, float(not math.isnan(raw[row])), gate)
        for row in rollout.rows
        if rollout.owner[row].w > 0.0
        and not ((rollout.failed[row] or rollout.is_cold(row)) and gate.metric in VALUES)
    ]
    return play(units, PlainOdds(among=sampled), limit=log_limit(MISSING_ALPHA))


def split_channels(rollout: Rollout) -> dict[Key, Played]:
    """The sample ratio test, and the tests of the canary's fallback rate."""
    policy, gate = rollout.policy, rollout.policy.gates[0]
    limit = log_limit(policy.served_share_alpha)
    plain = Gate(gate.name, gate.metric, gate.kind, 0.0, 1.0, 0.0)
    units = [rollout.unit(drawn.rows[0], 0.0, plain) for drawn in rollout.draws if drawn.w > 0.0]
    out = {("served", "share", 0.0): play(units, PlainOdds(), limit=limit)}
    fell_back = rollout.columns.get("fell_back")
    if fell_back is not None:
        requests = [
            rollout.unit(r, float(fell_back[r]), plain)
            for r in rollout.rows
            if rollout.owner[r].arm and not math.isnan(fell_back[r])
        ]
        for floor in (policy.served_rate_rollback, policy.served_rate_hold):
            out["served", "fallback", floor] = play(requests, PlainFallback(1.0 - floor), limit=limit)
    return out


def plain_pairs(differences: Sequence[float], gate: Gate, policy: GatePolicy) -> Played:
    """The channel of mirrored pairs, on its own part of alpha."""
    units = [Unit(1, 0.0, d) for d in differences]
    limit = log_limit(channel_alphas(policy, gate, sticky=False).pairs)
    return play(units, PlainPairs(gate.tolerance), limit=limit, share=policy.restart_share)
