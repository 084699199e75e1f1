"""A metric that stops arriving in mid-rollout: logged and paged once, shown, and nothing is promoted."""

from __future__ import annotations

from dataclasses import replace

from controller.cli.render import rollout_parts
from controller.cli.render_gates import gates_table
from controller.rollout.machine import step
from controller.rollout.observation import (
    EvidenceStatus,
    Observation,
    PointEstimates,
    SplitStatus,
    VersionPhase,
    VersionStatus,
)
from controller.rollout.serialization import state_from_json, state_to_json
from controller.rollout.state import RolloutState
from controller.views.rollout import rollout_view
from evaluation.report import Source, Verdict
from tests.fakes.view_maker import GATE, in_stage

NOW_S = 400.0
STOPPED = replace(GATE, verdict=Verdict.PASS, source=Source.STOPPED, last_value_s=NOW_S - 300)
VERSIONS = tuple(VersionStatus(name, VersionPhase.READY, 1, 0) for name in ("v-old", "v-new"))


def evidence(gate: object = STOPPED, verdict: Verdict = Verdict.PASS) -> EvidenceStatus:
    return EvidenceStatus(0, verdict, gates=(gate,), canary_requests=900)  # type: ignore[arg-type]


def tick(state: RolloutState, seen: EvidenceStatus, now_s: float = NOW_S) -> RolloutState:
    split = SplitStatus(1, 1, "v-old", "v-new", 1000, applied=True)
    after, _ = step(state, Observation(now_s=now_s, split=split, versions=VERSIONS, evidence=seen))
    return state_from_json(state_to_json(after))


def test_a_metric_that_stops_is_logged_and_paged_once() -> None:
    state = tick(tick(in_stage(), evidence()), evidence(), NOW_S + 1)

    text = (
        "chat: quality NOT JUDGED: quality stopped arriving 5 min ago; nothing is promoted until it arrives"
    )
    assert [line.text for line in state.log if "NOT JUDGED" in line.text] == [text]
    assert [(notice.severity, notice.text) for notice in state.outbox] == [("page", text)]


def test_nothing_is_promoted_while_a_metric_has_stopped() -> None:
    arriving = replace(STOPPED, source=Source.ARRIVES)

    assert tick(in_stage(), evidence()).stage == 0
    assert tick(in_stage(), evidence(arriving)).stage == 1


def test_the_point_estimates_promote_nothing_either() -> None:
    state = in_stage(deadline_at_s=NOW_S - 1)
    stages = tuple(replace(one, promote_if_point_ok=True) for one in state.plan.stages)

    after = tick(replace(state, plan=replace(state.plan, stages=stages)), evidence(verdict=Verdict.UNDECIDED))

    assert after.stage == 0


def test_a_metric_that_returns_is_logged_and_may_stop_again() -> None:
    returned = replace(GATE, last_value_s=NOW_S + 1)
    again = replace(STOPPED, last_value_s=NOW_S + 1)

    state = tick(in_stage(), evidence(), NOW_S)
    state = tick(state, evidence(returned, Verdict.UNDECIDED), NOW_S + 2)
    state = tick(state, evidence(again), NOW_S + 400)

    assert sum("quality arrives again" in line.text for line in state.log) == 1
    assert [notice.severity for notice in state.outbox] == ["page", "page"]
    assert len({notice.key for notice in state.outbox}) == 2


def test_an_alarm_that_gets_no_data_pages_nobody() -> None:
    state = tick(in_stage(), evidence(replace(STOPPED, is_alarm=True), Verdict.UNDECIDED))

    assert state.outbox == ()


def test_status_shows_it_in_the_table_and_in_words() -> None:
    view = rollout_view(in_stage(), evidence(), now_s=NOW_S)

    lines = [str(part) for part in rollout_parts(view, is_wide=False)]
    assert any(line.startswith("quality NOT JUDGED: quality has stopped arriving since ") for line in lines)
    assert "quality to arrive again" in "; ".join(view.waiting_for)
    assert view.gates[0].source == "stopped"
    cells = [str(cell) for column in gates_table(view.gates, is_wide=False).columns for cell in column.cells]  # type: ignore[union-attr]
    assert "NOT JUDGED" in cells


def test_no_request_at_all_is_no_point_estimate() -> None:
    state = in_stage(deadline_at_s=NOW_S - 1)
    stages = tuple(replace(one, promote_if_point_ok=True, min_canary=0) for one in state.plan.stages)
    seen = replace(evidence(GATE, Verdict.UNDECIDED), points=PointEstimates(True, "within"))
    state = replace(state, plan=replace(state.plan, stages=stages))

    assert tick(state, replace(seen, canary_requests=0)).stage == 0
    assert tick(state, replace(seen, canary_requests=1)).stage == 1
