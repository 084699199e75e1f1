"""Properties of assignment: monotone in the weight, deterministic in the key."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.router.assignment.assignment import bucket_of, find_key
from serving.router.bodies.body_facts import read_facts

weights = st.lists(st.integers(0, 10_000), min_size=2, max_size=6).map(sorted)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(
    st.sampled_from(["messages", "input", "user", "prompt_cache_key", "model"]) | st.text(max_size=5),
    json_values,
    max_size=5,
)


@pytest.mark.slow
@given(salt=st.text(), key=st.text(), ladder=weights)
def test_rising_weights_never_move_a_key_back_to_stable(salt: str, key: str, ladder: list[int]) -> None:
    arms = [bucket_of(salt, key) < weight_bp for weight_bp in ladder]

    assert arms == sorted(arms)


@pytest.mark.slow
@given(body=bodies, session=st.text(max_size=4))
def test_any_body_has_one_deterministic_key(body: dict[str, object], session: str) -> None:
    facts = read_facts(json.dumps(body).encode())
    assert facts is not None
    key = find_key(session, facts, request_id="req")

    assert key == find_key(session, facts, request_id="req")
    assert key.text


@pytest.mark.slow
@given(data=st.binary(max_size=60) | bodies.map(lambda body: json.dumps(body).encode()[:-3]))
def test_bytes_of_any_kind_are_read_or_refused(data: bytes) -> None:
    facts = read_facts(data)

    assert facts is None or facts.choices is None or facts.choices >= 1
