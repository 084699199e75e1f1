"""Properties of affinity tokens: whatever is read was signed by us, and what was signed is read."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.router.assignment.affinity import TOKEN_LENGTH, Pin, cookie_of, read_token, signed

KEY, GENERATION = b"k" * 32, b"g" * 8
seconds = st.integers(0, 2**32 - 1)
pins = st.builds(
    Pin,
    unit=st.binary(min_size=16, max_size=16).map(bytes.hex),
    arm=st.integers(0, 1),
    w_bp=st.integers(0, 10_000),
    bucket=st.integers(0, 9_999),
    drawn_s=seconds,
    seen_s=seconds,
)
A_TOKEN = signed(Pin("ab" * 16, 1, 500, 12, 1000, 2000), key=KEY, generation=GENERATION).decode()


@pytest.mark.slow
@given(pin=pins)
def test_what_was_signed_is_read(pin: Pin) -> None:
    token = signed(pin, key=KEY, generation=GENERATION)

    assert len(token) == TOKEN_LENGTH
    assert read_token(token.decode(), key=KEY, generation=GENERATION) == pin


@pytest.mark.slow
@given(text=st.text(max_size=80) | st.binary(max_size=80).map(lambda data: data.decode("latin-1")))
@example(text="")
@example(text="=" * TOKEN_LENGTH)
@example(text="A" * TOKEN_LENGTH)
@example(text=A_TOKEN[:-1] + "\n")
@example(text=A_TOKEN[:-4] + "A===")
@example(text=A_TOKEN.replace("-", "+").replace("_", "/") + "=")
@example(text="\ud800" * TOKEN_LENGTH)
@example(text="é" * TOKEN_LENGTH)
def test_any_text_is_read_as_none_and_never_an_error(text: str) -> None:
    assert read_token(text, key=KEY, generation=GENERATION) is None


@pytest.mark.slow
@given(at=st.integers(0, TOKEN_LENGTH - 1), other=st.characters(max_codepoint=255))
def test_a_changed_character_makes_it_none(at: int, other: str) -> None:
    changed = A_TOKEN[:at] + other + A_TOKEN[at + 1 :]
    read = read_token(changed, key=KEY, generation=GENERATION)

    assert (read is not None) == (changed == A_TOKEN)


@pytest.mark.slow
@given(key=st.binary(max_size=40), generation=st.binary(min_size=8, max_size=8))
def test_another_key_or_generation_makes_it_none(key: bytes, generation: bytes) -> None:
    read = read_token(A_TOKEN, key=key, generation=generation)

    assert (read is not None) == ((key, generation) == (KEY, GENERATION))


@pytest.mark.slow
@given(pin=pins, now_s=st.floats(0, 2**33))
def test_a_token_never_holds_longer_than_two_hours(pin: Pin, now_s: float) -> None:
    assert not pin.holds_at(now_s) or now_s - pin.drawn_s <= 7200


@pytest.mark.slow
@given(header=st.text(max_size=60))
def test_any_cookie_header_is_read(header: str) -> None:
    found = cookie_of(header, "chat")

    assert found is None or found in header
