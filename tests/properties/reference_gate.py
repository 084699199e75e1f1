"""Simple twin of the whole pipeline in plain Python: draws, sessions, columns, all channels of all gates.

One pass for each channel over lists of units; nothing is incremental, nothing is shared. It implements the
contract of `evaluation/records.py`. Excluded on purpose: settlement (the columns are in order), cancelled
requests, and clients that the canary is hardly offered to (`offered.py`): the traffic compared has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from evaluation.betting.histogram import WIDTH
from evaluation.betting.rounds import MIN_STABLE
from evaluation.betting.tails import TAIL_VALUES
from evaluation.metrics import VALUES, Kind
from evaluation.policy.alpha_split import (
    PART_SHARES,
    SESSION_SHARE,
    channel_alphas,
    has_no_value_unanswered,
    log_limit,
    served_alpha,
    worst_case_alphas,
)
from evaluation.policy.gates import Gate, Proof, Sampling, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.policy.stage_proofs import proofs_by_gate
from evaluation.records import NOT_DRAWN, PER_REQUEST, PINNED
from evaluation.units.answered import NOISE
from evaluation.units.covariate_columns import BALANCE_ALPHA
from evaluation.units.later_blocks import PARTS, bucket_of, judged_block
from evaluation.units.missingness import MISSING_ALPHA
from evaluation.units.split import RETURNS_ALPHA, TURNS_ALPHA
from evaluation.units.units import unit_hash
from tests.fakes.evidence_maker import Columns
from tests.properties.reference_bets import (
    PlainBalance,
    PlainEvents,
    PlainFallback,
    PlainOdds,
    PlainPairs,
    PlainPresence,
    PlainRateProof,
    PlainScore,
    PlainShape,
    PlainShares,
    PlainTail,
    PlainTurns,
)
from tests.properties.reference_everyone import play_everyone
from tests.properties.reference_play import (
    Bet,
    Past,
    Played,
    Unit,
    bin_of,
    epoch_ends,
    play,
    play_rounds,
)

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
    round: int = 0  # of a later session
    part: int = 0
    is_fresh: bool = False  # it is its unit's first later one of this part in the stage
    is_under_way: bool = False  # its unit had a request less than a session before
    unit: int = 0  # hash
    logged: float = 0.0  # weight of a toss, as logged
    origin: Drawn | None = None  # of a later session: the unit's last toss; None: it is on the canary since


def draws_of(columns: Columns, policy: GatePolicy) -> tuple[list[Drawn], list[Drawn]]:
    """The draws in order, and the later sessions: a unit is what is randomised, and w belongs to the draw.

    After its first contact at a weight, whatever that reveals, a unit waits for as long as a session; then
    its requests come in blocks as long as one, numbered in each hour (six sessions): 0; 1 and 2; 3 to 6; ...
    One of each of these parts is a later session, at the logged weight.
    """
    buckets: dict[object, tuple[float, float]] = {}
    weight: dict[object, float] = {}  # of the last contact
    waited: dict[object, list[float]] = {}  # its time, and requests since
    current: dict[object, Drawn] = {}
    again: dict[object, Drawn] = {}
    blocks: dict[object, tuple[int, int]] = {}  # round and number of the last block
    parts: dict[object, tuple[int, set[int]]] = {}  # stage of the last block, parts that it had a session of
    tossed: dict[object, Drawn | None] = {}
    out: list[Drawn] = []
    later: list[Drawn] = []
    seen: dict[object, float] = {}  # time of the last request
    first_s = NAN
    most, longest = policy.session_requests, policy.session_s
    for row in range(len(columns["t_s"])):
        at_s, arm, w = float(columns["t_s"][row]), int(columns["arm"][row]), float(columns["w"][row])
        name, how = columns["unit"][row], str(columns["assigned_by"][row])
        if how in NOT_DRAWN:
            continue
        if how in PER_REQUEST:
            if w < 1.0:
                out.append(Drawn(w, arm, at_s, True, [row]))
            continue
        is_under_way, seen[name] = at_s - seen.get(name, -math.inf) < longest, at_s
        low, high = buckets.get(name, (0.0, 1.0))
        chance = min(max((min(w, high) - low) / (high - low), 0.0), 1.0)
        if how not in PINNED and name in buckets and chance == 1.0 - arm:
            continue  # the arm contradicts what is known of the bucket
        if how not in PINNED and (name not in buckets or 0.0 < chance < 1.0):
            buckets[name] = (low, min(max(w, low), high)) if arm else (min(max(w, low), high), high)
            current[name], weight[name], waited[name] = Drawn(chance, arm, at_s, False, [row]), w, [at_s, 1]
            again.pop(name, None)
            current[name].is_under_way, current[name].unit = is_under_way, unit_hash(str(name))
            current[name].logged = w
            tossed[name] = current[name] if 0.0 < chance < 1.0 else None
            out.append(current[name])
            first_s = at_s if math.isnan(first_s) and 0.0 < w < 1.0 else first_s
            continue
        if name not in buckets:
            continue
        if how not in PINNED and w != weight[name]:
            weight[name], waited[name] = w, [at_s, 0]
            again.pop(name, None)
            tossed[name] = None
            held = current.get(name)
            if held is None or len(held.rows) == most or at_s > held.at_s + longest:
                current[name] = Drawn(1.0, arm, at_s, False)
        held = current.get(name)
        if held is not None:
            if len(held.rows) < most and at_s <= held.at_s + longest:
                if arm == held.arm:
                    held.rows.append(row)
                    waited[name][1] += 1
                continue
            if waited[name][1] < most and at_s <= waited[name][0] + longest:
                waited[name][1] += 1
                continue
            del current[name]
        session = again.get(name)
        if session is None or len(session.rows) == most or at_s > session.at_s + longest:
            number = 0 if math.isnan(first_s) else 1 + math.floor((at_s - first_s) / (6.0 * longest))
            if number == 0 or not 0.0 < w < 1.0:
                continue
            before, block = blocks.get(name, (0, -1))
            block = block + 1 if number == before else 0
            blocks[name] = number, block
            stage = int(columns["stage"][row]) if "stage" in columns else 0
            if name not in parts or parts[name][0] != stage:
                parts[name] = stage, set()
            part = int(math.log2(block + 1))
            session = Drawn(w, arm, at_s, False, [], number, part, part not in parts[name][1])
            session.origin = tossed.get(name)
            again[name] = session
            bucket = bucket_of(unit_hash(str(name)))
            if part < PARTS and block - 2**part + 1 == judged_block(bucket, number, part):
                parts[name][1].add(part)
                later.append(session)
        if arm == session.arm:
            session.rows.append(row)
    return [drawn for drawn in out if drawn.w < 1.0], later


@dataclass
class Rollout:
    """The columns, with the derived values that all channels need."""

    columns: Columns
    policy: GatePolicy
    stages: Sequence[StagePlan]
    seed: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        self.draws, self.later = draws_of(self.columns, self.policy)
        self.owner = {row: drawn for drawn in self.draws for row in drawn.rows}
        self.later_owner = {row: drawn for drawn in self.later for row in drawn.rows}
        self.rows = sorted(self.owner)
        self.later_rows = sorted(self.later_owner)
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
        rejected = self.columns.get("rejected")
        self.failed = [
            any(given is not None and given[row] == 1.0 for given in (failed, rejected))
            for row in range(size)
        ]
        gates = [g for g in self.policy.gates if g.metric in ("error", "rejected") and not g.is_alarm]
        self.failures = 1.0 + max((g.tolerance for g in gates), default=0.0)

    def is_cold(self, row: int) -> bool:
        """Within the warm-up of its stage, which begins with the stage's first drawn request; or the first
        one of a draw in the middle of a conversation."""
        w, stage = self.columns["w"], self.stage[row]
        drawn = self.owner.get(row)
        if drawn is not None and drawn.is_under_way and drawn.rows[0] == row:
            return True
        if w[row] == 0.0:
            return False
        start = next(r for r in range(len(w)) if w[r] > 0.0 and self.stage[r] == stage)
        return bool(self.columns["t_s"][row] < self.columns["t_s"][start] + self.stages[stage].warmup_s)

    def coin(self, w: float, gate: Gate) -> float:
        """P(canary) given that the unit was judged."""
        canary, stable = w * gate.sampling.canary, (1.0 - w) * gate.sampling.stable
        return canary / (canary + stable)

    def unit(self, row: int, y: float, gate: Gate) -> Unit:
        drawn = self.owner.get(row) or self.later_owner[row]
        w = self.coin(drawn.w, gate)
        names = () if drawn.round else gate.covariates  # later sessions are not adjusted
        x = [float(self.columns[name][drawn.rows[0]]) for name in names]
        return Unit(drawn.arm, w, y, 1.0, row, self.canary[row], self.stage[row], x=x, row=row)

    def raw(self, metric: str) -> list[float]:
        """Comparable values: none of an unanswered request, and no latency of a cold one."""
        values = [float(v) for v in self.columns[metric]]
        if metric in ("error", "rejected"):
            return values
        return [
            NAN if failed or (metric in VALUES and self.is_cold(row)) else v
            for row, (v, failed) in enumerate(zip(values, self.failed, strict=True))
        ]

    def events(self, gate: Gate) -> list[float]:
        """The events of a proof: whether a request failed or was rejected counts against it if unknown."""
        raw, is_sampled = self.raw(gate.metric), min(gate.sampling.stable, gate.sampling.canary) < 1.0
        if gate.metric not in ("error", "rejected") or is_sampled:
            return raw
        rows = zip(raw, self.failed, self.columns["arm"], strict=True)
        return [float(arm) if math.isnan(y) and not failed else y for y, failed, arm in rows]

    def slowest(self, metric: str) -> list[float]:
        """The values of a shape or a percentile, where an unanswered request is slowest."""
        return [
            math.inf if failed and not self.is_cold(row) else y
            for row, (y, failed) in enumerate(zip(self.raw(metric), self.failed, strict=True))
        ]

    def gap(self, units: Sequence[tuple[int, float, float] | None], gate: Gate) -> float:
        """The canary's answered share less stable's, by the coin, when the last epoch ended. units: arm,
        answered share and weight of each earlier one; None: from before the canary."""
        drawn = [unit for unit in units if unit is not None]
        ends = sorted(epoch_ends(len(drawn)))
        if gate.metric in ("error", "rejected") or gate.metric in VALUES or not ends:
            return 0.0
        if gate.kind is Kind.SCORE:
            return 0.0  # a score's margin does not depend on it
        moved = spread = squares = 0.0
        mean, begin = 1.0, 0
        for end in ends:
            for arm, share, w in drawn[begin:end]:
                moved += (arm - w) * (share - mean)
                spread += w * (1.0 - w)
                squares += w * (1.0 - w) * (share - mean) ** 2
            mean, begin = sum(share for _, share, _ in drawn[:end]) / end, end
        if spread <= 0.0:
            return 0.0
        raw, noise = moved / spread, NOISE * math.sqrt(squares) / spread
        return math.copysign(max(abs(raw) - noise, 0.0), raw)

    def firsts(self, values: Sequence[float], gate: Gate) -> list[Unit]:
        """The first request of each draw."""
        out: list[Unit] = []
        before: list[tuple[int, float, float] | None] = []
        for drawn in self.draws:
            row = drawn.rows[0]
            if not math.isnan(values[row]):
                out.append(self.unit(row, values[row], gate))
                out[-1].gap, out[-1].silent = self.gap(before, gate), float(self.failed[row])
            before.append((drawn.arm, 1.0 - self.failed[row], drawn.w) if drawn.w > 0.0 else None)
        return out

    def by_round(self, units: list[Unit], part: int) -> list[Unit]:
        """Later sessions of a part, with their round as their stage."""
        chosen = [unit for unit in units if self.later_owner[unit.row].part == part]
        for unit in chosen:
            unit.stage = self.later_owner[unit.row].round
        return chosen

    def fresh(self, units: list[Unit], part: int) -> list[Unit]:
        """Those of later sessions of a part that are their unit's first in the stage."""
        drawn = self.later_owner
        return [unit for unit in units if drawn[unit.row].part == part and drawn[unit.row].is_fresh]

    def sessions(self, values: Sequence[float], gate: Gate, *, later: bool = False) -> list[Unit]:
        """The requests of each draw's session, in the order of the draws; first requests alone where the arms
        are sampled differently. later: of the later sessions."""
        out: list[Unit] = []
        seq, canary = -1, 0
        before: list[tuple[int, float, float] | None] = []
        first_only = gate.sampling.stable != gate.sampling.canary
        for drawn in self.later if later else self.draws:
            closed = self.closed_at(drawn)
            seq, canary = max(seq, closed), max(canary, self.canary[closed])
            rows = drawn.rows[:1] if first_only else drawn.rows
            present = [values[row] for row in rows if not math.isnan(values[row])]
            answered = [1.0 - self.failed[row] for row in drawn.rows]
            if present:
                unit = self.unit(drawn.rows[0], sum(present) / len(present), gate)
                unit.n, unit.seq, unit.canary = float(len(present)), seq, canary
                unit.values, unit.gap = present, self.gap(before, gate)
                unit.silent = 1.0 - sum(answered) / len(answered)
                out.append(unit)
            share = sum(answered) / len(answered)
            before.append((drawn.arm, share, drawn.w) if drawn.w > 0.0 else None)
        return out

    def with_missing(self, gate: Gate, which: str, *, sessions: bool, later: bool = False) -> list[Unit]:
        """Units in which requests without a value count 0: those that `failed`, those answered but without a
        value (`unscored`), those that a judge drew (`unjudged`; here known of none), or `all`. A failure
        has the share of the answers that are scored as its weight, or as the part for which a margin counts.
        later: of the later sessions."""
        raw, weight = self.raw(gate.metric), {}
        ends, share, scored, answered, count = epoch_ends(len(self.rows)), 1.0, 0, 0, 0
        same = gate.sampling.stable == gate.sampling.canary
        for row in sorted(self.rows + self.later_rows):
            stated = gate.sampling.canary if self.columns["arm"][row] else gate.sampling.stable
            weight[row] = share if same else stated
            if row in self.later_owner:
                continue
            count += 1
            answered += not self.failed[row]
            scored += not math.isnan(raw[row])
            if count in ends:
                share = (scored + 1.0) / (answered + 1.0)
        out: list[Unit] = []
        seq, canary = -1, 0
        before: list[tuple[int, float, float] | None] = []
        for drawn in self.later if later else self.draws:
            gap = self.gap(before, gate)
            seen = drawn.rows if sessions else drawn.rows[:1]
            answers = [1.0 - self.failed[row] for row in seen]
            before.append((drawn.arm, sum(answers) / len(answers), drawn.w) if drawn.w > 0.0 else None)
            rows = drawn.rows if sessions and same else drawn.rows[:1]
            closed = self.closed_at(drawn) if sessions else drawn.rows[0]
            seq, canary = max(seq, closed), max(canary, self.canary[closed])
            scores = [raw[row] for row in rows if not math.isnan(raw[row])]
            failures = sum(weight[row] for row in rows if self.failed[row])
            if which == "failed":
                total = len(scores) + failures
            elif which == "all":
                total = float(len(rows))
            elif which == "unjudged":
                total = float(len(scores))
            else:
                total = float(sum(not self.failed[row] for row in rows))
            if total == 0.0:
                continue
            unit = self.unit(drawn.rows[0], sum(scores) / total, gate)
            unit.n, unit.seq, unit.canary, unit.gap = float(len(rows)), seq, canary, gap
            unit.missing = (total - len(scores)) / total
            if which == "failed":
                unit.weight = 1.0 if scores else failures / len(rows)
            else:
                unit.counted = (len(scores) + (failures if which == "all" else 0.0)) / total
            out.append(unit)
        return out

    def closed_at(self, drawn: Drawn) -> int:
        """The row that closes a session: its own, its tenth, or the last within its time."""
        if drawn.single:
            return drawn.rows[0]
        if len(drawn.rows) == self.policy.session_requests:
            return drawn.rows[-1]
        end = drawn.at_s + self.policy.session_s
        rows = self.later_rows if drawn.round else self.rows
        return max(row for row in rows if self.columns["t_s"][row] <= end)

    def exceeds(self, gate: Gate, times: float, *, proof: bool) -> list[float]:
        """1 for values above stable's past percentile as of the session's first request, the canary's divided
        by `times`. NaN: missing, or no percentile yet. Of the canary's unanswered requests, rollback
        discounts the tolerated excess."""
        assert gate.percentile is not None
        raw, past, out = self.slowest(gate.metric), Past(), [NAN] * len(self.columns["t_s"])
        for value in self.seed.get(gate.metric, ()):
            past.learn(Unit(0, 0.0, value))
        recent = Recent(TAIL_VALUES / (1.0 - gate.percentile))
        threshold = recent.quantile_after(past, gate.percentile, held=proof)
        rows = sorted(self.rows + self.later_rows)
        ends, count = epoch_ends(sum(not math.isnan(raw[row]) for row in rows), longest=512), 0
        above = 1.0 - gate.percentile
        of_session: dict[int, float] = {}  # threshold by first row
        for row in rows:
            value, arm = raw[row], self.columns["arm"][row]
            first = (self.owner.get(row) or self.later_owner[row]).rows[0]
            frozen = of_session.setdefault(first, threshold)
            if math.isnan(value):
                continue
            if not math.isnan(frozen):
                out[row] = float((value / times if arm else value) > frozen)
                if arm and math.isinf(value) and not proof:
                    out[row] = above + (1.0 - above) / self.failures
            if row in self.later_owner:
                continue
            count += 1
            if not arm:
                past.learn(Unit(0, 0.0, value))
            if count in ends:
                threshold = recent.quantile_after(past, gate.percentile, held=proof)
        return out


