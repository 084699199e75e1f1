"""A service's judge: what is refused, one line each, and what a policy says of the share that it judges."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controller.errors import BadSpec
from controller.planning.baseline import MeasuredBaseline
from controller.planning.forecast import TrafficOverrides
from controller.planning.judged import (
    judge_cautions,
    judge_line,
    judge_plan,
    pair_cautions,
    rollout_traffic,
    why_not_asked,
    with_judge,
)
from controller.planning.unjudged import awaited, unjudged
from controller.rollout.plan import MirrorPlan, Plan, Stage
from controller.spec.differences import changed_in_place, refuse_change
from controller.spec.judge import DEADLINE_S, JudgeSpec, judge_of
from controller.spec.service import (
    ServiceSpec,
    dump,
    parse_policy,
    parse_service,
    parse_version,
    parse_yaml,
    stored_service,
)
from evaluation.policy.gates import Sampling

JUDGE = {"url": "http://127.0.0.1:8000/v1", "model": "judge"}
SERVICE = {"service": "chat", "model": "/m"}
PLAN = Plan("low", (), (Stage(500, 60.0, 100, 600.0, 1),), 500, 60.0)


def judge(**changes: object) -> JudgeSpec:
    found = service(**changes).judge
    assert found is not None
    return found


def service(**changes: object) -> ServiceSpec:
    return parse_service({**SERVICE, "judge": {**JUDGE, **changes}})


def test_a_judge_on_the_cluster_needs_its_address_and_model() -> None:
    found = judge()

    assert (found.share, found.metric, found.per_minute, found.off_cluster) == (2000, "quality", 60, False)
    assert stored_service(dump(service(share="7.5%"))) == service(share="7.5%")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"url": "https://api.example.com"}, "service.judge.url https://api.example.com is no loopback"),
        ({"url": "http://judge.ai.svc"}, "service.judge.url http://judge.ai.svc is no loopback"),
        ({"url": "ftp://x"}, "service.judge.url 'ftp://x' is not http(s)://"),
        ({"model": None}, "service.judge.model is missing; write the name of the judge's model at url"),
        (
            {"model": "/m/judge"},
            "service.judge.model /m/judge is a directory; with url it is the model's name",
        ),
        ({"model": "x" * 201}, "service.judge.model has 201 characters, at most 200"),
        (
            {"max_model_len": 4096},
            "service.judge.max_model_len is for engines that canaryctl runs; an endpoint",
        ),
        ({"replicas": 2}, "service.judge.replicas is for engines that canaryctl runs"),
        ({"url": None, "model": None}, "service.judge: needs model (a checkpoint directory) or url"),
        ({"url": None, "off_cluster": True}, "service.judge.off_cluster is for a judge elsewhere (url)"),
        ({"url": None, "replicas": 2}, "service.judge.replicas 2 are too many: a judge has one engine"),
        ({"url": None, "api_key_env": "A"}, "service.judge.api_key_env belongs to an endpoint; give its url"),
        ({"url": None, "gpus": 1.5}, "service.judge.gpus 1.5 is no whole number; shares of a GPU end at 1"),
        ({"url": None, "max_model_len": 0}, "service.judge.max_model_len 0 is below 1; raise it"),
        ({"url": None, "engine": {"port": 1}}, "service.judge.engine.port is set by canaryctl itself"),
        ({"share": "0.5%"}, "service.judge.share 0.5 % is below 1 %: 500 verdicts need 100,000 answers"),
        ({"share": "120%"}, "service.judge.share"),
        ({"metric": "thumbs"}, "service.judge.metric 'thumbs' is unknown; use one of 'quality'"),
        ({"per_minute": 0}, "service.judge.per_minute 0 is below 1; raise it"),
        ({"api_key_env": "A", "api_key_file": "/k"}, "service.judge.api_key_file and api_key_env are both"),
        ({"api_key_env": "sk-secret"}, "service.judge.api_key_env is no name of a variable"),
        ({"rate": 5}, "service.judge: unknown key 'rate'"),
    ],
)
def test_a_broken_rule_is_one_line(changes: dict[str, object], line: str) -> None:
    with pytest.raises(BadSpec) as caught:
        service(**changes)

    assert [one for one in caught.value.lines if one.startswith(line)], caught.value.lines
    assert len(caught.value.lines) == 1
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://10.1.2.3", "http://[::1]:8000", "http://judge:8000/v1", "http://localhost"],
)
def test_an_inner_address_needs_no_permission(url: str) -> None:
    assert judge(url=url).url == url


def test_a_judge_that_is_served_here_is_a_version_and_a_folder_relative_to_its_file() -> None:
    sizes = {"max_model_len": 4096, "gpu_memory_utilization": 0.3, "gpus": 0.3, "engine": {"max_num_seqs": 8}}
    found = service(url=None, model="judges/j-7b", share="50%", **sizes).located(Path("/srv")).judge

    assert found is not None
    assert (found.is_external, found.model, found.title) == (False, "/srv/judges/j-7b", "j-7b")
    assert found.version() == parse_version({"model": "/srv/judges/j-7b", **sizes})
    assert parse_service({**SERVICE, "judge": dump(found)}).judge == found


def test_a_judge_elsewhere_needs_an_explicit_permission() -> None:
    assert judge(url="https://api.example.com", off_cluster=True).off_cluster


def test_a_judge_whose_metric_no_gate_tests_is_refused_with_the_service_and_not_asked_by_a_rollout() -> None:
    policy = {"gates": {"quality": None}}
    with pytest.raises(BadSpec, match=r"judge\.metric quality is tested by no gate of the policy"):
        parse_service({**SERVICE, "judge": JUDGE, "policy": policy})

    assert judge_of(judge(), parse_policy(policy)) is None
    assert why_not_asked(judge(), None) == "judge judge is not asked: no gate of the policy tests quality"
    assert judge_of(judge(share="0%"), parse_policy({})) is None
    assert why_not_asked(judge(share="0%"), None) is None


def test_the_gates_on_its_metric_state_its_share() -> None:
    found = with_judge(parse_policy({}), judge()).gate_policy().gates_for("quality")[0]
    kept = with_judge(parse_policy({"gates": {"quality": {"deadline": "20m"}}}), judge())

    assert (found.sampling, found.deadline_s, found.required) == (Sampling(0.2, 0.2), DEADLINE_S, True)
    assert kept.gate_policy().gates_for("quality")[0].deadline_s == 1200.0


def test_where_the_policy_mirrors_they_reserve_alpha_for_judged_pairs() -> None:
    assert not with_judge(parse_policy({}), judge()).gate_policy().gates_for("quality")[0].mirrored
    policy = with_judge(parse_policy({"mirror": {}}), judge())
    assert [gate.name for gate in policy.gate_policy().gates if gate.mirrored] == ["quality"]
    own = {"mirror": {}, "gates": {"quality": {"mirrored": False}}}  # pairs are judged, and decide nothing
    assert not with_judge(parse_policy(own), judge()).gate_policy().gates_for("quality")[0].mirrored


def test_a_plan_says_when_its_budget_cannot_judge_the_pairs_in_time() -> None:
    assert pair_cautions(judge(), None, 1) == ()
    assert pair_cautions(judge(), MirrorPlan(200, 1600, 3600.0), 1) == ()
    (line,) = pair_cautions(judge(), MirrorPlan(200, 2000, 3600.0), 1)
    assert line == (
        "judge: per_minute 60 of 1 router(s) judges 1,624 mirrored pairs within mirror.deadline 1 h, "
        "min_pairs is 2,000: the first stage would be held; raise per_minute, or the deadline to 1 h 14 min"
    )
    assert pair_cautions(judge(), MirrorPlan(200, 2000, 3600.0), 2) == ()


def test_a_policy_that_states_another_share_is_refused() -> None:
    policy = parse_policy({"gates": {"quality": {"sampling": {"stable": 0.5, "canary": 0.5}}}})

    with pytest.raises(BadSpec, match=r"policy\.gates\.quality\.sampling is stable 0\.5, canary 0\.5, but"):
        with_judge(policy, judge())


def test_what_a_judge_will_give_is_neither_unjudged_nor_awaited() -> None:
    measured, policy = MeasuredBaseline(1000, settled=1000), parse_policy({})

    assert "quality" in {one.metric for one in unjudged(policy, measured)}
    assert "quality" not in {one.metric for one in unjudged(policy, measured, ("quality",))}
    assert not any("quality" in line for line in awaited(policy, MeasuredBaseline(5), ("quality",)))


def test_a_forecast_meets_its_share_of_scores_which_are_yes_or_no() -> None:
    policy = with_judge(parse_policy({}), judge())
    traffic = rollout_traffic(policy, MeasuredBaseline(0), 10.0, TrafficOverrides(), judge())

    assert traffic is not None
    assert traffic.judged_of("quality") == 0.2
    assert traffic.baseline.score_sd == pytest.approx(0.396, abs=0.001)
    assert rollout_traffic(policy, MeasuredBaseline(0), None, TrafficOverrides(), judge()) is None


def test_a_plan_says_how_many_answers_are_judged_and_whether_the_budget_suffices() -> None:
    assert judge_line(judge(), PLAN, 4.0) == (
        "judge judge is asked of 20 % of both versions' answers, for quality: 48 a minute, 2.4 of the "
        "canary's in stage 1; it is examined before the first stage"
    )
    assert judge_cautions(judge(), 4.0, 1) == ()
    [line] = judge_cautions(judge(), 40.0, 2)
    assert "exceed per_minute 60 of 2 router(s)" in line
    assert "raise per_minute to 253, or lower share to 4.74 %" in line


def test_a_rollout_pins_the_judge() -> None:
    pinned = judge_plan(judge(api_key_env="KEY", share="50%"))

    assert pinned is not None
    assert (pinned.url, pinned.share_bp, pinned.api_key_env) == (JUDGE["url"], 5000, "KEY")


def test_up_changes_the_judge_of_a_running_service() -> None:
    before, after = parse_service(SERVICE), service()

    assert changed_in_place(after, before) == {"judge": after.judge}
    assert changed_in_place(parse_service(SERVICE), after) == {}
    refuse_change(after, stable="v-1", given=before, running=None)


def test_a_relative_key_file_is_found_beside_the_service_file(tmp_path: Path) -> None:
    found = service(api_key_file="key").located(tmp_path).judge

    assert found is not None
    assert found.api_key_file == str(tmp_path / "key")


def test_the_example_of_the_page_is_a_service() -> None:
    page = (Path(__file__).parents[4] / "docs" / "judges.md").read_text()
    [example] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shown = parse_service(parse_yaml(example, "page")).judge
    rows = set(re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE))
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}

    assert shown is not None
    assert shown.share == 2000
    assert keys == set(JudgeSpec.model_fields)
