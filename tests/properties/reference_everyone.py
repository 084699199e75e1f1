"""Plain twin of the test of everyone who was drawn: each look anew, unit by unit, from the whole rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluation.metrics import Kind
from evaluation.policy.gates import Gate
from evaluation.units.attendance import MIN_SESSIONS
from evaluation.units.later_blocks import bucket_of, judged_block
from tests.properties.reference_play import Played, Unit

if TYPE_CHECKING:
    from tests.properties.reference_gate import Drawn, Rollout

Person = tuple[int, object, float, int, list[float], float]  # id, class, P(canary), arm, harms, weight
Bettor = tuple[float, int, list[float]]  # P(canary), arm, excess harms


def play_everyone(
    rollout: Rollout, gate: Gate, units: Sequence[Unit], part: int, *, limit: float, failures: float
) -> Played:
    """The channel of one part of later requests. units: its later sessions that have a value."""
    length = rollout.policy.session_s
    tosses = [drawn for drawn in rollout.draws if not drawn.single and drawn.w > 0.0]
    played = Played()
    if not tosses:
        return played
    start_s = min(drawn.at_s for drawn in tosses)
    closed = closing_times(rollout)
    rows = sorted(rollout.rows + rollout.later_rows)
    before: dict[int, list[float]] = {}  # by toss, the excess harm of the closed rounds
    for round_ in range(1, max((drawn.round for drawn in rollout.later), default=0) + 1):
        for look in range(1, 7):
            now_s = start_s + (6 * (round_ - 1) + look + 1) * length
            came = [
                d for d in rollout.later if (d.round, d.part) == (round_, part) and closed[id(d)] <= now_s
            ]
            present = [u for u in units if any(u.row == d.rows[0] for d in came)]
            begun = [d for d in rollout.later if d.round == round_ and d.at_s <= now_s]
            if not present or len(begun) < MIN_SESSIONS or played.seq is not None:
                continue
            share = 0.5 if look == 6 else 0.1
            cost = math.log(round_ * (round_ + 1) / share)
            people = everyone(rollout, gate, tosses, came, present, now_s, (round_, part), start_s, failures)
            bettors, so_far = with_before(people, before)
            if look == 6:
                before |= so_far
            played.last = surprise(bettors) - cost
            played.peak = max(played.peak, played.last)
            if played.last >= limit:
                played.seq = max(row for row in rows if rollout.columns["t_s"][row] <= now_s)
                played.canary = rollout.canary[played.seq]
    return played


def with_before(
    people: Sequence[Person], before: dict[int, list[float]]
) -> tuple[list[Bettor], dict[int, list[float]]]:
    """Each one's excess harm, that of the closed rounds included; and the same by toss."""
    if not people:
        return [], {}
    ways, is_first = (
        range(len(people[0][4])),
        all(abs(harm) <= 1e-9 for person in people for harm in before.get(person[0], [])),
    )
    means = {key: [mean_of(people, key, way) for way in ways] for key in {person[1] for person in people}}
    so_far = {
        toss: [before.get(toss, [0.0] * 4)[way] + weight * (harms[way] - means[key][way]) for way in ways]
        for toss, key, _, _, harms, weight in people
    }
    bettors = []
    for toss, key, p, arm, harms, weight in people:
        alone = [weight * (harms[way] - means[key][way]) for way in ways]
        bettors.append((p, arm, so_far[toss] + ([] if is_first else alone)))
    return bettors, so_far


def closing_times(rollout: Rollout) -> dict[int, float]:
    """When each later session is released: at its end, and after every earlier one."""
    out: dict[int, float] = {}
    last_s = -math.inf
    for drawn in sorted(rollout.later, key=lambda drawn: drawn.rows[0]):
        is_full = len(drawn.rows) == rollout.policy.session_requests
        end_s = rollout.columns["t_s"][drawn.rows[-1]] if is_full else drawn.at_s + rollout.policy.session_s
        last_s = out[id(drawn)] = max(last_s, float(end_s))
    return out


