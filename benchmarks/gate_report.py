"""Report of `make bench-gate`: JSON, and Markdown tables for the README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gate_traffic import STABLE_FIRST

NO_HARM_LIMIT = 0.016  # "at most 16 in 1000"
BOUNDARY_LIMIT = 0.05
DRIFT_LIMIT = 1.25  # times the same case without drift
DEFAULT_ONLY = frozenset({"tolerably worse", "quality -0.02 stays"})

Line = dict[str, Any]  # figures of one case, as in the JSON


def as_json(lines: Mapping[str, dict[str, object]], speed: Mapping[str, float], *, digest: str) -> Line:
    """The whole result, with `reached` of every case (None: no target, or not measured)."""
    cases = {name: dict(line) for name, line in lines.items()}
    for name, line in cases.items():
        line["reached"] = _reached(name, line, cases)
    return {
        "what": "canary requests; four equal metrics, alpha 0.01 in all, a look every 20, no restarts",
        "stable_rows_first": STABLE_FIRST,
        "gate_digest": digest,
        "speed": dict(speed),
        "cases": cases,
    }


def _reached(name: str, line: Line, cases: Mapping[str, Line]) -> bool | None:
    if not line["reps"]:
        return None
    match line["kind"]:
        case "no_harm":
            policies = ["default"] if name in DEFAULT_ONLY else ["strict", "default"]
            return all(line[policy]["rang"] <= NO_HARM_LIMIT for policy in policies)
        case "boundary":
            return bool(line["proven"]["rang"] <= BOUNDARY_LIMIT)
        case "promotion":
            return _within(line["target"], {"median": line["proven"]["median"], "p90": line["proven"]["p90"]})
    if name.endswith(", drift"):
        plain = cases.get(name.removesuffix(", drift"))
        if plain is None or not plain["reps"]:
            return None
        medians = {p: plain[p]["median"] for p in ("strict", "default")}
        targets = {p: m * DRIFT_LIMIT for p, m in medians.items() if m is not None}
        return _within(targets, {p: line[p]["median"] for p in targets})
    return _within(line["target"], {p: line[p]["median"] for p in ("strict", "default")})


def _within(targets: Mapping[str, float | None], figures: Mapping[str, float | None]) -> bool | None:
    given = {name: target for name, target in targets.items() if target is not None}
    if not given:
        return None
    return all(figures[name] is not None and figures[name] <= target for name, target in given.items())  # type: ignore[operator]


def as_markdown(result: Line) -> str:
    """Four tables: false rollbacks, time to roll back, time to prove, false proofs at the margin."""
    by_kind: dict[str, dict[str, Line]] = {}
    for name, line in result["cases"].items():
        if line["reps"]:
            by_kind.setdefault(line["kind"], {})[name] = line
    parts = []
    for kind, table in (
        ("no_harm", _no_harm_table),
        ("rollback", _rollback_table),
        ("promotion", _promotion_table),
        ("boundary", _boundary_table),
    ):
        if kind in by_kind:
            parts.append("\n".join(table(by_kind[kind])))
    if result["speed"]:
        figures = ", ".join(
            f"{name.replace('_', ' ')} {value:.3g}" for name, value in result["speed"].items()
        )
        parts.append(f"Cost: {figures}.")
    return "\n\n".join(parts) + "\n"


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
        "| no harm: share rolled back | runs | strict | default | with restarts (default) | thresholds"
        " | Mann-Whitney at each look | one fixed test | at most 1.6 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        strict = "(stays by default)" if name in DEFAULT_ONLY else _percent(line, "strict")
        cells = [name, str(line["reps"]), strict]
        cells += [
            _percent(line, c)
            for c in ("default", "default_restarts", "thresholds", "mann_whitney", "fixed_horizon")
        ]
        out.append(f"| {' | '.join([*cells, _verdict(line)])} |")
    return out


def _rollback_table(lines: Mapping[str, Line]) -> list[str]:
    out = [
        "| harm: canary requests, median/p90 | runs | strict | default | with restarts (default) | Wald limit"
        " | thresholds | Mann-Whitney at each look | one fixed test | to reach | reached |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        targets = [line["target"].get(policy) for policy in ("strict", "default")]
        target = " \\| ".join("-" if t is None else f"{t:.0f}" for t in targets) if any(targets) else ""
        if name.endswith(", drift"):
            target = "1.25x without"
        columns = (
            "strict",
            "default",
            "default_restarts",
            "wald",
            "thresholds",
            "mann_whitney",
            "fixed_horizon",
        )
        cells = [name, str(line["reps"]), *(_time(line, column) for column in columns)]
        out.append(f"| {' | '.join([*cells, target, _verdict(line)])} |")
    return out


def _promotion_table(lines: Mapping[str, Line]) -> list[str]:
    out = [
        "| harmless canary: canary requests until proven | runs | median/p90 | to reach | reached |",
        "|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        target = "/".join(f"{t:.0f}" for t in line["target"].values())
        out.append(f"| {name} | {line['reps']} | {_time(line, 'proven')} | {target} | {_verdict(line)} |")
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
