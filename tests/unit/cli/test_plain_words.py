"""Words and figures that a first reader had to guess."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, Group, RenderableType

from controller.cli.main import run
from controller.cli.output import gate_title
from controller.cli.render import history_list, rollout_parts
from controller.cli.render_plan import _attempt
from controller.quantities import NEVER_CANARY
from controller.rollout.state import Cause, CauseKind, PassedStage, Phase
from controller.settings import load_settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.views.models import AttemptView
from controller.views.rollout import rollout_view
from tests.fakes.rollouts import STABLE, a_rollout
from tests.fakes.view_maker import PLAN, in_stage


def shown(*parts: RenderableType) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as printed:
        console.print(Group(*parts))
    return " ".join(printed.get().split())


def test_the_figures_of_a_proof_name_their_moment() -> None:
    """`proven after 248 canary requests in all` stood above `(n 329)`."""
    passed = PassedStage(0, 1000, "proven", 100.0, 120.0, 329, proven_canary=248, last_gate="error")
    view = rollout_view(in_stage(stage=1, passed=(passed,)))

    assert "proven after 248 canary requests" in shown(*rollout_parts(view, is_wide=False))
    assert "figures: of all 329 when it was left" in shown(*rollout_parts(view, is_wide=False))
    same = replace(passed, canary_requests=248)
    view = rollout_view(in_stage(stage=1, passed=(same,)))
    assert "figures: of all" not in shown(*rollout_parts(view, is_wide=False))


def test_latencies_have_their_unit() -> None:
    assert gate_title("latency_shape", "p50", "latency_ms") == "latency_shape p50 ms"
    assert gate_title("latency_p99", "p99", "latency_ms") == "latency_p99 ms"
    assert gate_title("tokens_alarm", "p50", "tokens") == "tokens_alarm p50"


def test_an_undo_has_no_risk_in_the_history() -> None:
    view = rollout_view(in_stage(phase=Phase.SUCCEEDED, plan=replace(PLAN, undo=True, risk="none")))

    assert ", risk" not in shown(history_list([view], is_wide=False))


def test_a_direct_rollback_is_called_so_whoever_took_it() -> None:
    """With a store that took it, it was `rolled back by user`."""
    for cause in (
        Cause(CauseKind.USER, "3 a.m.", "direct"),
        Cause(CauseKind.USER, "3 a.m.", "alice via direct"),
        Cause(CauseKind.TOMBSTONE, "ended in the route table"),
    ):
        view = rollout_view(in_stage(phase=Phase.ROLLED_BACK, cause=cause))
        assert "rolled back by direct rollback: " in shown(*rollout_parts(view, is_wide=False))
    view = rollout_view(in_stage(phase=Phase.ROLLED_BACK, cause=Cause(CauseKind.USER, "bad", "ada")))
    assert "rolled back by user: bad" in shown(*rollout_parts(view, is_wide=False))


def test_an_attempt_that_still_runs_is_told_in_a_sentence() -> None:
    one = AttemptView(rollout="r-1", started_at_s=0.0, phase="loading", reason="preflight passed")

    assert _attempt(one).startswith("this version has been rolled out since 1970-01-01")
    assert _attempt(one).endswith("in r-1, now loading: preflight passed")


def test_an_attempt_that_ended_is_told_with_its_end() -> None:
    """The time of its begin stood there."""
    ends = {"started_at_s": 0.0, "ended_at_s": 86_400.0, "phase": "rolled_back"}
    one = AttemptView(rollout="r-1", reason="harm", **ends)  # type: ignore[arg-type]

    assert _attempt(one).startswith("this version was rolled back on 1970-01-02")


def test_validate_names_the_gates_that_decide(capsys: pytest.CaptureFixture[str]) -> None:
    """It counted those that decide, and `status` showed the alarms too."""
    assert run(["validate", "--policy", "default"]) == 0
    out = capsys.readouterr().out
    assert "gates decide (error, " in out
    assert "tokens_alarm" not in out


@pytest.mark.slow
def test_a_second_direct_rollback_says_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)

    run(["rollback", "chat", "--direct"])
    assert "rollback of r-00000001 requested;" in capsys.readouterr().err
    run(["rollback", "chat", "--direct"])
    assert "rollback of r-00000001 is requested already" in capsys.readouterr().err
    assert len(store.commands("r-00000001", after_seq=0)) == 1
    store.close()


@pytest.mark.parametrize(("kind", "said"), [(CauseKind.USER, False), (CauseKind.GATE, True)])
def test_an_ab_test_that_ended_is_not_called_rolled_back(kind: CauseKind, said: bool) -> None:
    """B leaves at the end of every test; only a guard's or a gate's end is a rollback."""
    plan = replace(PLAN, stages=(replace(PLAN.stages[0], min_canary=NEVER_CANARY),))
    cause = Cause(kind, "A/B test ab-1 is over after 10 min", "canaryctl ab")
    view = rollout_view(in_stage(plan=plan, phase=Phase.ROLLED_BACK, cause=cause))

    for text in (shown(history_list([view], is_wide=False)), shown(*rollout_parts(view, is_wide=False))):
        assert ("rolled back" in text) is said
        assert ("A/B test ended" in text) is not said