def everyone(
    rollout: Rollout,
    gate: Gate,
    tosses: Sequence[Drawn],
    came: Sequence[Drawn],
    present: Sequence[Unit],
    now_s: float,
    round_and_part: tuple[int, int],
    start_s: float,
    failures: float,
) -> list[Person]:
    """Those who came back, without weight if they have no value, and those who stayed away: of the present
    weight."""

    def class_of(drawn: Drawn) -> tuple[float, int, float, int]:
        drawn_in = 1 + math.floor((drawn.at_s - start_s) / (6.0 * rollout.policy.session_s))
        block = judged_block(bucket_of(drawn.unit), *round_and_part)
        return drawn.w, drawn_in, drawn.logged, block

    harms = harms_of(gate, present, failures)
    known = {unit.row: (harm, unit.weight) for unit, harm in zip(present, harms, strict=True)}
    present_weight = max(
        (drawn.at_s, drawn.rows[0], drawn.logged) for drawn in tosses if drawn.at_s <= now_s
    )[2]
    people: list[Person] = []
    for drawn in came:
        origin = drawn.origin
        if origin is not None and origin.logged == present_weight:
            harm, weight = known.get(drawn.rows[0], ([0.0] * len(harms[0]), 0.0))
            coin = rollout.coin(origin.w, gate)
            people.append((id(origin), class_of(origin), coin, origin.arm, harm, weight))
    returned = [id(drawn.origin) for drawn in came]
    judged = sum(unit.weight for unit in present) / len(came)
    for drawn in tosses:
        if drawn.at_s > now_s or class_of(drawn)[1] > round_and_part[0] or id(drawn) in returned:
            continue
        if drawn.logged != present_weight:
            continue
        weight = judged
        if gate.sampling.canary != gate.sampling.stable:
            weight = gate.sampling.canary if drawn.arm else gate.sampling.stable
        coin, worst = rollout.coin(drawn.w, gate), [1.0] * len(harms[0])
        people.append((id(drawn), class_of(drawn), coin, drawn.arm, worst, weight))
    return people


def harms_of(gate: Gate, units: Sequence[Unit], failures: float) -> list[list[float]]:
    """Harms of each unit, equal on both arms at the gate's tolerance."""
    times = 1.0 + gate.tolerance
    match gate.kind:
        case Kind.SCORE:
            return [[1.0 - unit.y - gate.tolerance * unit.arm] for unit in units]
        case Kind.RATE:
            return [[(unit.y if unit.arm else min(times * unit.y, 1.0)) + unit.missing] for unit in units]
        case Kind.PERCENTILE:
            return [[unit.y] for unit in units]
    scaled = [[value / times if unit.arm else value for value in unit.values] for unit in units]
    answered = sorted(value for of_unit in scaled for value in of_unit if math.isfinite(value))
    out: list[list[float]] = [[] for _ in units]
    for share in (0.5, 0.75, 0.9, 0.97):
        limit = answered[max(math.ceil(share * len(answered)), 1) - 1]
        mean = sum(value > limit for value in answered) / len(answered)
        for unit, of_unit, into in zip(units, scaled, out, strict=True):
            parts = [
                mean + (1.0 - mean) / failures if unit.arm and math.isinf(value) else float(value > limit)
                for value in of_unit
            ]
            into.append(sum(parts) / len(parts))
    return out


def surprise(people: Sequence[Bettor]) -> float:
    """-log of the smallest p-value of the ways times their number; at least 0."""
    ways = len(people[0][2]) if people else 0
    tails = [log_tail([(p, arm, excess[way]) for p, arm, excess in people]) for way in range(ways)]
    return max(0.0, -min(tails) - math.log(ways)) if tails else 0.0


def log_tail(people: Sequence[tuple[float, int, float]]) -> float:
    """Log P(the harm that the coins put on the canary, or more), coin by coin, with the tilt by bisection."""
    total = sum((arm - p) * off for p, arm, off in people)
    spread = sum(p * (1.0 - p) * off**2 for p, _, off in people)
    if spread <= 1e-12 or total < math.sqrt(spread):
        return 0.0
    widest = max(abs(off) for _, _, off in people)

    def tilted(tilt: float) -> list[tuple[float, float]]:
        return [
            (1.0 / (1.0 + (1.0 - p) / p * math.exp(-tilt * off)) if p else 0.0, off) for p, _, off in people
        ]

    def mean(tilt: float) -> float:
        return sum((q - p) * off for (q, off), (p, _, _) in zip(tilted(tilt), people, strict=True))

    low, high = 0.0, 30.0 / widest
    is_beyond = mean(high) < total
    for _ in range(0 if is_beyond else 90):
        middle = (low + high) / 2.0
        low, high = (middle, high) if mean(middle) < total else (low, middle)
    tilt = high
    chernoff = -tilt * total
    for p, _, off in people:
        chernoff += math.log(1.0 - p + p * math.exp(tilt * off)) - tilt * p * off
    variance = sum(q * (1.0 - q) * off**2 for q, off in tilted(tilt))
    if is_beyond or variance < widest**2 or chernoff >= -0.05:
        return chernoff
    root = math.sqrt(-2.0 * chernoff)
    above = math.erfc(root / math.sqrt(2.0)) / 2.0
    density = math.exp(chernoff) / math.sqrt(2.0 * math.pi)
    step = (1.0 - math.exp(-tilt * widest)) / widest * math.sqrt(variance)
    return min(chernoff, math.log(above + density * (1.0 / step - 1.0 / root)))


def mean_of(people: Sequence[Person], key: object, way: int) -> float:
    """Mean harm of a class."""
    of_class = [(harms[way], weight) for _, other, _, _, harms, weight in people if other == key]
    return sum(harm * weight for harm, weight in of_class) / max(sum(w for _, w in of_class), 1e-12)
