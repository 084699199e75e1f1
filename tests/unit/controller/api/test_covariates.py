"""Covariates of a live rollout: what the router records before the toss, and nothing else."""

from __future__ import annotations

import pytest

from controller.api.proposal import refuse_unknown_covariates
from controller.errors import BadInput, BadSpec
from controller.evidence.records import LIVE_COVARIATES, draw_of
from controller.spec.service import dump, parse_policy
from tests.fakes.feed_maker import a_record


def policy(*names: str, gate: str = "quality") -> object:
    return {"gates": {gate: {"covariates": list(names)}}}


def test_a_policy_that_names_what_the_router_records_is_deployed() -> None:
    spec = parse_policy(policy(*LIVE_COVARIATES))
    refuse_unknown_covariates(spec)

    assert parse_policy(dump(spec)).gate_policy() == spec.gate_policy()
    assert spec.gate_policy().gate("quality").covariates == LIVE_COVARIATES


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("body_byte", "'body_byte' is not known before the toss; did you mean body_bytes?"),
        ("prompt_tokens", "'prompt_tokens' is not known before the toss; use one of body_bytes"),
    ],
)
def test_other_names_are_refused_with_the_near_one(name: str, says: str) -> None:
    with pytest.raises(BadInput) as refused:
        refuse_unknown_covariates(parse_policy(policy(name)))

    assert says in str(refused.value)


def test_a_policy_with_covariates_of_the_answer_is_no_policy() -> None:
    with pytest.raises(BadSpec, match=r"gates.quality.covariates"):
        parse_policy(policy("tokens"))
    with pytest.raises(BadSpec, match="only scores have covariates"):
        parse_policy(policy("body_bytes", gate="error"))


def test_a_draw_has_the_bytes_of_the_request_where_they_are_known() -> None:
    assert draw_of(a_record(0, body_bytes=512)).covariates == {"body_bytes": 512.0}
    assert draw_of(a_record(0, body_bytes=None)).covariates == {}
