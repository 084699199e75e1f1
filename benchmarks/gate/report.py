"""Report of the gate benchmark: JSON, and Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gate.cases import CROSSINGS, MORE_THAN_BEFORE, STICKY_STRICT_MORE
from benchmarks.gate.traffic import STABLE_FIRST
from benchmarks.gate.trials import Row, Trial, most_allowed

NO_HARM_LIMIT = 0.016  # "at most 16 in 1000"
NO_HARM_USUAL = 0.01  # the promise
BOUNDARY_LIMIT = 0.05
DRIFT_LIMIT = 1.25  # times the same case without drift
DEFAULT_ONLY = frozenset({"tolerably worse", "quality -0.02 stays"})
MORE_REQUESTS = 20  # or 5 %: how much later than at 7f28581 a decision may come
MORE_SHARE = 0.05
GROUPS = {
    "stays": "Validity 1: identical and harmless canaries; share of runs rolled back or INVALID",
    "promoted": "Validity 1 and 2: strictly better canaries; rolled back or INVALID, promoted within 10,000",
    "not proven": "Validity 3: canaries at the margin or beyond; share of runs that prove it",
    "power": "Power",
}
TEXT = f"""\
Presets as shipped: the gates of `strict` and `default` with their own parts of alpha 0.01, late-onset
restarts included. Like for like: four equal metrics at 0.0025 each, without restarts, as at commit 7f28581
(on the same events; the first 120 runs and more). All on the same simulated events: w = 5 % unless the case
says otherwise, {STABLE_FIRST} requests of stable first, a look every 20 canary requests.

The other methods: *thresholds* compares cumulative estimates from 50 samples an arm on: errors +50 %,
hallucination +50 %, p99 +20 %, quality -0.05, any one of them an alarm. *Mann-Whitney at each look* is the
one-sided, tie-corrected normal approximation for each of the four metrics at 0.0025, at every look from the
first on. *One fixed test* is the same test once, at 4000 canary requests or the end. *Wald limit* is the
sequential likelihood ratio of the coin that knows both arms exactly, at 0.0025 for one metric, read at every
request; *Wald, tolerance* the same against the worst canary that `default` tolerates (rates 1.25x, latency
1.1x, quality -0.025): the limit of any test that must let that one stay.
"""

Line = dict[str, Any]  # figures of one case, as in the JSON


def as_json(
    lines: Mapping[str, Line],
    trials: Mapping[str, Line],
    speed: Mapping[str, float],
    *,
    digest: str,
) -> Line:
    """The whole result, with `reached` of every case (None: no goal, or not measured).

    trials: the lines of `trial_line`. digest: of the table in which every case and trial is measured.
    """
    cases = {name: dict(line) for name, line in lines.items()}
    for name, line in cases.items():
        line["reached"] = _reached(name, line, cases)
    return {
        "what": "canary requests; the presets as shipped, and like for like with 7f28581; see gate.md",
        "stable_rows_first": STABLE_FIRST,
        "gate_digest": digest,
        "speed": dict(speed),
        "cases": cases,
        "trials": dict(trials),
    }


def trial_line(trial: Trial, rows: Sequence[Row]) -> Line:
    """Figures of one trial, with `reached` of each goal and of all (None: not measured)."""
    line: Line = {
        "group": trial.group,
        "says": trial.says,
        "runs": len(rows),
        "planned_runs": trial.runs,
        "skipped": trial.skipped,
        "goals": {},
        "reached": None,
    }
    if not rows:
        return line
    for heading, goal in trial.goals.items():
        figure, is_reached = goal.judge(rows, trial.runs)
        line["goals"][heading] = {"figure": figure, "limit": goal.text, "reached": is_reached}
    line["reached"] = all(goal["reached"] for goal in line["goals"].values())
    return line


def _reached(name: str, line: Line, cases: Mapping[str, Line]) -> bool | None:
    if not line["reps"]:
        return None
    match line["kind"]:
        case "no_harm":
            policies = ["default"] if name in DEFAULT_ONLY else ["strict", "default"]
            return all(_is_rare(line[policy]["rang"], line["reps"]) for policy in policies)
        case "boundary":
            count = round(line["proven"]["rang"] * line["reps"])
            return bool(count <= most_allowed(line["reps"], BOUNDARY_LIMIT, BOUNDARY_LIMIT))
        case "promotion":
            targets = {"median": line["target"].get("median"), "p90": line["target"].get("p90")}
            found = _within(targets, {key: line["proven"][key] for key in targets})
            return _all(found, _crossings(name, line), _as_before(name, line))
    return _all(_targets(name, line, cases), _crossings(name, line), _as_before(name, line))


def _is_rare(share: float, reps: int) -> bool:
    return round(share * reps) <= most_allowed(reps, NO_HARM_LIMIT, NO_HARM_USUAL)


def _all(*found: bool | None) -> bool | None:
    """Whether all that have a goal reached it; None: none has."""
    known = [value for value in found if value is not None]
    return all(known) if known else None


def _targets(name: str, line: Line, cases: Mapping[str, Line]) -> bool | None:
    medians = {p: _equal(line, p)["median"] for p in ("strict", "default")}
    if not name.endswith(", drift"):
        return _within(line["target"], medians)
    plain = cases.get(name.removesuffix(", drift"))
    if plain is None or not plain["reps"]:
        return None
    before = {p: _equal(plain, p)["median"] for p in ("strict", "default")}
    return _within({p: m * DRIFT_LIMIT for p, m in before.items() if m is not None}, medians)


def _equal(line: Line, preset: str) -> Line:
    """The like-for-like figures; the shipped preset's where there are none."""
    figures: Line = line[f"{preset}_equal"] if f"{preset}_equal" in line else line[preset]
    return figures