@dataclass
class Recent:
    """Weights of stable's values by bin: at the end of each epoch the older ones' are scaled, so that all add
    up to `size`, unless the epoch's own are more."""

    size: float
    weights: dict[int, float] = field(default_factory=dict)
    learned: int = 0  # of the logs
    in_window: int = 0
    windows: list[float] = field(default_factory=lambda: [0.0])  # what the quantile surely reached in each

    def quantile_after(self, past: Past, share: float, *, held: bool) -> float:
        """The upper edge of the bin with the weighted quantile, after an epoch; NaN before fifty values.

        held: at least that with 2.5 standard errors more values above it, in any of the last ten windows."""
        if len(past.logs) < 50:
            return NAN
        fresh = past.logs[self.learned :]
        self.learned = len(past.logs)
        older = sum(self.weights.values())
        if older + len(fresh) > self.size and older > 0.0:
            part = max(self.size - len(fresh), 0.0) / older
            self.weights = {at: weight * part for at, weight in self.weights.items()}
        for log in fresh:
            self.weights[bin_of(log)] = self.weights.get(bin_of(log), 0.0) + 1.0
        above = (1.0 - share) * sum(self.weights.values())
        surely = self.quantile(1.0 - (above + 2.5 * math.sqrt(above)) / sum(self.weights.values()))
        self.in_window += len(fresh)
        if self.in_window >= self.size:
            self.in_window = 0
            self.windows.append(0.0)
        self.windows[-1] = max(self.windows[-1], surely)
        return max(self.quantile(share), *(self.windows[-10:] if held else ()), 0.0)

    def quantile(self, share: float) -> float:
        """The upper edge of the bin with the weighted quantile."""
        whole, below = sum(self.weights.values()), 0.0
        for at in sorted(self.weights):
            below += self.weights[at]
            if below >= share * whole * (1.0 - 1e-12):
                return math.exp((at + 1) * WIDTH)
        raise AssertionError("no value")


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
    return out | split_channels(rollout, sticky=sticky)


