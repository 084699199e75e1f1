"""The facts of a request's body, read in one pass where its fields are of their usual types."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.router.bodies.body_facts import _read_unusual, read_facts

texts = st.text(max_size=4) | st.sampled_from(["assistant", "user", "\ud800", ""])
odd = st.none() | st.booleans() | st.integers(-2, 3) | st.just(2.0) | texts | st.lists(texts, max_size=2)
parts = st.lists(st.fixed_dictionaries({}, optional={"file_id": odd, "file": odd, "source": odd}), max_size=2)
kept = st.fixed_dictionaries({}, optional={"encrypted_content": odd, "content": parts | odd, "output": parts})
turns = st.lists(st.fixed_dictionaries({"role": texts, "content": odd}) | kept | odd, max_size=4)
fields = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("model", "prompt_cache_key", "safety_identifier", "user"), texts | odd),
        "stream": st.booleans() | odd,
        "n": st.integers(-1, 3) | odd,
        "prompt": odd | st.lists(st.integers(0, 9), max_size=2),
        "messages": turns,
        "input": turns | odd,
        "system": odd,
        **dict.fromkeys(("previous_response_id", "conversation"), odd),
        "temperature": odd,
    },
)


@pytest.mark.slow
@example(body=b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"user":"u"}')
@given(body=fields.map(lambda one: json.dumps(one).encode()))
def test_the_usual_reading_says_what_the_general_one_says(body: bytes) -> None:
    assert read_facts(body) == _read_unusual(body)


@pytest.mark.slow
@given(body=st.binary(max_size=40) | st.text('{}[]":,ntruelfas1e\\', max_size=30).map(str.encode))
def test_any_bytes_are_read_alike_or_not_at_all(body: bytes) -> None:
    assert read_facts(body) == _read_unusual(body)
