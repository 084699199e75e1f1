"""A backtest as people and programs read it: the decision, what was judged, what was not, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from controller.cli.backtest_costs import cost_line, costs_as_json
from controller.cli.backtest_plan import Needed
from controller.cli.backtest_split import TWICE, before_canary, shares, with_shares
from controller.cli.evidence_files import EvidenceFile
from controller.cli.output import gate_title, number, slowest_line, table
from controller.quantities import FULL_BP, figure, percent
from evaluation.betting.histogram import UNPROVABLE
from evaluation.metrics import CATALOGUE
from evaluation.offline.backtest import BacktestResult
from evaluation.offline.names import COLUMNS
from evaluation.policy.policy import GatePolicy
from evaluation.report import GateReport, Verdict
from evaluation.split_reports import RATIO_MISMATCH

QUESTIONS = {"rollback": "worse?", "promotion": "proven?", "guard": "unfair split?"}
ANSWERS = {
    ("rollback", Verdict.FAIL): "YES",
    ("rollback", Verdict.UNDECIDED): "not shown",
    ("promotion", Verdict.PASS): "yes",
    ("promotion", Verdict.UNDECIDED): "not yet",
    ("guard", Verdict.UNDECIDED): "not shown",
    ("guard", Verdict.INVALID): "YES",
}
# Of what is reported only once it is shown: the evidence is for a yes to another question.
SHOWN_QUESTIONS = {"served_rate": "served too little?", "cancelled_share": "more cancelled?"}

CONTRADICTIONS = "contradict their own bucket"  # in the reasons of evaluation/split_reports.py
WIDE = 120  # columns, from which on each row of the gates has its reason
BOTH_BAD = "both arms are bad"  # in the reasons of evaluation/offline/backtest.py
NO_ROWS = "no rows of stage"
OPEN = "not proven yet"

LEGEND = (
    "evidence: how much the data speak for a yes, of what a yes takes (log of the bets' winnings); "
    "after: canary requests until it was decided"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A result with its file and what it was asked to judge. `allowed`: why unjudged gates do not block."""

    evidence: EvidenceFile
    policy: GatePolicy
    result: BacktestResult
    needed: Needed
    allowed: str | None  # None: they block
    is_replay: bool = False  # judged as soon as it was recorded

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Gates that nothing is known of; streaming times only where the user's policy names them."""
        either = self.needed.named | self.needed.preset
        return tuple(name for name in self.result.not_judged if name in either)

    def metric_of(self, gate: str) -> str:
        """The metric that a gate tests."""
        metrics = {found.name: found.metric for found in self.policy.gates}
        metrics |= {found.name: found.metric for found in self.policy.observed_ranges}
        return metrics[gate]


def as_json(shown: Shown) -> dict[str, object]:
    """The result in JSON types; infinite and NaN values are null."""
    result, evidence = shown.result, shown.evidence
    return {
        "decision": result.decision,
        "metric": result.metric,
        "canary_requests": result.canary_requests,
        "t_s": _finite(result.t_s),
        "policy": shown.policy.name,
        "alpha": shown.policy.alpha,
        "rows": evidence.rows,
        "log_e": dict(result.log_e),
        "intervals": {name: [_finite(bound) for bound in pair] for name, pair in result.intervals.items()},
        "proofs": dict(result.proofs),
        "gates": [_gate_as_json(report) for report in result.gates],
        "stages": [
            {
                "stage": stage.stage,  # as in the column, from 0
                "number": stage.stage + 1,
                "weight": stage.weight,
                "canary_requests": stage.canary_requests,
                "verdict": stage.verdict.value,
                "missing": list(stage.missing),
            }
            for stage in result.stages
        ],
        "reasons": [with_shares(reason, evidence) for reason in result.reasons],
        "doubts": [with_shares(doubt, evidence) for doubt in result.doubts],
        "not_judged": list(shown.unjudged),
        "costs": costs_as_json(shown.evidence),
        "alarms": [report.metric for report in raised_alarms(result.gates)],
        "allow_unjudged": shown.allowed,
        "ignored_columns": list(evidence.ignored),
        "notes": [*evidence.notes, *result.notes],
    }