def gate_channels(
    rollout: Rollout, gate: Gate, proofs: Sequence[Proof], *, sticky: bool
) -> dict[Key, Played]:
    """The channels of one gate."""
    policy = rollout.policy
    out: dict[Key, Played] = {}
    parts = channel_alphas(policy, gate, sticky=sticky)
    before = rollout.seed.get(gate.metric, ()) if gate.kind is Kind.SHAPE else ()
    values = rollback_values(rollout, gate)
    rollback = (
        ("first", rollout.firsts(values, gate), parts.first),
        ("session", rollout.sessions(values, gate), parts.session),
    )
    for use, units, alpha in rollback:
        if alpha > 0.0:
            limit, share, bet = log_limit(alpha), policy.restart_share, rollback_bet(gate, rollout, use)
            out[gate.name, use, 0.0] = play(units, bet, limit=limit, share=share, seed=before)
    if has_no_value_unanswered(gate):
        again = worst_case_alphas(policy, gate, sticky=sticky)
        for use, alpha in (("first", again.first), ("session", again.session)):
            if alpha > 0.0:
                units = rollout.with_missing(gate, "failed", sessions=use == "session")
                bet, share = rollback_bet(gate, rollout, use, missing_as=1.0), policy.restart_share
                out[gate.name, f"{use}, missing as harm", 0.0] = play(
                    units, bet, limit=log_limit(alpha), share=share
                )
        for part in range(PARTS) if again.later > 0.0 else ():
            units = rollout.by_round(rollout.with_missing(gate, "failed", sessions=True, later=True), part)
            bet = rollback_bet(gate, rollout, "session", missing_as=1.0)
            limit = log_limit(again.later * PART_SHARES[part])
            out[gate.name, f"later {part}, missing as harm", 0.0] = play_rounds(
                units, bet, limit=limit, min_stable=MIN_STABLE
            )
    for part in range(PARTS) if parts.later > 0.0 else ():
        bet = rollback_bet(gate, rollout, "session")
        units = rollout.by_round(rollout.sessions(values, gate, later=True), part)
        limit = log_limit(parts.later * PART_SHARES[part])
        out[gate.name, f"later {part}", 0.0] = play_rounds(units, bet, limit=limit, min_stable=MIN_STABLE)
    for part in range(PARTS) if parts.later > 0.0 else ():
        is_worst = has_no_value_unanswered(gate)
        units = rollout.sessions(values, gate, later=True)
        if is_worst:
            units = rollout.with_missing(gate, "failed", sessions=True, later=True)
        alpha = worst_case_alphas(policy, gate, sticky=sticky).later if is_worst else parts.later
        out[gate.name, f"later {part}, missing as absent", 0.0] = play_everyone(
            rollout,
            gate,
            [one for one in units if rollout.later_owner[one.row].part == part],
            part,
            limit=log_limit(alpha * PART_SHARES[part]),
            failures=rollout.failures,
        )
    for proof in proofs:
        for use, units, bet in proof_plays(rollout, gate, proof, sticky=sticky):
            out[gate.name, use, proof.margin] = play(
                units,
                bet,
                limit=log_limit(policy.promotion_alpha),
                min_canary=policy.proof_canary,
                staged=not proof.is_whole,
                seed=() if use.startswith("later") else before,
            )
    out[gate.metric, "presence", 0.0] = presence_of(rollout, gate, policy)
    if gate.covariates:
        plain = replace(gate, sampling=Sampling())
        units = rollout.firsts([0.0] * len(values), plain)
        bet = PlainBalance(len(gate.covariates))
        limit, share = log_limit(BALANCE_ALPHA), policy.restart_share
        out[gate.metric, "covariates", 0.0] = play(units, bet, limit=limit, share=share)
    return out


