"""`canaryctl judge`: admitted, refused with the reasons, or no answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controller.cli.main import run
from tests.fakes.judge_endpoint import judge_endpoint, spoken, truthful


def test_a_judge_that_knows_is_admitted(capsys: pytest.CaptureFixture[str]) -> None:
    with judge_endpoint(truthful) as url:
        assert run(["judge", url, "--model", "m"]) == 0
    out = capsys.readouterr().out
    assert "bad answers found     100% (needed 80%, 50% of each kind)" in out
    assert "right answer won      100% (needed 80%)" in out
    assert "ADMITTED (m, revision " in out


def test_a_judge_that_always_says_no_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def no(body: dict[str, Any]) -> tuple[int, Any]:
        return spoken("A" if "ANSWER A" in body["messages"][1]["content"] else "no")

    with judge_endpoint(no) as url:
        assert run(["judge", url, "--model", "m", "-o", "json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["admitted"], report["found"], report["first_position"]) == (False, 0.0, 1.0)
    assert "0% of the bad plants found, needed 80%" in report["reasons"]


def test_an_endpoint_that_does_not_judge_is_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    with judge_endpoint(lambda _body: (401, {})) as url:
        assert run(["judge", url, "--model", "m"]) == 4
    assert "gave no verdict: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["ftp://x"], "ftp://x"),
        (["http://127.0.0.1:9", "--at-once", "0"], "--at-once 0 is outside 1..64"),
        (["http://127.0.0.1:9", "--timeout", "nan"], "--timeout nan is outside 0.1..600"),
        (["http://127.0.0.1:9", "--api-key-env", "NO_SUCH_KEY_HERE"], "NO_SUCH_KEY_HERE is not set"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", *arguments, "--model", "m"]) == 2
    assert line in capsys.readouterr().err