def _crossings(name: str, line: Line) -> bool | None:
    targets = {column: limit for column, limit in CROSSINGS.get(name, {}).items() if column in line}
    return _within(targets, {column: line[column]["median"] for column in targets})


def limit_as_before(name: str, column: str, before: float) -> float:
    """The highest median allowed where it was `before` at commit 7f28581."""
    share = MORE_THAN_BEFORE.get(name, MORE_SHARE)
    if "sticky" in name and column == "strict":
        share = STICKY_STRICT_MORE
    return before + max(MORE_REQUESTS, share * before)


def _as_before(name: str, line: Line) -> bool | None:
    """Whether no median is much later than at 7f28581, over the same repetitions."""
    found = []
    for column, now in (("strict", "strict_equal"), ("default", "default_equal"), ("proven", "proven_equal")):
        before = line.get(f"{column}_7f28581")
        if before is None or before["median"] is None or now not in line:
            continue
        median = line[now]["median"]
        found.append(median is not None and median <= limit_as_before(name, column, before["median"]))
    return all(found) if found else None


def _within(targets: Mapping[str, float | None], figures: Mapping[str, float | None]) -> bool | None:
    given = {name: target for name, target in targets.items() if target is not None}
    if not given:
        return None
    return all(figures[name] is not None and figures[name] <= target for name, target in given.items())  # type: ignore[operator]


def as_markdown(result: Line) -> str:
    """The tables of the published cases, then those of the trials."""
    by_kind: dict[str, dict[str, Line]] = {}
    for name, line in result["cases"].items():
        if line["reps"]:
            by_kind.setdefault(line["kind"], {})[name] = line
    published = [*result["cases"].values(), *result["trials"].values()]
    counts = [line.get("reps", line.get("runs")) for line in published if not line.get("skipped")]
    parts = [TEXT.rstrip()]
    if 0 in counts:
        measured = len(counts) - counts.count(0)
        parts.append(
            f"{measured} of {len(counts)} cases are measured with this gate; the others are left out."
        )
    for kind, table in (
        ("no_harm", _no_harm_table),
        ("rollback", _rollback_table),
        ("promotion", _promotion_table),
        ("boundary", _boundary_table),
    ):
        if kind in by_kind:
            parts.append("\n".join(table(by_kind[kind])))
    for group, title in GROUPS.items():
        lines = {n: line for n, line in result["trials"].items() if line["group"] == group}
        if any(line["runs"] or line["skipped"] for line in lines.values()):
            parts.append("\n".join([f"## {title}", *_trial_table(lines)]))
    if result["speed"]:
        figures = ", ".join(
            f"{name.replace('_', ' ')} {value:.3g}" for name, value in result["speed"].items()
        )
        parts.append(f"Cost: {figures}.")
    return "\n\n".join(parts) + "\n"


def _trial_table(lines: Mapping[str, Line]) -> list[str]:
    out = ["| case | claim | runs | figures | limit | reached |", "|---|---|---|---|---|---|"]
    for name, line in lines.items():
        if line["skipped"]:
            out.append(f"| {name} | {line['says']} | 0 | {line['skipped']} |  |  |")
        elif line["runs"]:
            figures = "; ".join(f"{heading} {goal['figure']}" for heading, goal in line["goals"].items())
            limits = "; ".join(dict.fromkeys(goal["limit"] for goal in line["goals"].values()))
            cells = [name, line["says"], str(line["runs"]), figures, limits, _verdict(line)]
            out.append(f"| {' | '.join(cells)} |")
    return out