def _gate_as_json(report: GateReport) -> dict[str, object]:
    return {
        "gate": report.gate,
        "side": report.side,
        "verdict": report.verdict.value,
        "log_e": report.log_e,
        "limit": _finite(report.limit),
        "stable": _finite_or_none(report.stable),
        "canary": _finite_or_none(report.canary),
        "statistic": report.statistic,
        "unanswered": None if report.unanswered is None else list(report.unanswered),
        "limits": report.limits,
        "n_stable": report.n_stable,
        "n_canary": report.n_canary,
        "effective_units": report.effective_units,
        "decided_canary": report.decided_canary,
        "is_alarm": report.is_alarm,
        "reason": report.reason,
    }


def _finite_or_none(value: float | None) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_table(shown: Shown, *, columns: int = WIDE) -> RenderableType:
    """The decision in one line, what was not judged, the stages, then a row for each gate and side.

    columns: of the terminal; where they are few, the reasons stand beneath the rows.
    """
    ranges = {gate.name for gate in shown.policy.observed_ranges}
    lines = [Text(headline(shown))]
    if shown.result.doubts:
        doubts = "; ".join(with_shares(doubt, shown.evidence) for doubt in shown.result.doubts)
        lines.append(
            Text(f"but the split is in doubt: {doubts}; is unit the key of the draw?", style="bold red")
        )
    if shown.unjudged:
        lines.append(Text(unjudged_line(shown), style="bold magenta"))
    if alarms := raised_alarms(shown.result.gates):
        lines.append(Text(alarm_line(alarms), style="bold yellow"))
    if (costs := cost_line(shown.evidence)) is not None:
        lines.append(Text(costs))
    parts: list[RenderableType] = [*lines, ""]
    if len(shown.result.stages) > 1:
        parts += [_stage_grid(shown.result), ""]
    shares = {report.gate: report.unanswered for report in shown.result.gates}
    notes = [Text(line, style="dim") for line in (LEGEND, slowest_line(shares)) if line is not None]
    is_narrow = columns < WIDE
    grid = _gate_grid(shown.result.gates, ranges, shown.evidence, has_reasons=not is_narrow)
    whys = _why_lines(shown.result.gates, shown.evidence) if is_narrow else []
    return Group(*parts, grid, *whys, *notes)


def headline(shown: Shown) -> str:
    """The decision, what it rests on, and how much of it."""
    result = shown.result
    basis = f"(policy {result.policy}, {shown.evidence.rows} rows)"
    count = f"after {result.canary_requests} canary requests"
    match result.decision:
        case "rollback":
            return f"ROLLBACK by {result.metric} {count} {basis}"
        case "promote":
            return f"PROMOTE: {', '.join(result.proofs)} proven {count} {basis}"
        case "invalid":
            return f"INVALID: {'; '.join(invalid_reasons(shown))} {basis}"
        case "undecided":
            return f"UNDECIDED {count}: {_open_reasons(shown)} {basis}"


def invalid_reasons(shown: Shown) -> list[str]:
    """Why the result is invalid, with the shares that a mismatch is about; not what is only unproven."""
    reasons = [with_shares(reason, shown.evidence) for reason in shown.result.reasons]
    return [reason for reason in reasons if OPEN not in reason] or reasons


def _open_reasons(shown: Shown) -> str:
    """What is still to be proven; the gates that have nothing to judge stand on a line of their own."""
    told = [with_shares(reason, shown.evidence) for reason in shown.result.reasons]
    reasons = [reason for reason in told if "NOT JUDGED" not in reason]
    if reasons:
        return "; ".join(reasons)
    if len(shown.result.reasons) > 0:
        proven = ", ".join(shown.result.proofs) or "nothing"
        return f"{proven} proven, {len(shown.result.reasons)} of the policy's gates not judged"
    return "nothing to prove"


def unjudged_line(shown: Shown) -> str:
    """The gates that nothing is known of, and the metric that each would need."""
    gates = ", ".join(f"{gate} (no column {shown.metric_of(gate)})" for gate in shown.unjudged)
    return f"NOT JUDGED: {gates}" + (f"; allowed: {shown.allowed}" if shown.allowed is not None else "")


