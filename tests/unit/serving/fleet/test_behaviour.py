"""A replica that answers otherwise than its version did at its first load is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from serving.fleet import behaviour
from serving.fleet.behaviour import (
    CONFIRMED_S,
    DAMAGED,
    KEPT,
    LIMIT,
    Behaviour,
    References,
    distance,
    of_logits,
)
from serving.fleet.types import Launch

LAUNCH = Launch("chat", "v-1", "s", model_dir="/m", engine_args={"dtype": "bfloat16"})


def answers(*shares: dict[int, float]) -> tuple[dict[int, float], ...]:
    return tuple({token: math.log(share) for token, share in one.items()} for one in shares)


def found(share: float = 0.5, *, noise: float = 0.0, device: str = "gpu") -> Behaviour:
    """Of one prompt, after which token 1 has this probability and token 2 the rest."""
    return Behaviour(answers({1: share, 2: 1.0 - share}), noise, device)


def refused(references: References, one: Behaviour, launch: Launch = LAUNCH, now_s: float = 0.0) -> bool:
    return references.why_refused(launch, one, now_s=now_s) is not None


def test_the_difference_is_the_probability_that_lies_elsewhere() -> None:
    first = answers({1: 0.6, 2: 0.3, 3: 0.1})

    assert distance(first, answers({1: 0.6, 2: 0.3, 3: 0.1})) == 0.0
    assert distance(first, answers({1: 0.3, 2: 0.6, 3: 0.1})) == pytest.approx(0.3)
    assert distance(answers({1: 1.0}), answers({2: 1.0})) == 0.0  # each may be as likely as the one listed
    assert distance(first * 2, first) == 1.0  # of other prompts
    assert distance(first, ({},)) == 1.0


def test_a_token_that_one_side_does_not_list_counts_as_the_last_one_it_lists() -> None:
    wide, narrow = answers({1: 0.5, 2: 0.2, 3: 0.2}), answers({1: 0.5, 2: 0.2})

    assert distance(wide, narrow) == 0.0  # the third may have 0.2 there too
    assert distance(narrow, answers({1: 0.5, 2: 0.1, 3: 0.1})) == pytest.approx(0.05)


def test_the_first_replica_is_the_reference_and_a_later_one_that_differs_is_refused_in_one_line() -> None:
    references = References()
    assert not refused(references, found(0.5))

    assert not refused(references, found(0.5 + LIMIT - 0.001))
    text = references.why_refused(LAUNCH, found(0.8), now_s=0.0)
    assert text is not None
    assert text.startswith(
        "it does not answer as version v-1 did at its first load: 30 % of the next token's"
    )
    assert "restore them, or deploy them as a new version" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "changes", [{"version": "v-2"}, {"model_dir": "/n"}, {"engine_args": {}}, {"tensor_parallel": 2}]
)
def test_another_version_or_another_setting_has_a_reference_of_its_own(changes: dict[str, object]) -> None:
    references = References()
    refused(references, found(0.5))

    assert not refused(references, found(0.9), replace(LAUNCH, **changes))  # type: ignore[arg-type]
    assert refused(references, found(0.9))


def test_another_device_has_a_reference_of_its_own_and_more_replicas_have_not() -> None:
    references = References()
    refused(references, found(0.5))

    assert not refused(references, found(0.9, device="another"))
    assert refused(references, found(0.9), replace(LAUNCH, replicas=5, memory_bytes=7, secret="t"))


def test_an_engine_that_differs_from_itself_may_differ_more_from_others() -> None:
    references = References()
    refused(references, found(0.5, noise=0.03))

    assert not refused(references, found(0.7))
    assert refused(references, found(0.8))


def test_what_is_no_number_is_refused_at_the_first_load_too_and_is_no_reference() -> None:
    references, damaged = References(), Behaviour(({1: math.nan},), 0.0, "gpu")

    assert references.why_refused(LAUNCH, damaged, now_s=0.0) == DAMAGED
    assert references.why_refused(LAUNCH, Behaviour(({},), 0.0, "gpu"), now_s=0.0) == DAMAGED
    assert not refused(references, found(0.1))


def test_references_survive_a_restart_of_the_fleet() -> None:
    references = References()
    refused(references, found(0.5, noise=0.01))
    again = References(references.to_store(), now_s=50.0)

    assert again.to_store() == references.to_store()
    assert refused(again, found(0.9))
    assert not refused(again, found(0.55))


def test_the_reference_of_a_version_that_served_for_long_outlives_its_unloading() -> None:
    references = References()
    refused(references, found(0.5), now_s=100.0)
    references.on_gone(LAUNCH, now_s=100.0 + CONFIRMED_S)

    assert refused(references, found(0.9))


def test_that_of_a_version_that_was_unloaded_soon_goes_with_it() -> None:
    references, other = References(), replace(LAUNCH, version="v-2")
    refused(references, found(0.5), now_s=100.0)
    refused(references, found(0.5), other, now_s=100.0)
    references.on_gone(LAUNCH, now_s=99.0 + CONFIRMED_S)

    assert not refused(references, found(0.9))
    assert refused(references, found(0.9), other)


def test_the_newest_references_are_kept() -> None:
    references = References()
    for number in range(KEPT + 1):
        refused(references, found(0.5), replace(LAUNCH, version=f"v-{number}"))

    assert not refused(references, found(0.9), replace(LAUNCH, version="v-0"))
    assert refused(references, found(0.9), replace(LAUNCH, version=f"v-{KEPT}"))
    assert len(behaviour.PROMPTS) == 8


def test_logits_are_compared_as_the_probabilities_among_the_listed_tokens() -> None:
    """Two sound replicas with `logprobs_mode: raw_logits` were 720,197,728,844 % apart by one rounding."""
    logits = {token: 16.0 + token / 2 for token in range(20)}
    rounded = {token: value + (0.125 if token % 4 == 0 else 0.0) for token, value in logits.items()}
    first, second = (of_logits(logits),), (of_logits(rounded),)

    assert math.fsum(map(math.exp, first[0].values())) == pytest.approx(1.0)
    assert distance(first, second) < LIMIT / 2
    assert distance(first, (of_logits({token: 25.5 - token / 2 for token in range(20)}),)) > 0.9
    assert of_logits({1: 900.0, 2: 900.0}) == pytest.approx({1: math.log(0.5), 2: math.log(0.5)})


def test_logits_that_are_no_numbers_are_damaged_and_none_is_none() -> None:
    assert Behaviour((of_logits({1: math.nan, 2: 3.0}),), 0.0, "gpu").is_damaged
    assert of_logits({}) == {}


def test_a_stored_reference_of_logits_is_read_as_probabilities() -> None:
    stored = Behaviour(({1: 20.0, 2: 20.0},), 0.0, "gpu").to_json()
    assert distance(Behaviour.from_json(stored).answers, found(0.5).answers) == pytest.approx(0.0)
