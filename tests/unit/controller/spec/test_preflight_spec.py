"""`preflight` of a policy: what is asked before the first user, what contradicts itself, and its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from controller.cli.main import run
from controller.cli.request_bodies import change_body, service_body
from controller.errors import BadSpec
from controller.planning.ladder import preflight_plan
from controller.rollout.plan import PreflightPlan
from controller.settings import load_settings
from controller.spec.policy_parts import PreflightKind
from controller.spec.service import dump, parse_policy
from serving.judging.smoke_cases import Kind


def planned(preflight: Any) -> PreflightPlan | None:
    policy = parse_policy({"preflight": preflight} if preflight is not None else {})
    assert parse_policy(dump(policy)) == policy
    return preflight_plan(policy)


def test_it_is_off_unless_given_and_asks_the_shipped_cases_when_it_is() -> None:
    assert planned(None) is None
    assert planned({}) == PreflightPlan(smoke=True)
    assert planned({"smoke": False, "golden": "/g"}) == PreflightPlan(smoke=False, golden="/g")
    assert planned({"require": ["tools", "json"]}) == PreflightPlan(require=("tools", "json"))


def test_its_kinds_are_those_of_the_shipped_cases() -> None:
    assert get_args(PreflightKind) == tuple(Kind)


@pytest.mark.parametrize(
    ("preflight", "line"),
    [
        ({"smoke": False}, "policy.preflight.smoke false without golden checks nothing; leave preflight out"),
        (
            {"smoke": False, "golden": "/g", "require": ["chat"]},
            "policy.preflight.require names kinds of smoke, which is false; leave one out",
        ),
        ({"require": ["poems"]}, "policy.preflight.require.0"),
        ({"gold": "/g"}, "policy.preflight: unknown key 'gold'"),
    ],
)
def test_what_contradicts_itself_is_one_line(preflight: Any, line: str) -> None:
    with pytest.raises(BadSpec) as refused:
        parse_policy({"preflight": preflight})
    assert refused.value.lines[0].startswith(line)


def test_a_golden_set_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    policy = {"preflight": {"golden": "sets/golden.jsonl"}}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    service = {"service": "chat", "url": "https://x/v1", "model": "large", "policy": policy}
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(service))
    found = str(tmp_path / "sets/golden.jsonl")

    change = change_body(model=None, url="https://x/v1", engine=None, policy=str(tmp_path / "policy.yaml"))
    up = service_body(load_settings({"CANARYCTL_HOME": str(tmp_path)}), tmp_path / "service.yaml", {})

    assert change["policy"]["preflight"]["golden"] == found
    assert up is not None
    assert up["policy"]["preflight"]["golden"] == found


def test_validate_reads_the_golden_set_of_a_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.yaml").write_text("preflight: {golden: g.jsonl}\n")
    line = '{"messages": [{"role": "user", "content": "q"}], "reference": "fine"}'
    (tmp_path / "g.jsonl").write_text(f"{line}\n{line}\n")
    assert run(["validate", "--policy", str(tmp_path / "policy.yaml")]) == 0
    assert f"golden set {tmp_path}/g.jsonl is valid: 2 cases" in capsys.readouterr().out
    (tmp_path / "g.jsonl").write_text("{}\n")
    assert run(["validate", "--policy", str(tmp_path / "policy.yaml")]) == 2
    assert f"{tmp_path}/g.jsonl line 1: " in capsys.readouterr().err
