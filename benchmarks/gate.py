"""Benchmark of the gate on simulated traffic, with other methods on the same events: `make bench-gate`.

    python -m benchmarks.gate [--quick] [--case TEXT] [--reps N] [--jobs N] [--minutes N] [--help]

Four equal metrics at 0.0025 each (alpha 0.01), no restarts, w = 5 % unless a case sets another, decisions
read every 20 canary requests. Both policies run in one pass: one policy holds the gates of both, each at its
own 0.0025. Repetitions are appended to `benchmarks/out/gate/` under a digest of the gate's results, so that
an interrupted run resumes, and a change of any bit of a result starts a new one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.gate_cases import CASES
from benchmarks.gate_peers import LOOK, alarms, summary
from benchmarks.gate_report import as_json, as_markdown
from benchmarks.gate_speed import FOUR, measure_speed
from benchmarks.gate_traffic import Case, Columns, Events, simulate
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict

ROOT = Path(__file__).parent
ALPHA_METRIC = 0.01 / len(FOUR)
REPS = {"no_harm": 1000, "rollback": 1000, "promotion": 500, "boundary": 400}
QUICK_REPS = {"no_harm": 20, "rollback": 25, "promotion": 25, "boundary": 10}
RESTART_REPS = {"no_harm": 50, "rollback": 50}  # of these, also with late-onset restarts
FIRST_PREFIX = 500  # canary requests tried first where harm is expected; then four times as many
DIGEST_PREFIX = 300  # canary requests of each case in the digest
ROUND = 10  # repetitions of a case before those of the next case

Row = dict[str, int | None]


def both_policies(*, restart_share: float) -> GatePolicy:
    """One policy with the gates of `strict` and `default`, each with a quarter of its policy's own 0.01."""
    gates: list[Gate] = []
    for name in ("strict", "default"):
        for gate in GatePolicy.named(name).gates:
            if gate.name in FOUR:
                gates.append(replace(gate, name=f"{gate.name}@{name}", alpha_share=0.5 / len(FOUR)))
    return replace(GatePolicy.default(), alpha=0.02, gates=tuple(gates), restart_share=restart_share)


def prefix(events: Events, canary_requests: int) -> Columns:
    """The rows up to so many canary requests."""
    arm = np.asarray(events.columns["arm"], dtype=np.int64)
    rows = int(np.searchsorted(np.cumsum(arm), canary_requests)) + 1
    return {name: column[:rows] for name, column in events.columns.items()}


