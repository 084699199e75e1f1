"""`canaryctl judge`: admitted, refused with the reasons, or no answer."""

from __future__ import annotations

import itertools
import json
import threading
from typing import Any

import pytest

from controller.cli.main import run
from tests.fakes.judge_endpoint import judge_endpoint, spoken, truthful


@pytest.mark.slow
def test_a_judge_that_knows_is_admitted(capsys: pytest.CaptureFixture[str]) -> None:
    with judge_endpoint(truthful) as url:
        assert run(["judge", url, "--model", "m"]) == 0
    out = capsys.readouterr().out
    assert "bad answers found     100% (needed 80%, 50% of each kind)" in out
    assert "right answer won      100% (needed 80%)" in out
    assert "ADMITTED (m, revision " in out


@pytest.mark.slow
def test_a_judge_that_always_says_no_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def no(body: dict[str, Any]) -> tuple[int, Any]:
        return spoken("A" if "ANSWER A" in body["messages"][1]["content"] else "no")

    with judge_endpoint(no) as url:
        assert run(["judge", url, "--model", "m", "-o", "json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["admitted"], report["found"], report["first_position"]) == (False, 0.0, 1.0)
    assert "0% of the bad plants found, needed 80%" in report["reasons"]


@pytest.mark.slow
def test_a_judge_that_says_yes_to_all_is_refused_in_one_short_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its four reasons made a line of 230 characters: the first decides, the others have their own lines."""

    def yes(body: dict[str, Any]) -> tuple[int, Any]:
        return spoken("A" if "ANSWER A" in body["messages"][1]["content"] else "yes")

    with judge_endpoint(yes) as url:
        assert run(["judge", url, "--model", "m"]) == 3
    [verdict] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("REFUSED")]
    assert verdict.count(";") == 0
    assert len(verdict) < 110


@pytest.mark.slow
def test_an_endpoint_that_does_not_judge_is_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    with judge_endpoint(lambda _body: (401, {})) as url:
        assert run(["judge", url, "--model", "m"]) == 4
    assert "gave no verdict: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_judge_that_was_away_for_a_while_is_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    asked = itertools.count()

    def at_times(body: dict[str, Any]) -> tuple[int, Any]:
        return (413, {}) if next(asked) % 6 == 0 else truthful(body)

    with judge_endpoint(at_times) as url:
        assert run(["judge", url, "--model", "m"]) == 4
    said = capsys.readouterr()
    assert "NOT JUDGED: " in said.out
    assert "gave too few verdicts to be judged: status 413" in said.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "line"),
    [
        ((401, {"error": "no such key"}), 'status 401 ({"error": "no such key"}); check --api-key-env'),
        ((404, "no model m"), "status 404 (no model m); check the address and --model"),
        (
            spoken("Well, let us see"),
            "its answer is none of the words; use a model that answers with one word, without thinking first",
        ),
    ],
)
def test_why_there_is_no_verdict_names_its_own_remedy(
    says: tuple[int, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each cause got the advice to check the address, the model and the key."""
    with judge_endpoint(lambda _body: says) as url:
        assert run(["judge", url, "--model", "m"]) == 4
    assert capsys.readouterr().err.rstrip().endswith(f"gave no verdict: {line}")


@pytest.mark.slow
def test_a_slow_judge_is_told_of_the_timeout_not_of_the_pause_after_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    released = threading.Event()

    def hang(_body: dict[str, Any]) -> tuple[int, Any]:
        released.wait(60.0)
        return spoken("yes")

    with judge_endpoint(hang) as url:
        code = run(["judge", url, "--model", "m", "--timeout", "0.1", "--at-once", "64"])
        released.set()
    assert code == 4
    assert "no answer within 0.1 s; wait longer (--timeout)" in capsys.readouterr().err


def test_an_unset_variable_is_no_advice_about_an_option_that_judge_has_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["judge", "http://127.0.0.1:9", "--model", "m", "--api-key-env", "NO_SUCH_KEY_HERE"]) == 2
    assert capsys.readouterr().err == "error: --api-key-env NO_SUCH_KEY_HERE is not set; export it\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["ftp://x"], "ftp://x"),
        (["http://127.0.0.1:9", "--at-once", "0"], "--at-once 0 is outside 1..64"),
        (["http://127.0.0.1:9", "--timeout", "nan"], "'nan' is not a duration; write 30s"),
        (["http://127.0.0.1:9", "--timeout", "1h"], "--timeout 3600 is outside 0.1..600"),
        (["http://127.0.0.1:9", "--api-key-env", "NO_SUCH_KEY_HERE"], "NO_SUCH_KEY_HERE is not set"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", *arguments, "--model", "m"]) == 2
    assert line in capsys.readouterr().err