def proof_plays(
    rollout: Rollout, gate: Gate, proof: Proof, *, sticky: bool
) -> list[tuple[str, list[Unit], Bet]]:
    """The channels of one margin: use, units, bet. Of a score, with missing ones as 0 and as the mean."""
    out: list[tuple[str, list[Unit], Bet]] = []
    is_sampled = min(gate.sampling.stable, gate.sampling.canary) < 1.0

    def missing_of(which: str, use: str) -> list[Unit]:
        is_later = use.startswith("later proof")
        units = rollout.with_missing(gate, which, sessions=use != "first proof", later=is_later)
        return rollout.fresh(units, int(use[-1])) if is_later else units

    later = [f"later proof {part}" for part in range(PARTS)]
    for use in ("proof", "first proof", *later) if sticky else ("proof",):
        if gate.kind is Kind.SCORE:
            which = "failed" if is_sampled else "all"
            for missing_as in ("harm", "mean"):
                bet = PlainScore(proof.margin, proof.margin, proof=True, as_mean=missing_as == "mean")
                out.append((f"{use}, missing as {missing_as}", missing_of(which, use), bet))
            continue
        bet_of, values = proof_bet(rollout, gate, proof)
        if use.startswith("later proof"):
            units = rollout.fresh(rollout.sessions(values, gate, later=True), int(use[-1]))
        else:
            units = rollout.sessions(values, gate) if use == "proof" else rollout.firsts(values, gate)
        if gate.kind is Kind.PERCENTILE:
            for unit in units:  # the failures are not in their outcomes: they are missing
                unit.missing = min(unit.silent, unit.y)
                unit.y -= unit.missing
        out.append((use, units, bet_of))
        if has_no_value_unanswered(gate):
            with_events = PlainRateProof(proof.margin, proof.floor, missing_as=1.0)
            which = "unjudged" if is_sampled else "unscored"
            out.append((f"{use}, missing as harm", missing_of(which, use), with_events))
    return out


