"""Endpoints with a model name of their own: a body that cannot be rewritten is refused before the coin."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.messages import Arm
from serving.router.exchange.exchange import Exchange
from serving.router.router import RouterCore
from serving.router.types import Refusal, Request
from serving.targets import Target
from tests.unit.serving.router.exchange.test_exchange import attempt, core, request, table

SPEECH = "/v1/audio/transcriptions"
FORM = "multipart/form-data; boundary=x"
TWO_MODELS = (
    b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nchat\r\n'
    b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\npaid\r\n--x--\r\n'
)


def endpoint_core(*, stable_has_model: bool = True) -> RouterCore:
    one = table(external=True)
    assert one.stable is not None
    assert one.canary is not None
    arms: dict[str, Arm] = {
        "stable": replace(one.stable, external=True, model="ours" if stable_has_model else None),
        "canary": replace(one.canary, model=None if stable_has_model else "ours"),
    }
    return core(replace(one, **arms))  # type: ignore[arg-type]


def form(body: bytes, content_type: str = FORM) -> Request:
    return Request("POST", Target(SPEECH), ((b"content-type", content_type.encode()),), body)


@pytest.mark.parametrize("stable_has_model", [True, False])
def test_a_body_without_a_clear_model_is_refused_whichever_arm_has_the_name(stable_has_model: bool) -> None:
    router = endpoint_core(stable_has_model=stable_has_model)

    refusal = router.begin(form(b'{"model":"paid"}'), request_id="req-1", now_s=10.1, wall_s=500.0)

    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (400, "model_not_replaced")
    assert router.report(now_s=1000.0, wall_s=1500.0).records == ()


def test_an_endpoint_gets_no_second_model_of_a_form() -> None:
    exchange = endpoint_core(stable_has_model=False).begin(
        form(TWO_MODELS), request_id="req-1", now_s=10.1, wall_s=500.0
    )

    assert isinstance(exchange, Exchange)
    sent = bytes(attempt(exchange).body)
    assert (sent.count(b"model"), sent.count(b"ours"), b"paid" in sent) == (1, 1, False)


def test_a_newer_table_with_a_model_name_refuses_what_it_cannot_rewrite() -> None:
    router = core(table(external=True, weight_bp=0))
    exchange = router.begin(form(b"text"), request_id="req-1", now_s=10.1, wall_s=500.0)
    assert isinstance(exchange, Exchange)
    newer = table(external=True, weight_bp=0, change=2)
    assert newer.stable is not None
    router.on_table(replace(newer, stable=replace(newer.stable, external=True, model="ours")), sent_s=10.2)

    refusal = exchange.next_attempt()

    assert isinstance(refusal, Refusal)
    assert (refusal.status, router.in_flight) == (400, {})


def test_own_engines_get_the_body_as_the_client_wrote_it() -> None:
    exchange = core().begin(request({"model": "a", "Model": "b"}), request_id="r", now_s=10.1, wall_s=500.0)

    assert isinstance(exchange, Exchange)
    assert attempt(exchange).body == b'{"model": "a", "Model": "b"}'