def at_look(canary_requests: int) -> int:
    """The first look at or after this many canary requests."""
    return -(-canary_requests // LOOK) * LOOK


def rollback_times(case: Case, events: Events, policy: GatePolicy) -> Row:
    """Canary requests at the rollback under each policy; None: no rollback by the end of the events."""
    length = case.canary_requests if case.kind == "no_harm" else FIRST_PREFIX
    while True:
        result = _run_rollback(prefix(events, length), policy)
        times: Row = {"strict": None, "default": None}
        for report in result.gates:
            if report.side == "rollback" and report.verdict is Verdict.FAIL:
                assert report.decided_canary is not None
                name = report.gate.partition("@")[2]
                canary = at_look(report.decided_canary)
                times[name] = min(times[name] or canary, canary)
        if length >= case.canary_requests or all(times.values()):
            return times
        length *= 4


def _run_rollback(columns: Columns, policy: GatePolicy) -> BacktestResult:
    """A backtest with nothing to prove."""
    return run(columns, policy, stages=(StagePlan(0.5, 0, {}),))


def _run_proofs(case: Case, columns: Columns) -> BacktestResult:
    policy = GatePolicy.default()
    policy = replace(policy, gates=tuple(g for g in policy.gates if g.name in case.proofs), restart_share=0.0)
    stage = StagePlan(case.traffic.w, 0, case.proofs, case.floor)
    return run(columns, policy, stages=[stage] * (2 if "stage" in columns else 1))


def proof_times(case: Case, events: Events) -> Row:
    """Canary requests at which the last margin of the case was proven; None: not within the events."""
    result = _run_proofs(case, events.columns)
    if set(result.proofs) != set(case.proofs):
        return {"proven": None}
    return {"proven": at_look(max(result.proofs.values()))}


def measure_rep(case: Case, rep: int) -> Row:
    """All figures of one repetition of a case."""
    events = simulate(case, rep)
    if case.proofs:
        return {"rep": rep, **proof_times(case, events)}
    row: Row = {"rep": rep, **rollback_times(case, events, both_policies(restart_share=0.0))}
    if rep < RESTART_REPS[case.kind]:
        with_restarts = rollback_times(case, events, both_policies(restart_share=0.3))
        row |= {f"{name}_restarts": canary for name, canary in with_restarts.items()}
    peers = alarms(events, alpha_metric=ALPHA_METRIC)
    return row | {name: getattr(peers, name) for name in peers.__slots__}


class Records:
    """Measured rows by case, appended to files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, case: Case) -> list[Row]:
        """The rows so far, without a truncated last line."""
        path = self._path(case)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def append(self, case: Case, row: Row) -> None:
        """Append a row to the file of its case."""
        with self._path(case).open("a", encoding="utf-8") as out:
            # A line break first: the last line may be truncated.
            out.write("\n" + json.dumps(row))

    def _path(self, case: Case) -> Path:
        slug = "".join(c if c.isalnum() else "-" for c in case.name)
        return self._folder / f"{slug}-{case.canary_requests}.jsonl"


def gate_digest() -> str:
    """Twelve hex digits of the gate's results, to the bit, on the first repetition of every case.

    It changes with the traffic, the bets and the limits, and not with a refactoring.
    """
    digest = hashlib.sha256()
    for case in CASES.values():
        columns = prefix(simulate(case, 0), DIGEST_PREFIX)
        policy = both_policies(restart_share=0.3)
        result = _run_proofs(case, columns) if case.proofs else _run_rollback(columns, policy)
        digest.update(f"{case.name} {dict(result.log_e)} {dict(result.proofs)}".encode())
        digest.update(" ".join(f"{r.gate} {r.log_e!r} {r.limit!r}" for r in result.gates).encode())
    return digest.hexdigest()[:12]


def measure(
    cases: list[Case], reps: Mapping[str, int], records: Records, until_s: float, *, jobs: int = 1
) -> None:
    """Fill the records in rounds over the cases, so that an interrupted run has rows of each."""
    todo = [(case, rep) for case in cases for rep in _missing(case, reps, records)]
    todo.sort(key=lambda item: item[1] // ROUND)
    remaining = Counter(case.name for case, _ in todo)
    with multiprocessing.Pool(jobs) if jobs > 1 else nullcontext() as pool:
        rows = map(_measured, todo) if pool is None else pool.imap_unordered(_measured, todo)
        while todo and time.monotonic() < until_s and (measured := next(rows, None)):
            case, row = measured
            records.append(case, row)
            remaining[case.name] -= 1
            if remaining[case.name] == 0:
                print(f"{case.name}: {reps[case.kind]} repetitions", file=sys.stderr, flush=True)


def _missing(case: Case, reps: Mapping[str, int], records: Records) -> list[int]:
    done = {row["rep"] for row in records.read(case)}
    return [rep for rep in range(reps[case.kind]) if rep not in done]


def _measured(item: tuple[Case, int]) -> tuple[Case, Row]:
    return item[0], measure_rep(*item)


def summarise(case: Case, rows: list[Row]) -> dict[str, object]:
    """Figures of one case, for a row of the table."""
    columns = [name for name in rows[0] if name != "rep"] if rows else []
    out: dict[str, object] = {
        "kind": case.kind,
        "reps": len(rows),
        "canary_requests": case.canary_requests,
        "target": dict(case.target),
    }
    for name in columns:
        out[name] = summary([row[name] for row in rows if name in row])
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: a preview, not a result")
    parser.add_argument("--case", default="", help="only cases whose name contains this text")
    parser.add_argument("--kind", choices=sorted(REPS), help="only cases of this kind")
    parser.add_argument("--horizon", type=int, default=10_000, help="canary requests of a no-harm run")
    parser.add_argument("--reps", type=int, default=sys.maxsize, help="maximum repetitions of each case")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; run again to resume")
    parser.add_argument("--jobs", type=int, default=1, help="processes; one core each")
    parser.add_argument("--no-speed", action="store_true", help="skip the timings")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "gate.json")
    parser.add_argument("--markdown", type=Path, default=ROOT / "results" / "gate.md")
    args = parser.parse_args(argv)
    every = [_shortened(case, args.horizon) for case in CASES.values()]
    cases = [case for case in every if args.case in case.name and args.kind in (None, case.kind)]
    if not cases:
        print(f"no case contains {args.case!r}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    digest = gate_digest()
    records = Records(ROOT / "out" / "gate" / digest)
    reps = {kind: min(n, args.reps) for kind, n in (QUICK_REPS if args.quick else REPS).items()}
    measure(cases, reps, records, time.monotonic() + args.minutes * 60, jobs=args.jobs)
    lines = {case.name: summarise(case, records.read(case)) for case in every}
    speed = measure_speed() if not args.no_speed else {}
    result = as_json(lines, speed, digest=digest)
    _write(args.json, lambda: json.dumps(result, indent=1) + "\n")
    _write(args.markdown, lambda: as_markdown(result))
    print(as_markdown(result))
    missed = [name for name, line in result["cases"].items() if line["reached"] is False]
    print(f"missed targets: {', '.join(missed)}" if missed else "every target was reached")
    return 1 if missed else 0


def _shortened(case: Case, horizon: int) -> Case:
    """A no-harm case without a ramp, cut to at most so many canary requests; else the case itself."""
    if case.kind != "no_harm" or case.traffic.ramp or horizon >= case.canary_requests:
        return case
    return replace(case, canary_requests=horizon)


def _write(path: Path, text: Callable[[], str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
