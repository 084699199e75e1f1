"""Whatever a golden file or an answer holds, it is read or refused by name, and checked without an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.judging.paired import lost_p_value
from serving.judging.golden import BadGolden, golden_set
from serving.judging.golden_checks import SHORT_REFERENCE, check_of, normalised, reference_check

texts = st.text(max_size=40) | st.text(alphabet="0123456789.,-+eE ", max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
checkers = st.dictionaries(
    st.sampled_from(["contains", "regex", "equals", "json_schema", "number"]), values, max_size=2
)
lines = st.fixed_dictionaries(
    {"messages": st.just([{"role": "user", "content": "q"}]) | values},
    optional={"reference": values, "checker": checkers, "tags": values, "max_tokens": values},
)


files = st.binary(max_size=200) | st.lists(lines, max_size=3).map(
    lambda some: "\n".join(map(json.dumps, some)).encode()
)


@pytest.mark.slow
@settings(max_examples=25)
@given(files)
def test_a_file_is_read_whole_or_refused_by_line(data: bytes) -> None:
    try:
        read = golden_set(data, name="g")
    except BadGolden as exc:
        refused = exc.lines
    else:
        refused = ()
        assert len(read.cases) == sum(bool(line.strip()) for line in data.split(b"\n"))
    assert all(line.startswith("g ") for line in refused)


@pytest.mark.slow
@settings(max_examples=40)
@given(checkers, texts)
def test_a_checker_says_yes_or_no_of_every_answer(checker: Any, answer: str) -> None:
    try:
        check = check_of(checker)
    except ValueError:
        return
    assert check(answer) in (True, False)


@settings(max_examples=25)
@given(texts, texts, texts)
def test_a_reference_is_in_an_answer_that_holds_it_between_other_words(
    before: str, text: str, after: str
) -> None:
    if len(normalised(text)) <= SHORT_REFERENCE or len(normalised(text).split()) > 12:
        return
    assert reference_check(text)(f"{before} \n {text} \n {after}")


@settings(max_examples=25)
@given(texts)
def test_normal_words_are_normal(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@settings(max_examples=20)
@given(st.integers(0, 300), st.integers(0, 300))
def test_the_sign_test_rises_with_each_lost_pair(lost: int, won: int) -> None:
    p_value, ulps = lost_p_value(lost, won), 1e-12
    assert lost_p_value(lost + 1, won) <= p_value + ulps <= 1.0 + ulps
    assert lost_p_value(lost, won + 1) >= p_value - ulps