def rollback_bet(gate: Gate, rollout: Rollout, use: str, missing_as: float = 0.0) -> Bet:
    """The bet of a gate, on first requests or on sessions."""
    match gate.kind:
        case Kind.SCORE:
            return PlainScore(gate.tolerance, gate.threshold - gate.tolerance, proof=False)
        case Kind.SHAPE:
            return PlainShape(1.0 + gate.tolerance, proof=False, failures=rollout.failures)
        case Kind.PERCENTILE:
            return PlainEvents(0.0) if use == "first" else PlainShares(0.0)
    return (PlainEvents if use == "first" else PlainShares)(gate.tolerance, missing_as)


def rollback_values(rollout: Rollout, gate: Gate) -> list[float]:
    """The values for rollback."""
    if gate.kind is Kind.PERCENTILE:
        return rollout.exceeds(gate, 1.0 + gate.tolerance, proof=False)
    return rollout.slowest(gate.metric) if gate.kind is Kind.SHAPE else rollout.raw(gate.metric)


def proof_bet(rollout: Rollout, gate: Gate, proof: Proof) -> tuple[Bet, list[float]]:
    """The bet of one margin, and its values."""
    match gate.kind:
        case Kind.RATE:
            return PlainRateProof(proof.margin, proof.floor), rollout.events(gate)
        case Kind.PERCENTILE:
            return PlainTail(gate), rollout.exceeds(gate, proof.margin, proof=True)
    return PlainShape(proof.margin, proof=True), rollout.slowest(gate.metric)