def _percent(line: Line, column: str) -> str:
    return f"{line[column]['rang']:.1%}" if column in line else ""


def _time(line: Line, column: str) -> str:
    """Median / p90, or the share that decided if fewer than half did."""
    if column not in line:
        return ""
    median, p90 = line[column]["median"], line[column]["p90"]
    if median is None:
        return f"{line[column]['rang']:.0%}" if line[column]["rang"] else "none"
    return f"{median:.0f}/{p90:.0f}" if p90 is not None else f"{median:.0f}/-"


def _verdict(line: Line) -> str:
    return {True: "yes", False: "**no**", None: ""}[line["reached"]]


def _no_harm_table(lines: Mapping[str, Line]) -> list[str]:
    out = [
        "| no harm: share rolled back | runs | strict | default | like for like: strict | default"
        " | thresholds | Mann-Whitney at each look | one fixed test | at most 1.6 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        is_worse = name in DEFAULT_ONLY
        strict, equal = (
            "(rolls back)" if is_worse else _percent(line, c) for c in ("strict", "strict_equal")
        )
        cells = [name, str(line["reps"]), strict, _percent(line, "default"), equal]
        cells += [_percent(line, c) for c in ("default_equal", "thresholds", "mann_whitney", "fixed_horizon")]
        out.append(f"| {' | '.join([*cells, _verdict(line)])} |")
    return out


def _rollback_table(lines: Mapping[str, Line]) -> list[str]:
    out = [
        "| harm: canary requests, median/p90 | runs | strict | default | like for like: strict | default"
        " | at 7f28581: strict | default | Wald limit | Wald, tolerance | thresholds"
        " | Mann-Whitney at each look | one fixed test | to reach | reached |",
        f"|{'---|' * 15}",
    ]
    for name, line in lines.items():
        targets = [line["target"].get(policy) for policy in ("strict", "default")]
        target = " \\| ".join("-" if t is None else f"{t:.0f}" for t in targets) if any(targets) else ""
        if name.endswith(", drift"):
            target = "1.25x without"
        for column, limit in CROSSINGS.get(name, {}).items():
            target += f"; crossing {line[column]['median'] if column in line else '-'} of {limit:.0f}"
        columns = (
            "strict",
            "default",
            "strict_equal",
            "default_equal",
            "strict_7f28581",
            "default_7f28581",
            "wald",
            "wald_tolerated",
            "thresholds",
            "mann_whitney",
            "fixed_horizon",
        )
        cells = [name, str(line["reps"]), *(_time(line, column) for column in columns)]
        out.append(f"| {' | '.join([*cells, target, _verdict(line)])} |")
    return out


def _promotion_table(lines: Mapping[str, Line]) -> list[str]:
    out = [
        "| harmless canary: canary requests until proven | runs | median/p90 | at the crossing | at 7f28581"
        " | to reach | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        target = "/".join(f"{t:.0f}" for t in line["target"].values())
        for limit in CROSSINGS.get(name, {}).values():
            target += f"crossing {limit:.0f}"
        cells = [_time(line, column) for column in ("proven", "proven_crossing", "proven_7f28581")]
        out.append(f"| {name} | {line['reps']} | {' | '.join(cells)} | {target} | {_verdict(line)} |")
    return out


def _boundary_table(lines: Mapping[str, Line]) -> list[str]:
    """The share that was promoted, by margin (rows) and unit model (columns)."""
    rows: dict[str, dict[str, Line]] = {}
    for name, line in lines.items():
        margin, _, model = name.partition(" | ")
        rows.setdefault(margin, {})[model] = line
    models = list(dict.fromkeys(model for row in rows.values() for model in row))
    runs = min(line["reps"] for line in lines.values())
    out = [
        f"| exactly at the margin: share promoted ({runs} runs) | {' | '.join(models)} | at most 5 % |",
        f"|{'---|' * (len(models) + 2)}",
    ]
    for margin, row in rows.items():
        cells = [_percent(row[model], "proven") if model in row else "" for model in models]
        is_held = all(line["reached"] is not False for line in row.values())
        out.append(f"| {margin} | {' | '.join(cells)} | {'yes' if is_held else '**no**'} |")
    return out
