"""A sample of the gate benchmark's trials, with few runs: all of them are `make bench-gate`.

A goal is missed where so few runs would miss it by chance in one case of forty at most.
"""

from __future__ import annotations

import pytest

from benchmarks.gate.trial_cases import TRIALS

pytestmark = pytest.mark.calibration

#: Of each kind of traffic one, with its number of runs: those that a mistake breaks in most runs. Where it
#: breaks half of them, 12 runs miss it in 3 of 1000 cases (1 % may go wrong) or in 2 of 100 (5 % may).
SAMPLE = {
    "half never stream, sticky": 12,
    "3 % of units always fail, sticky": 12,
    "a judge samples 30 % of units, sticky": 16,
    "half of the answers judged, per request": 16,
    "turns 3 -> 6": 12,
    "turns 1.3 -> 8": 16,
    "time stamps of 10 s, sticky": 12,
    "5.0% spurious 4xx, per request": 24,
    "errors 5% -> 6.0%, per request": 24,
    "guard: a client with 30% of the requests always fails": 60,
    "guard: an outage of both arms, w = 5 %": 24,
    "guard: both arms fail 22 %": 24,
    "guard: every canary request fails, w = 90%": 16,
    "mirrored pairs, hallucinated 0.1 -> 0.03": 16,
    "mirrored pairs, hallucinated 0.03 -> 0.14": 16,
    "fixes 2.0% errors, per request": 16,
    "answers the slowest 2.0%, per request": 16,
    "answers hard prompts, sticky": 10,
    "latencies in steps of 100 ms, per request": 12,
    "latency rounded to 1000 ms at the margin, per request": 24,
    "answers 5 % hard prompts as badly as possible, per request": 20,
    "answers 5 % hard prompts as badly as possible, sticky": 20,
    "one score a conversation, of its first answer, turns 3 -> 4.5": 16,
    "one score a conversation, of its last answer, turns 3 -> 4.5": 16,
    "8 % of the latencies lost, per request": 24,
    "clients leave after 10 s in the mean, sticky": 12,
    "faster x0.7, clients leave after 10 s, per request": 8,
    "hangs for 15 %, per request": 8,
    "hangs for 5 %, per request": 12,
    "errors 20% -> 1%, quality 0.75, per request": 8,
    "errors 12% -> 1%, quality 0.5, per request": 8,
    "quality at the margin, the worst 5 % unscored, 70% of the others judged, per request": 40,
    "quality at the margin, the worst 5 % unscored, 30% of the others judged, sticky": 40,
    "hallucination at the margin, half of the events without a value, per request": 40,
    "rejects 0.2% -> 2.0%, per request": 8,
    "latency_shape at the margin, turns 8 -> 1.3, sigma 1": 12,
    "latency_shape at the margin, +10% a turn, turns 4 -> 2": 12,
    "late harm, quality, per request": 24,
    "late harm, error, sticky": 24,
    "conversations of 30 turns": 12,
    "a closed group of 600": 9,
    "conversations under way at the raise": 24,
    "a judge that works in batches": 12,
    "harm from the 11th turn on": 8,
    "conversations of 60 turns": 9,
    "harm from the 21st turn on": 6,
    "harm from the 61st turn on": 4,
    "quality at the margin from the 21st turn on": 16,
    "harm after every user was seen": 6,
    "quality at the margin from the 11th turn on": 14,
    "p99 at 1.3x, both arms spread 0.5 to 0.8": 24,
    "p99 at 1.3x, both arms rising to x3": 24,
    "p99 at the margin, both arms x1.4 for 4000 requests in 8000": 24,
    "equal p99, both arms x1.3 for 4000 requests in 8000": 12,
    "equal p99, who asks once waits x1.5": 6,
    "p99 at the margin, all, who asks once waits x3": 12,
    "keeps users with slow prompts": 4,
    "keeps users with hard prompts": 4,
    "quality -0.1 from the second hour on, users come back with 80%": 4,
    "3.0% of the answers end alike": 8,
    "1.5 % end alike, 1.05 % of the canary's, at 1.21x": 16,
    "the canary's slowest 1.05 % end at 1.22x": 16,
    "p99 at 1.3x, exact to 1 s, then polled each 2 s and 10 ms late": 8,
    "p99 at 1.22x, exact to 1.8 s, then polled each 1.7 s and 15 ms late": 10,
    "fast clients at 90 %": 8,
    "latency that rises to x3 on both arms": 8,
    "latency x2 from the canary's beginning": 8,
    "404 to everything, from the start, per request": 8,
    "404 to everything, from mid-stage on, sticky": 8,
}


@pytest.mark.parametrize("name", list(SAMPLE))
def test_a_trial_reaches_its_goals_in_a_few_runs(name: str) -> None:
    trial = TRIALS[name]
    rows = [trial.measure(rep) for rep in range(SAMPLE[name])]
    figures = {heading: goal.judge(rows, trial.runs) for heading, goal in trial.goals.items()}

    assert all(reached for _, reached in figures.values()), f"{trial.says}: {figures}"