def presence_of(rollout: Rollout, gate: Gate, policy: GatePolicy) -> Played:
    """The test that values are missing (of a sampled metric: present) equally on both arms, by the share of
    each unit's requests."""
    gates = policy.gates_for(gate.metric)
    sampled = min(gate.sampling.stable, gate.sampling.canary) < 1.0 or any(g.presence_gated for g in gates)
    raw = rollout.raw(gate.metric)
    is_expected = [
        row in rollout.owner
        and rollout.owner[row].w > 0.0
        and not (rollout.failed[row] and gate.metric not in ("error", "rejected"))
        and not (rollout.is_cold(row) and gate.metric in VALUES)
        for row in range(len(raw))
    ]
    values = [
        float(math.isnan(y) != sampled) if expected else NAN
        for y, expected in zip(raw, is_expected, strict=True)
    ]
    limit = log_limit(MISSING_ALPHA)
    return play(rollout.sessions(values, gate), PlainPresence(), limit=limit, share=policy.restart_share)


def split_channels(rollout: Rollout, *, sticky: bool) -> dict[Key, Played]:
    """The sample ratio test, the length of sessions, and the tests of the canary's fallback rate."""
    policy, gate = rollout.policy, rollout.policy.gates[0]
    share = policy.restart_share
    plain = Gate(gate.name, gate.metric, gate.kind, 0.0, 1.0, 0.0)
    nothing = [0.0] * len(rollout.columns["t_s"])
    units = [unit for unit in rollout.firsts(nothing, plain) if unit.w > 0.0]
    limit = log_limit(policy.served_share_alpha)
    out = {("served", "share", 0.0): play(units, PlainOdds(), limit=limit, share=share)}
    turns = PlainTurns(policy.session_requests)
    sessions = rollout.sessions(nothing, plain)
    out["served", "turns", 0.0] = play(sessions, turns, limit=log_limit(TURNS_ALPHA), share=share)
    for part in range(PARTS):
        returns = [rollout.unit(drawn.rows[0], 0.0, plain) for drawn in rollout.later]
        limit = log_limit(RETURNS_ALPHA * PART_SHARES[part])
        units = rollout.by_round(returns, part)
        out["served", f"returns {part}", 0.0] = play_rounds(units, PlainOdds(), limit=limit, min_stable=0)
    fell_back = rollout.columns.get("fell_back")
    if fell_back is not None:
        values = [float(y) if arm else NAN for y, arm in zip(fell_back, rollout.columns["arm"], strict=True)]
        session = served_alpha(policy) * SESSION_SHARE if sticky else 0.0
        channels = [("first", rollout.firsts(values, plain), served_alpha(policy) - session)]
        channels += [("session", rollout.sessions(values, plain), session)] if sticky else []
        for use, units, alpha in channels:
            for floor in (policy.served_rate_rollback, policy.served_rate_hold):
                key = "served", f"fallback {use}", floor
                out[key] = play(units, PlainFallback(1.0 - floor), limit=log_limit(alpha), share=share)
    return out


def plain_pairs(pairs: Sequence[tuple[float, float]], gate: Gate, policy: GatePolicy) -> Played:
    """The channel of mirrored pairs, on its own part of alpha. pairs: stable's score, the canary's."""
    if gate.kind is Kind.SCORE:
        harms, tolerance = [stable - canary for stable, canary in pairs], gate.tolerance
    else:
        harms, tolerance = [canary - (1.0 + gate.tolerance) * stable for stable, canary in pairs], 0.0
    units = [Unit(1, 0.0, harm) for harm in harms]
    limit = log_limit(channel_alphas(policy, gate, sticky=False).pairs)
    bet = PlainPairs(tolerance, 1.0 + gate.tolerance)
    return play(units, bet, limit=limit, share=policy.restart_share)