def raised_alarms(reports: Sequence[GateReport]) -> list[GateReport]:
    """The alarms whose harm was shown: they decide nothing, so their verdict stays open."""
    return [r for r in reports if r.is_alarm and r.decided_canary is not None and r.n_canary]


def alarm_line(alarms: Sequence[GateReport]) -> str:
    """What the alarms show, in one line; they decide nothing."""
    shown = (
        f"{a.metric} (stable {number(a.stable)}, canary {number(a.canary)}, after {a.decided_canary}"
        f"{_failed(a)})"
        for a in alarms
    )
    return f"ALARM, which decides nothing: worse {', '.join(shown)}"


def _failed(alarm: GateReport) -> str:
    """What may be all that the alarm shows: more requests of the canary than of stable without an answer."""
    if alarm.unanswered is None or alarm.unanswered[1] <= alarm.unanswered[0]:
        return ""
    share = figure(100 * alarm.unanswered[1], 3)
    return f"; {share} % of the canary's requests have no answer, which counts as the worst value"


def _plotted(shown: Shown) -> str:
    """The option that plots the evidence."""
    return "--records FILE, and then backtest FILE --plot FILE.png," if shown.is_replay else "--plot FILE.png"


def _besides(shown: Shown) -> str:
    """What is to be done as well, where more than the judging of a gate is missing."""
    is_open = any("NOT JUDGED" not in reason for reason in shown.result.reasons)
    more = "send more requests" if shown.is_replay else "record more canary requests"
    return f"; and {more}, for what is not proven yet" if is_open else ""


def next_step(shown: Shown) -> str:
    """What to do, in one line."""
    blocking = shown.needed.blocking(is_acknowledged=shown.allowed is not None)
    unjudged = [gate for gate in shown.unjudged if gate in blocking]
    metrics = ", ".join(dict.fromkeys(shown.metric_of(gate) for gate in unjudged))
    match shown.result.decision:
        case "undecided" if unjudged and not set(unjudged) & shown.needed.named:
            return (
                f"next: add {metrics}, or accept that it is unknown: --allow-unjudged REASON{_besides(shown)}"
            )
        case "undecided" if unjudged:
            named = [gate for gate in unjudged if gate in shown.needed.named]
            return (
                f"next: add {metrics}; or remove the gate from the policy: {named[0]}: null{_besides(shown)}"
            )
        case "undecided" if any(UNPROVABLE in reason for reason in shown.result.reasons):
            return "next: record latency in milliseconds, or a margin wider than its steps (docs/policy.md)"
        case "undecided" if any(BOTH_BAD in reason for reason in shown.result.reasons):
            return "next: find what fails on stable, too; a rollout beside it says nothing until it is mended"
        case "undecided" if all(NO_ROWS in reason for reason in shown.result.reasons):
            return "next: add the rows of these stages, or judge by a policy without them (--policy FILE)"
        case "undecided" if shown.is_replay:
            return (
                "next: send more requests (a longer FILE), or lower what the policy must prove "
                "(docs/policy.md)"
            )
        case "undecided":
            return "next: record more canary requests, or lower what a stage must prove (docs/policy.md)"
        case "invalid" if any(CONTRADICTIONS in reason for reason in shown.result.reasons):
            unit = shown.evidence.unit or "unit"
            return (
                f"next: requests of one {unit} are on both arms, as where each request was drawn by itself: "
                f"--ignore {unit}; or name what was drawn: --map unit=COLUMN"
            )
        case "invalid" if any(RATIO_MISMATCH in reason for reason in shown.result.reasons):
            if early := before_canary(shown.evidence):
                return f"next: {early}"
            return (
                "next: is the share right (--w, or the column w), and the right arm the canary (--canary)? "
                "Then the recording lacks units of one arm (docs/backtest.md, what makes a file invalid)"
            )
        case "invalid" if any("(max_missing)" in reason for reason in shown.result.reasons):
            return (
                "next: mend the recording; or, where both arms lose as many by nature, raise max_missing in "
                "the policy (docs/policy.md)"
            )
        case "invalid":
            return "next: mend the recording (docs/backtest.md, what makes a file invalid)"
        case "rollback":
            return (
                f"next: {_plotted(shown)} shows when; a harm you accept is a gate's tolerance "
                "(docs/policy.md)"
            )
        case "promote":
            return f"next: --policy strict tolerates nothing; {_plotted(shown)} shows each proof"


