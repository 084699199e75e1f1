"""`canaryctl smoke`: passed, refused with reasons, not judged; alone, beside stable, with a golden set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controller.cli.main import run
from tests.fakes.chat_endpoint import Model, Reply, chat_endpoint, faulty, good, leaking, without_tools


def smoked(model: Model, *arguments: str, stable: Model | None = None) -> int:
    with chat_endpoint(model) as canary:
        if stable is None:
            return run(["smoke", canary.url, *arguments])
        with chat_endpoint(stable) as other:
            return run(["smoke", canary.url, "--against", other.url, *arguments])


def test_a_good_model_passes_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoked(good, "-o", "json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {one["kind"]: one["result"] for one in report["kinds"]} == dict.fromkeys(
        ("chat", "long", "json", "tools", "stop", "safety", "stream"), "passed"
    )
    assert (report["verdict"], report["model"], report["reasons"]) == ("passed", "m", [])
    assert next(one["refusals"] for one in report["kinds"] if one["kind"] == "safety") == 4


@pytest.mark.slow
def test_what_is_not_supported_is_not_checked_and_never_passed(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoked(faulty(without_tools)) == 0
    assert "tools    NOT CHECKED 0 of 2: tools-auto: status 400; tools-named: status 400" in (
        capsys.readouterr().out
    )
    assert smoked(faulty(without_tools), "--require", "tools") == 3
    assert "tools is required and not checked (tools-auto: status 400" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], pytest.param(["--against"], marks=pytest.mark.slow)])
def test_a_fault_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert smoked(faulty(leaking), stable=good if arguments else None) == 3
    out = capsys.readouterr().out
    assert "REFUSED: chat failed (chat-1: the special token <|im_end|> as text" in out
    assert ("; stable passes)" in out) == bool(arguments)
    assert "differs" not in out  # its kind's line has it, and so has the verdict


@pytest.mark.slow
def test_what_stable_supports_and_the_canary_does_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoked(faulty(without_tools), stable=good) == 3
    assert "tools-auto: the canary refuses it (status 400), stable passes" in capsys.readouterr().out
    assert smoked(good, stable=faulty(without_tools)) == 0
    assert "differs  tools-auto: canary passed, stable not checked (status 400)" in capsys.readouterr().out


@pytest.mark.parametrize("status", [401, 503])
def test_an_endpoint_that_answers_nothing_is_not_judged(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoked(lambda _body: Reply(status=status)) == 4
    assert f"gave no answer to 19 of 19 cases: status {status}" in capsys.readouterr().err


def test_an_endpoint_without_chat_completions_is_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoked(lambda _body: Reply(status=404)) == 4
    assert "NOT JUDGED: no case could be checked of the endpoint: status 404" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stable_that_does_not_answer_gives_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert smoked(good, stable=lambda _body: Reply(status=503)) == 4
    out = capsys.readouterr().out
    assert "NOT JUDGED: stable gave no answer to 19 of 19 cases" in out
    assert "differs" not in out  # of an arm that is not known nothing does


def test_an_endpoint_that_takes_no_temperature_is_asked_without() -> None:
    def reasons(body: dict[str, Any], _reply: Reply) -> Reply | None:
        return Reply(status=400) if "temperature" in body or "max_tokens" in body else None

    assert smoked(faulty(reasons)) == 0


def test_a_key_is_sent_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMOKE_TEST_KEY", "sk-0123456789abcdef")
    with chat_endpoint(faulty(leaking)) as served:
        assert run(["smoke", served.url, "--api-key-env", "SMOKE_TEST_KEY"]) == 3
    assert set(served.keys) == {"Bearer sk-0123456789abcdef"}
    printed = capsys.readouterr()
    assert "sk-0123456789abcdef" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["ftp://x"], "ftp://x"),
        (["http://127.0.0.1:9", "--at-once", "0"], "--at-once 0 is outside 1..64"),
        (["http://127.0.0.1:9", "--timeout", "nan"], "'nan' is not a duration; write 30s"),
        (["http://127.0.0.1:9", "--timeout", "1h"], "--timeout 3600 is outside 0.1..600"),
        (["http://127.0.0.1:9", "--require", "poems"], "--require poems is no kind; one of chat, long"),
        (["http://127.0.0.1:9", "--golden", "/no/such/file"], "/no/such/file"),
        (
            ["http://127.0.0.1:9", "--api-key-env", "NO_SUCH_KEY_HERE"],
            "_HERE is not set; export it\n",
        ),
        (["http://127.0.0.1:9", "--api-key-env", "sk-123"], "and what was given is none; export one"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["smoke", *arguments]) == 2
    assert line in capsys.readouterr().err


def test_a_model_must_be_named_where_several_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with chat_endpoint(models=("a", "b")) as served:
        assert run(["smoke", served.url]) == 2
        assert "lists 2 models (a, b); give --model" in capsys.readouterr().err
        assert run(["smoke", served.url, "--model", "b"]) == 0
    assert {body["model"] for body in served.seen} == {"b"}


def test_an_address_that_nobody_listens_at_is_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["smoke", "http://127.0.0.1:9", "--model", "m"]) == 4
    assert "connection refused" in capsys.readouterr().err


# --- golden sets


def write_golden(folder: Path, count: int = 12) -> Path:
    lines = [
        {
            "messages": [{"role": "user", "content": f"Golden question {number}?"}],
            "reference": f"secret answer {number}",
            "tags": ["even" if number % 2 == 0 else "odd"],
        }
        for number in range(count)
    ]
    file = folder / "golden.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def knows(wrong: int) -> Model:
    """The good model, that gets all golden questions right but the first `wrong`."""

    def answers(body: dict[str, Any], _reply: Reply) -> Reply | None:
        prompt = str(body["messages"][-1]["content"])
        if not prompt.startswith("Golden question"):
            return None
        number = int(prompt.split()[-1].rstrip("?"))
        return Reply("It is unknown." if number < wrong else f"The secret answer {number}.")

    return faulty(answers)


@pytest.mark.slow
def test_a_canary_that_loses_golden_cases_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write_golden(tmp_path))
    assert smoked(knows(7), "--golden", file, "-o", "json", stable=knows(0)) == 3
    report = json.loads(capsys.readouterr().out)
    golden = report["golden"]
    assert (golden["right"], golden["stable_right"], golden["lost"], golden["won"]) == (5, 12, 7, 0)
    assert golden["p_value"] == pytest.approx(1 / 128)
    assert report["golden_by_tag"]["odd"]["lost"] == 3
    assert report["golden_lost_lines"] == [1, 2, 3, 4, 5, 6, 7]
    assert "golden: 5 of 12 right, stable 12; lost 7, won 0, p = 0.0078" in report["reasons"][0]


@pytest.mark.slow
def test_what_may_be_chance_is_not_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_golden(tmp_path))
    assert smoked(knows(6), "--golden", file, stable=knows(0)) == 0
    assert "golden   6 of 12 right, stable 12; lost 6, won 0, p = 0.016" in capsys.readouterr().out
    assert smoked(knows(9), "--golden", file, stable=knows(9)) == 0


@pytest.mark.slow
def test_a_set_that_can_refuse_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_golden(tmp_path, 6))
    assert smoked(knows(6), "--golden", file, stable=knows(0)) == 0
    assert "6 golden cases can refuse no canary: it takes 7 lost" in capsys.readouterr().err


@pytest.mark.slow
def test_texts_of_a_golden_set_are_printed_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write_golden(tmp_path))
    smoked(knows(7), "--golden", file, stable=knows(0))
    printed = capsys.readouterr()
    assert "It is unknown." not in printed.out + printed.err
    assert "Golden question" not in printed.out + printed.err
    smoked(knows(7), "--golden", file, "--show", stable=knows(0))
    assert "--- golden, line 3\nIt is unknown." in capsys.readouterr().err


@pytest.mark.slow
def test_golden_cases_without_answers_are_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(body: dict[str, Any], _reply: Reply) -> Reply | None:
        is_golden = str(body["messages"][-1]["content"]).startswith("Golden")
        return Reply(status=503) if is_golden else None

    assert smoked(faulty(breaks), "--golden", str(write_golden(tmp_path))) == 4
    assert "NOT JUDGED: the endpoint gave no answer to 12 of 12 golden cases" in capsys.readouterr().out


def test_broken_lines_are_named_and_nothing_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "golden.jsonl"
    file.write_text('{"messages": [], "reference": "x"}\nnothing\n')
    with chat_endpoint() as served:
        assert run(["smoke", served.url, "--golden", str(file)]) == 2
    assert served.seen == []
    err = capsys.readouterr().err
    assert f"{file} line 1: has 0 messages; give 1 to 200" in err
    assert f"{file} line 2: is no JSON object; write one object a line" in err
