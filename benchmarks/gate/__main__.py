"""Benchmark of the gate: `make bench-gate`.

    python -m benchmarks.gate [--quick] [--cases REGEX] [--reps N] [--jobs N] [--minutes N]
        [--recheck N] [--help]

Runs are appended to `benchmarks/out/gate/rows/`, each case under a digest of the gate's results on it, so
that an interrupted run resumes, `--cases` measures a part, and rows of another gate are not mixed in: a case
starts anew when any bit of its results changes. A digest covers the beginning of one run; `--recheck 3`
measures three recorded runs of each whole again and discards the rows of those that differ. The tables hold
everything measured under the present digests; a published line that is complete under its digest is kept as
it is. Those of `--quick` are a preview and go to `benchmarks/out/gate/`. Exits 1 when a goal was missed, 2
when no case has such a name. The whole takes some hours on two cores, and tells once a minute what is left;
`--quick` takes minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.gate.cases import CASES
from benchmarks.gate.digest import gate_digests, whole_digest
from benchmarks.gate.earlier import lines_that_hold, marked
from benchmarks.gate.published import beside_baseline, measure_case, reps_of, summarise
from benchmarks.gate.records import Item, Records, by_name, measure, recheck, slug
from benchmarks.gate.report import as_json, as_markdown, trial_line
from benchmarks.gate.speed import measure_speed
from benchmarks.gate.traffic import Case
from benchmarks.gate.trial_cases import TRIALS

ROOT = Path(__file__).parent.parent
BASELINE = ROOT / "results" / "gate_7f28581.json"
HORIZON = 2000


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a goal was missed."""
    args = _parser().parse_args(argv)
    names = [*CASES, *TRIALS]
    chosen_names = [name for name in names if re.search(args.cases, name)]
    if not chosen_names:
        print(f"no case matches {args.cases!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    cases = [_shortened(case, args.horizon) for case in CASES.values()]
    digests = gate_digests()
    items = by_name([*_case_items(cases, args, digests), *_trial_items(args, digests)])
    json_path = args.json or ROOT / ("out/gate/quick.json" if args.quick else "results/gate.json")
    markdown_path = args.markdown or json_path.with_suffix(".md")
    published = lines_that_hold(json_path, items, digests, TRIALS)
    chosen = [items[name] for name in chosen_names]
    records = Records(ROOT / "out" / "gate" / "rows")
    recorded = {
        i.name: records.read(i.file) or published.get(i.name, {}).get("first_rows", []) for i in chosen
    }
    again = {name: rows[: args.recheck] for name, rows in recorded.items()}
    for name in recheck(chosen, again, jobs=args.jobs):
        print(f"{name}: other results than recorded; measured anew", file=sys.stderr)
        records.discard(items[name].file)
        published.pop(name, None)
    todo = [item for item in chosen if item.name not in published]
    measure(todo, records, time.monotonic() + args.minutes * 60, jobs=args.jobs)
    lines = {
        item.name: marked(line, records.read(item.file), digests[item.name])
        for item, line in _lines(cases, items, records)
    }
    lines |= published
    result = as_json(
        {case.name: lines[case.name] for case in cases},
        {name: lines[name] for name in TRIALS},
        measure_speed() if not args.no_speed else {},
        digest=whole_digest(digests),
    )
    text = as_markdown(result)
    for path, content in ((json_path, json.dumps(result, indent=1) + "\n"), (markdown_path, text)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    print(text)
    parts = {**result["cases"], **result["trials"]}
    missed = [name for name in parts if parts[name]["reached"] is False and name in {i.name for i in chosen}]
    print(f"missed goals: {'; '.join(missed)}" if missed else "every goal that was measured was reached")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs of each: a preview, not a result")
    parser.add_argument("--cases", default="", metavar="REGEX", help="measure only names that match")
    parser.add_argument("--horizon", type=int, default=HORIZON, help="canary requests of a no-harm run")
    parser.add_argument("--reps", type=int, default=sys.maxsize, help="maximum runs of each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; run again to resume")
    parser.add_argument("--jobs", type=int, default=2, help="processes; one core each")
    parser.add_argument(
        "--recheck", type=int, default=0, metavar="N", help="first measure N recorded runs of each again"
    )
    parser.add_argument("--no-speed", action="store_true", help="skip the timings")
    parser.add_argument(
        "--json", type=Path, help="default: results/gate.json; with --quick out/gate/quick.json"
    )
    parser.add_argument("--markdown", type=Path, help="default: beside the JSON")
    return parser


def _shortened(case: Case, horizon: int) -> Case:
    """A no-harm case without a ramp, cut to at most so many canary requests; else the case itself."""
    if case.kind != "no_harm" or case.traffic.ramp or horizon >= case.canary_requests:
        return case
    return replace(case, canary_requests=horizon)


def _case_items(cases: list[Case], args: argparse.Namespace, digests: Mapping[str, str]) -> list[Item]:
    return [
        Item(
            case.name,
            f"{slug(case.name)}-{case.canary_requests}-{digests[case.name]}",
            min(reps_of(case, quick=args.quick), args.reps),
            partial(measure_case, case),
        )
        for case in cases
    ]


def _trial_items(args: argparse.Namespace, digests: Mapping[str, str]) -> list[Item]:
    return [
        Item(
            trial.name,
            f"trial-{slug(trial.name)}-{digests[trial.name]}",
            0 if trial.skipped else min(trial.quick_runs if args.quick else trial.runs, args.reps),
            trial.measure,
        )
        for trial in TRIALS.values()
    ]


def _lines(
    cases: list[Case], items: Mapping[str, Item], records: Records
) -> Iterator[tuple[Item, dict[str, object]]]:
    """The figures of the recorded rows of each case and trial."""
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))["cases"]
    for case in cases:
        rows = records.read(items[case.name].file)
        line = summarise(case, rows)
        if rows and case.name in baseline:
            line |= beside_baseline(baseline[case.name], rows)
        yield items[case.name], line
    for trial in TRIALS.values():
        yield items[trial.name], trial_line(trial, records.read(items[trial.name].file))


if __name__ == "__main__":
    sys.exit(main())