def _stage_grid(result: BacktestResult) -> RenderableType:
    grid = table("stage", "weight", "canary", "verdict", "missing")
    for stage in result.stages:
        grid.add_row(
            str(stage.stage + 1),  # as in a plan and in `status`
            percent(round(stage.weight * FULL_BP)),
            str(stage.canary_requests),
            stage.verdict.value,
            "; ".join(TWICE.sub(r"\2", reason) for reason in stage.missing) or "-",
        )
    return grid


def _gate_grid(
    reports: Sequence[GateReport], ranges: Set[str], evidence: EvidenceFile, *, has_reasons: bool
) -> RenderableType:
    """One line for each question of each gate: the answer, the evidence of its limit, after how many."""
    more = ("why",) if has_reasons else ()
    grid = table(
        *("gate", "question", "answer", "evidence", "stable", "canary", "after", *more), drop=(*more, "after")
    )
    is_frozen = any(one.side == "guard" and one.verdict is Verdict.INVALID for one in reports)
    for report in reports:
        question = "alarm: worse?" if report.is_alarm else QUESTIONS[report.side]
        count = report.decided_canary
        answer = ANSWERS.get((report.side, report.verdict), report.verdict.value)
        if report.gate in SHOWN_QUESTIONS:
            question, answer = SHOWN_QUESTIONS[report.gate], "YES" if count is not None else "not shown"
        elif is_frozen and report.verdict is Verdict.UNDECIDED:
            answer = "void"  # the split is unfair, and so may be what the evidence says
        grid.add_row(
            gate_title(report.gate, report.statistic, report.metric),
            "in stable's range?" if report.gate in ranges else _question(question, report.limits),
            "YES" if report.is_alarm and count is not None else answer,
            f"{report.log_e:.1f} of {report.limit:.1f}" if math.isfinite(report.limit) else "-",
            number(report.stable),
            number(report.canary),
            "-" if count is None else str(count),
            *((_why(report, evidence),) if has_reasons else ()),
        )
    return grid


def _why_lines(reports: Sequence[GateReport], evidence: EvidenceFile) -> list[Text]:
    """The reasons of the gates, each once, where the table is too narrow for them."""
    lines = [f"{report.gate}: {why}" for report in reports if (why := _why(report, evidence))]
    return [Text(line) for line in dict.fromkeys(lines)]


def _question(question: str, limits: str) -> str:
    """`worse: above 1.1x?`: with the limit, as the two questions of a gate have different ones."""
    return f"{question.removesuffix('?')}: {limits}?" if limits else question


def _why(report: GateReport, evidence: EvidenceFile) -> str:
    """The reason without what the other cells say already; of the split, with both shares."""
    if report.side == "rollback" and report.verdict is Verdict.UNDECIDED and report.decided_canary is None:
        return ""
    reason = report.reason.removeprefix(report.gate).removeprefix(":").strip()
    reason = reason.removeprefix(report.limits).strip() if report.limits else reason
    reason = reason.removesuffix("not proven yet").removesuffix("proven").strip()
    return f"{reason}; {shares(evidence)}" if report.gate == "served_share" else reason


def columns_table() -> RenderableType:
    """Every column that a file may have."""
    grid = table("column", "unit", "what it holds")
    needed = {"t_s": "required", "arm": "required", "w": "required, or --w"}
    for name, what in COLUMNS.items():
        grid.add_row(name, needed.get(name, "optional"), what)
    for metric in CATALOGUE.values():
        unit = "0 or 1" if metric.unit.startswith("share") else metric.unit
        grid.add_row(metric.name, unit, metric.what)
    return Group(grid, "", "A row is one request. An empty cell, null, NA, NaN and - are missing values.")
