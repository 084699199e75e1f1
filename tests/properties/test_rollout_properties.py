"""Rules of the rollout machine on arbitrary observations, and the machine against a simple model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.quantities import FULL_BP
from controller.rollout.actions import Action, DrainVersion, Notify, ProbeKind, SetSplit, StopVersion
from controller.rollout.machine import begin, step
from controller.rollout.observation import (
    CommandKind,
    EvidenceStatus,
    GuardStatus,
    ManualCommand,
    Observation,
    ProbeStatus,
    SplitStatus,
    VersionPhase,
    VersionStatus,
)
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.serialization import (
    actions_from_json,
    actions_to_json,
    state_from_json,
    state_to_json,
)
from controller.rollout.state import Phase, RolloutState
from controller.rollout.status import exit_code, is_urgent, rollback_effect
from controller.views.rollout import rollout_view
from evaluation.report import GateReport, Verdict
from tests.fakes.obedient import ObedientPlane

HOLDBACK_BP = 500
OLD, NEW = VersionRef("v-old", 2), VersionRef("v-new", 2)
STAGES = (Stage(1000, 5.0, 10, 60.0, 1), Stage(5000, 5.0, 10, 60.0, 1, "rollback"))
PLAN = Plan("medium", (), STAGES, HOLDBACK_BP, 10.0, load_s=50.0, unreadable_s=20.0, hold_limit_s=200.0)

# --- arbitrary observations

times = st.one_of(st.floats(0, 1e4), st.sampled_from([math.nan, math.inf, -math.inf, -5.0]))
versions = st.sampled_from(["v-old", "v-new", "v-else"])
splits = st.builds(
    SplitStatus,
    epoch=st.just(1),
    revision=st.integers(0, 9),
    stable=st.one_of(st.none(), versions),
    canary=st.one_of(st.none(), versions),
    weight_bp=st.sampled_from([0, 1000, 5000, FULL_BP - HOLDBACK_BP, FULL_BP]),
    applied=st.booleans(),
    tombstoned=st.sampled_from([()] * 19 + [("r-1",)]),
)
statuses = st.builds(
    VersionStatus,
    version=versions,
    phase=st.sampled_from(VersionPhase),
    ready_replicas=st.integers(-1, 3),
    in_flight=st.integers(-1, 5),
)
gates = st.builds(
    GateReport,
    gate=st.just("error"),
    metric=st.just("error"),
    side=st.sampled_from(["rollback", "promotion", "guard"]),
    verdict=st.sampled_from(Verdict),
    log_e=st.floats(),
    limit=st.floats(),
    reason=st.text(max_size=5),
    n_canary=st.integers(0, 99),
    n_stable=st.integers(0, 99),
)
evidences = st.builds(
    EvidenceStatus,
    stage=st.integers(-1, 3),
    verdict=st.sampled_from(Verdict),
    rollback=st.one_of(st.none(), st.none(), st.none(), gates),
    gates=st.lists(gates, max_size=2).map(tuple),
    missing=st.sampled_from([(), ("quality",)]),
    canary_requests=st.integers(0, 50),
    guards=st.sampled_from(
        [(), (), (), (GuardStatus("errors", "all"),), (GuardStatus("errors", "all", True),)]
    ),
)
commands = st.builds(
    ManualCommand,
    seq=st.integers(1, 30),
    kind=st.sampled_from(CommandKind),
    actor=st.just("ann"),
    role=st.sampled_from(["viewer", "operator", "admin"]),
    reason=st.just(""),
    at_s=times,
)
probes = st.builds(
    ProbeStatus,
    kind=st.sampled_from(ProbeKind),
    phase=st.sampled_from(["running", "passed", "passed", "failed", "not_judged"]),
    detail=st.just("why"),
)
observations = st.builds(
    Observation,
    now_s=times,
    split=st.one_of(st.none(), splits),
    versions=st.one_of(st.none(), st.lists(statuses, max_size=3).map(tuple)),
    evidence=st.one_of(st.none(), evidences),
    probes=st.lists(probes, max_size=3).map(tuple),
    commands=st.lists(commands, max_size=2).map(tuple),
    resumed=st.booleans(),
    jump_s=times,
    away_s=times,
)


def start() -> RolloutState:
    return begin("r-1", "chat", stable=OLD, canary=NEW, plan=PLAN, now_s=0.0)


# --- runs on a data plane that performs the actions, with one event per tick

event_names = st.sampled_from(
    ["proven"] * 12
    + ["unproven", "harm", "blind table", "blind fleet", "no evidence", "invalid", "stale"]
    + ["rollback", "pause", "resume", "promote", "promote_full", "jump", "resumed"]
)


def observe(plane: ObedientPlane, state: RolloutState, event: str) -> Observation:
    if event in {kind.value for kind in CommandKind}:
        plane.command(CommandKind(event))
    if event == "jump":
        plane.now_s += 70.0
    verdict = {
        "unproven": Verdict.UNDECIDED,
        "jump": Verdict.UNDECIDED,
        "harm": Verdict.FAIL,
        "invalid": Verdict.INVALID,
    }
    stage = state.stage - 1 if event == "stale" else state.stage
    seen = plane.observe(EvidenceStatus(stage, verdict.get(event, Verdict.PASS), canary_requests=99))
    match event:
        case "blind table":
            return replace(seen, split=None)
        case "blind fleet":
            return replace(seen, versions=None)
        case "no evidence":
            return replace(seen, evidence=None)
        case "resumed":
            return replace(seen, resumed=True)
        case _:
            return seen


@dataclass(frozen=True)
class Tick:
    before: RolloutState
    seen: Observation
    after: RolloutState
    actions: tuple[Action, ...]


def run(events: list[str], lag: int = 0) -> list[Tick]:
    plane, state = ObedientPlane(lag=lag), start()
    actions: tuple[Action, ...] = ()
    ticks: list[Tick] = []
    for event in events:
        plane.perform(actions)
        seen = observe(plane, state, event)
        after, actions = step(state, seen)
        ticks.append(Tick(state, seen, after, actions))
        state = after
    return ticks


# Most runs start with good ticks, so that they reach late phases.
runs = st.builds(
    lambda good, events, lag: run(["proven"] * good + events, lag),
    st.integers(1, 20),
    st.lists(event_names, max_size=25),
    st.integers(0, 3),
)


# --- the rules


@given(st.lists(observations, max_size=25))
@settings(max_examples=80, deadline=None)
@pytest.mark.slow
def test_step_is_total_and_its_results_convert_to_json(seen: list[Observation]) -> None:
    state = start()
    for one in seen:
        state, actions = step(state, one)

        assert state_from_json(state_to_json(state)) == state
        assert actions_from_json(actions_to_json(actions)) == actions
        assert (exit_code(state) is None) != state.is_final
        assert rollback_effect(state)
        assert not (is_urgent(state) and state.is_final)
    view = rollout_view(state, seen[-1].evidence if seen else None)
    assert type(view).model_validate_json(view.model_dump_json()) == view


@pytest.mark.slow
@given(runs)
@settings(max_examples=100, deadline=None)
def test_the_weight_rises_only_after_pass_or_a_waiver(ticks: list[Tick]) -> None:
    for tick in ticks:
        before, after = tick.before, tick.after
        leaves_stage = before.phase is Phase.STAGE and (after.phase, after.stage) != (
            before.phase,
            before.stage,
        )
        if leaves_stage and after.phase is not Phase.ROLLING_BACK:
            evidence = tick.seen.evidence
            passed = evidence is not None and (evidence.stage, evidence.verdict) == (
                before.stage,
                Verdict.PASS,
            )
            assert passed or after.waived_through >= before.stage
        if after.weight_bp > before.weight_bp:
            first = before.phase is Phase.SMOKE and before.weight_bp == 0
            assert first or leaves_stage or before.phase is Phase.PROMOTING


@pytest.mark.slow
@given(runs)
@settings(max_examples=100, deadline=None)
def test_every_published_weight_is_committed_with_it(ticks: list[Tick]) -> None:
    for tick in ticks:
        for action in tick.actions:
            if isinstance(action, SetSplit):
                assert action.weight_bp == tick.after.weight_bp <= FULL_BP - HOLDBACK_BP
                assert (action.canary is None) == (action.weight_bp == 0)


@given(runs, st.lists(observations, max_size=10))
@settings(max_examples=80, deadline=None)
@pytest.mark.slow
def test_final_phases_are_absorbing(ticks: list[Tick], seen: list[Observation]) -> None:
    state = next((tick.after for tick in ticks if tick.after.is_final), None)
    if state is None:
        return
    for one in seen:
        after, actions = step(state, one)

        assert replace(after, outbox=state.outbox, ticked_at_s=state.ticked_at_s) == state
        assert all(isinstance(action, Notify) for action in actions)


@pytest.mark.slow
@given(runs)
@settings(max_examples=100, deadline=None)
def test_a_rollback_is_allowed_from_every_phase_and_blocked_by_nothing(ticks: list[Tick]) -> None:
    for tick in ticks:
        if tick.after.is_final:
            continue
        seq = tick.after.commands_through + 1
        command = ManualCommand(seq, CommandKind.ROLLBACK, "ann", "operator", "", tick.seen.now_s)

        after, actions = step(tick.after, replace(tick.seen, commands=(command,)))

        assert after.phase is Phase.ROLLING_BACK or (
            not tick.after.launched and after.phase is Phase.ROLLED_BACK
        )
        assert not any(isinstance(action, SetSplit) and action.weight_bp > 0 for action in actions)


@pytest.mark.slow
@given(runs)
@settings(max_examples=100, deadline=None)
def test_no_version_is_stopped_before_a_table_without_it_is_applied(ticks: list[Tick]) -> None:
    idle: set[str] = set()  # versions without traffic in the newest applied table
    for tick in ticks:
        split = tick.seen.split
        if split is not None and split.applied:
            idle = {"v-old", "v-new"} - {split.stable, split.canary}
        for action in tick.actions:
            if isinstance(action, StopVersion | DrainVersion):
                assert action.version in idle or not tick.after.exposed


@pytest.mark.slow
@given(runs)
@settings(max_examples=100, deadline=None)
def test_stable_keeps_its_engine_until_the_bake_is_over(ticks: list[Tick]) -> None:
    for tick in ticks:
        leaving = {a.version for a in tick.actions if isinstance(a, StopVersion | DrainVersion)}
        if "v-old" in leaving:
            assert tick.after.phase is Phase.UNLOADING


@pytest.mark.slow
@given(st.lists(st.sampled_from(["no evidence", "invalid", "stale", "unproven", "jump"]), max_size=60))
@settings(max_examples=100, deadline=None)
def test_without_proof_no_canary_leaves_its_first_stage(events: list[str]) -> None:
    for tick in run(["proven"] * 6 + events):
        assert tick.after.weight_bp <= STAGES[0].weight_bp
        assert tick.after.phase not in (Phase.PROMOTING, Phase.BAKING, Phase.UNLOADING, Phase.SUCCEEDED)


@given(runs)
@settings(max_examples=100, deadline=None)
@pytest.mark.slow
def test_every_rollout_ends_on_a_working_data_plane(ticks: list[Tick]) -> None:
    plane, state = ObedientPlane(), start()
    actions: tuple[Action, ...] = ()
    for tick in ticks:
        plane.perform(actions)
        state, actions = step(
            state, replace(tick.seen, split=plane.split, versions=tuple(plane.versions.values()))
        )
        plane.now_s = max(plane.now_s, tick.seen.now_s)
    plane.commands = ticks[-1].seen.commands
    plane.command(CommandKind.RESUME)
    for _ in range(300):
        plane.perform(actions)
        state, actions = step(
            state, plane.observe(EvidenceStatus(state.stage, Verdict.PASS, canary_requests=99))
        )

    assert state.is_final
    assert plane.split is not None
    assert (plane.split.stable, plane.split.weight_bp) == (state.serving, 0)
    assert state.phase is Phase.FAILED or set(plane.versions) == {state.serving}


# --- the model: a list of places, one step per tick, no clocks, no data plane

FORWARD = [
    "planning",
    "preflight",
    "loading",
    "warming",
    "smoke",
    "stage0",
    "stage1",
    "capacity",
    "promoting",
]
FORWARD += ["baking", "swap", "drain", "unload", "succeeded"]
BACK = ["restore", "shift", "drain_canary", "unload_canary", "rolled_back"]
WEIGHTS = {"stage0": 1000, "stage1": 5000, "capacity": 5000, "promoting": 9500, "baking": 9500}
LIVE_PLACES = FORWARD[5:10]


def model(events: list[str]) -> list[str]:
    place, paused, places = "planning", False, []
    for event in events:
        paused = {"pause": True, "resume": False}.get(event, paused)
        if place in ("succeeded", "rolled_back"):
            pass
        elif place in BACK:
            place = BACK[BACK.index(place) + 1]
        elif event == "rollback":
            started, unloading = place not in FORWARD[:2], place in FORWARD[10:]
            place = "rolled_back" if not started else "restore" if unloading else "shift"
        elif event == "harm" and place in LIVE_PLACES:
            place = "shift"
        elif place in FORWARD[10:] or (
            not paused and not (event == "unproven" and place.startswith("stage"))
        ):
            place = FORWARD[FORWARD.index(place) + 1]
        places.append(place)
    return places


def place_of(state: RolloutState) -> str:
    """The place of the model that matches the machine's state."""
    departure = state.departure
    if departure is not None and not state.is_final:
        names = {"restore": "restore", "shift": "swap", "drain": "drain", "unload": "unload"}
        back = {"restore": "restore", "shift": "shift", "drain": "drain_canary", "unload": "unload_canary"}
        return (back if state.phase is Phase.ROLLING_BACK else names)[departure.step.value]
    if state.phase is Phase.STAGE:
        return f"stage{state.stage}"
    if state.phase is Phase.PROMOTING and state.weight_bp < FULL_BP - HOLDBACK_BP:
        return "capacity"
    return state.phase.value


@pytest.mark.slow
@given(
    st.lists(
        st.sampled_from(
            ["proven"] * 14 + ["unproven", "unproven", "harm", "rollback", "pause", "resume", "resume"]
        ),
        max_size=40,
    )
)
@settings(max_examples=200, deadline=None)
def test_the_machine_goes_through_the_places_of_the_model(events: list[str]) -> None:
    plan = replace(
        PLAN, bake_s=0.0, steady_s=0.0, stages=tuple(replace(stage, duration_s=0.0) for stage in STAGES)
    )
    plane, state = ObedientPlane(), replace(start(), plan=plan)
    actions: tuple[Action, ...] = ()
    places, weights = [], []
    for event in events:
        plane.perform(actions)
        state, actions = step(state, observe(plane, state, event))
        places.append(place_of(state))
        weights.append(state.weight_bp)

    expected = model(events)
    assert places == expected
    assert weights == [WEIGHTS.get(place, 0) for place in expected]
