"""All that is wrong with a file or a command in one answer, one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import read_evidence
from controller.cli.main import run
from controller.errors import BadInput, document_of


def refusals(path: Path, **options: object) -> tuple[str, ...]:
    with pytest.raises(BadInput) as caught:
        read_evidence(path, options=ReadOptions(**options))  # type: ignore[arg-type]
    return caught.value.details


def written(folder: Path, *lines: str) -> Path:
    path = folder / "e.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_every_column_that_is_not_understood_is_named_at_once(tmp_path: Path) -> None:
    """A table of pandas took four runs until it was read: the time, the user, the tokens, one by one."""
    path = written(
        tmp_path,
        "timestamp,variant,user_id,completion_tokens,latency_s",
        "2026-05-01T13:20:00Z,control,u1,43,0.6",
        "2026-05-01T13:20:01Z,canary,u2,50,0.7",
    )

    assert refusals(path, w=0.1) == (
        "e.csv lacks t_s, arm; give --map t_s=timestamp, --map arm=variant (it has timestamp, variant, "
        "user_id, completion_tokens, latency_s; what each column holds: canaryctl backtest --columns)",
        "e.csv: column 'user_id' is unknown and close to unit; give --map unit=user_id if all requests of "
        "one user_id were sent to one arm, or --ignore user_id if each request was drawn by itself",
        "e.csv: column 'completion_tokens' is unknown and close to tokens; give --map "
        "tokens=completion_tokens, or --ignore completion_tokens",
        "e.csv: column 'latency_s' is unknown and close to latency_ms; give --map latency_ms=latency_s "
        "(latency_s:s if it is in seconds), or --ignore latency_s",
    )


def test_every_column_with_a_bad_cell_is_named_with_its_first_line(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "t_s,arm,w,error,latency_ms,quality",
        "1,0,0.1,no,812.5,0.5",
        "soon,2,0.1,maybe,fast,good",
        "later,3,0.1,perhaps,slow,bad",
    )

    lines = refusals(path)

    assert [line.partition(": ")[0] for line in lines] == ["e.csv line 3"] * 5
    for line, part in zip(
        lines,
        ("arm 2 is neither", "t_s 'soon'", "error 'maybe'", "latency_ms 'fast'", "quality 'good'"),
        strict=True,
    ):
        assert part in line


def test_a_missing_column_hides_no_bad_cell(tmp_path: Path) -> None:
    path = written(tmp_path, "t_s,arm,latency_ms", "1,0,812.5", "2,1,fast")

    first, second = refusals(path)

    assert first.startswith("e.csv lacks w; give --w 5%")
    assert second.startswith("e.csv line 3: latency_ms 'fast'")


def test_every_map_that_names_no_column_is_refused_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "t_s,arm,w,took", "1,0,0.1,812.5", "2,1,0.1,900")

    assert refusals(path, maps=("latency_ms=tok", "qualty=took", "cost")) == (
        "--map latency_ms=tok: e.csv has no column 'tok'; did you mean took?",
        "--map qualty=took: 'qualty' is not a column of a backtest; did you mean quality=took?",
        "--map 'cost' is not NAME=COLUMN; write --map latency_ms=duration",
    )


def test_a_column_close_to_w_is_refused_beside_the_option(tmp_path: Path) -> None:
    path = written(tmp_path, "t_s,arm,weight", "1,0,0.1", "2,1,0.1")

    assert refusals(path, w=0.1)[0].startswith("e.csv: column 'weight' is unknown and close to w")


def test_the_command_line_prints_each_on_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "t_s,arm,latency_ms", "1,0,812.5", "2,1,fast")

    assert run(["backtest", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: e.csv") for line in lines] == [True, True]


def test_an_error_with_several_lines_is_one_problem_document() -> None:
    assert document_of(BadInput(["one", "two"]))["lines"] == ["one", "two"]
    assert document_of(BadInput("one"))["detail"] == "one"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("upstream_status", ("200", "502")),
        ("state", ("success", "failed")),
        ("finish_reason", ("stop", "length")),
        ("is_ok", ("yes", "no")),
    ],
)
def test_an_outcome_is_never_proposed_as_the_arm(
    tmp_path: Path, column: str, values: tuple[str, str]
) -> None:
    """Evidence by outcome is void: all failures would be the canary's."""
    path = written(
        tmp_path,
        f"t_s,model,{column}",
        f"1,llama-v1,{values[0]}",
        f"2,llama-v2,{values[1]}",
    )

    [line, *_] = refusals(path, w=0.1, ignore=frozenset({column}))

    assert "--map arm=model --canary VALUE (the new version: llama-v1 or llama-v2)" in line
    assert f"arm={column}" not in line
