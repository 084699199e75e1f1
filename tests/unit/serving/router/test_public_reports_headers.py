"""Reports from other projects' trackers about headers to and from endpoints (tests/public_reports.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiohttp import web

from serving.clock import boot_s
from serving.credentials import KeyReference
from serving.messages import Arm, Replica
from serving.router.headers import forwarded, returned
from serving.router.upstreams.key_answers import KEY_S, KeyAnswers
from tests.fakes.router_rig import CHAT, Behaviour, Rig, router_rig

KEY = KeyReference("env", "VENDOR_KEY")


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("VENDOR_KEY", "sk-our-paid-key-0123")
    async with router_rig() as one:
        yield one


def publish(rig: Rig, *, canary: bool, key: KeyReference | None = KEY) -> None:
    """Both versions are external endpoints; every request is drawn for the canary, if there is one."""
    rig.publish(change=2, canary=canary, weight_bp=10_000 if canary else 0)
    assert rig.core.table is not None
    stable = Arm("v-1", (Replica(rig.stable.url),), external=True, api_key=key)
    arm = Arm("v-2", (Replica(rig.canary.url),), external=True, api_key=key) if canary else None
    rig.core.on_table(replace(rig.core.table, change=3, stable=stable, canary=arm), sent_s=boot_s())


# ---- to an endpoint

FROM_BROWSERS = (
    "origin referer sec-fetch-site sec-ch-ua accept-language dnt priority x-csrf-token x-requested-with"
)
FROM_PROXIES = (
    "forwarded via x-forwarded-for x-forwarded-proto x-forwarded-host x-real-ip true-client-ip x-client-ip "
    "cf-connecting-ip cf-ray cdn-loop x-amzn-trace-id x-envoy-external-address traceparent tracestate baggage"
)
OF_USERS = (
    "x-forwarded-access-token x-forwarded-email x-forwarded-user x-auth-request-email x-amzn-oidc-data "
    "cf-access-jwt-assertion x-ms-client-principal openai-organization openai-project x-goog-user-project "
    "openai-ephemeral-user-id chatgpt-account-id x-client-request-id x-portkey-api-key helicone-auth"
)
OF_THE_API = (
    "accept content-type content-encoding user-agent range idempotency-key openai-beta anthropic-version "
    "anthropic-beta x-anthropic-beta x-stainless-lang x-stainless-retry-count cache-control "
    "x-amzn-bedrock-guardrailidentifier x-amzn-bedrock-guardrailversion"
)


def headers(names: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), b"v") for name in names.split()]


@pytest.mark.parametrize("names", [FROM_BROWSERS, FROM_PROXIES, OF_USERS])
def test_an_endpoint_is_sent_what_says_how_a_request_is_answered_and_nothing_else(names: str) -> None:
    sent = forwarded([*headers(names), *headers(OF_THE_API)], is_external=True)

    assert sent == headers(OF_THE_API)


@pytest.mark.parametrize("names", [FROM_BROWSERS, FROM_PROXIES, OF_USERS])
def test_an_engine_of_ours_is_sent_also_what_page_and_trace_a_request_is_of(names: str) -> None:
    sent = forwarded([*headers(names), *headers(OF_THE_API)], is_external=False)

    more = {b"origin", b"accept-language", b"traceparent", b"tracestate"}
    assert sent == [*(one for one in headers(names) if one[0] in more), *headers(OF_THE_API)]


def refuses(rig: Rig, arm: str, name: str, status: int) -> Behaviour:
    """An endpoint that answers, but not to requests with this header."""
    engine = rig.canary if arm == "canary" else rig.stable

    async def behave(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status) if name in request.headers else await engine.well(request)

    return behave


@pytest.mark.parametrize("arm", ["stable", "canary"])
@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("origin", "https://app.example", 403),
        ("origin", "https://app.example", 401),
        ("cf-connecting-ip", "203.0.113.9", 403),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", 403),
    ],
    ids=["ollama", "anthropic", "cloudflare", "bedrock"],
)
async def test_an_endpoint_that_refuses_what_browsers_and_proxies_add_answers(
    rig: Rig, name: str, value: str, status: int, key: KeyReference | None, arm: str
) -> None:
    publish(rig, canary=arm == "canary", key=key)
    engine = rig.canary if arm == "canary" else rig.stable
    engine.behave = refuses(rig, arm, name, status)

    answer = await rig.client.post(CHAT, json={"messages": []}, headers={name: value})

    assert (answer.status_code, answer.headers["x-canaryctl-arm"]) == (200, arm)
    record = await rig.record()
    assert (record.error, record.rejected, record.cause) == (False, False, None)


# ---- pages of another origin

PAGE = {"origin": "https://app.example"}


@pytest.mark.parametrize("arm", ["stable", "canary"])
async def test_a_page_that_stable_allowed_can_read_the_answer_of_an_endpoint(rig: Rig, arm: str) -> None:
    publish(rig, canary=arm == "canary")

    asked = await rig.client.post(CHAT, json={"messages": []}, headers=PAGE)
    unasked = await rig.client.post(
        CHAT, content=b'{"messages": []}', headers={**PAGE, "content-type": "text/plain"}
    )
    plain = await rig.client.post(CHAT, json={"messages": []})

    found = [one.headers.get_list("access-control-allow-origin") for one in (asked, unasked, plain)]
    assert found == [["*"], [], []]


async def test_what_an_endpoint_says_to_pages_stays(rig: Rig) -> None:
    async def says(request: web.Request) -> web.StreamResponse:
        answer = await rig.stable.well(request)
        answer.headers["access-control-allow-origin"] = "https://b.example"
        return answer

    publish(rig, canary=False)
    rig.stable.behave = says

    answer = await rig.client.post(CHAT, json={"messages": []}, headers=PAGE)

    assert answer.headers.get_list("access-control-allow-origin") == ["https://b.example"]


# ---- a refusal that is not of the key


def moderates(rig: Rig, arm: str, status: int) -> None:
    """One that answers all but the user agent `odd`, as a firewall or a moderation does."""
    engine = rig.canary if arm == "canary" else rig.stable

    async def behave(request: web.Request) -> web.StreamResponse:
        if request.headers["user-agent"] == "odd":
            return web.json_response({"error": {"message": "flagged"}}, status=status)
        return await engine.well(request)

    engine.behave = behave


@pytest.mark.parametrize("arm", ["stable", "canary"])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_one_request_is_not_one_of_the_key_on_either_version(
    rig: Rig, status: int, arm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of stable it was 502 `endpoint_key_refused`. It is an error by its status alone, so that an arm with
    more requests, which knows sooner that its key is taken, is not judged by another rule."""
    publish(rig, canary=arm == "canary")
    moderates(rig, arm, status)

    await rig.ask()
    odd = await rig.client.post(CHAT, json={"messages": []}, headers={"user-agent": "odd"})

    expected = (status, "stable") if arm == "stable" else (200, "stable")
    assert (odd.status_code, odd.headers["x-canaryctl-arm"]) == expected
    records = rig.records()
    assert [(one.error, one.rejected, one.cause) for one in records] == [
        (False, False, None),
        (True, False, f"status {status}"),
    ]
    assert "refuses our API key" not in caplog.text


@pytest.mark.parametrize(
    ("taken_s", "status", "is_refused"),
    [
        (100.0, 403, False),
        (100.0 + KEY_S, 401, False),
        (99.0 - KEY_S, 401, True),  # withdrawn since
        (None, 403, True),
        (100.0, 500, False),
        (None, 200, False),
    ],
)
def test_a_key_that_was_taken_just_before_is_not_refused(
    taken_s: float | None, status: int, is_refused: bool
) -> None:
    keys = KeyAnswers()
    if taken_s is not None:
        keys.is_refused("place", 200, sent_s=taken_s)
    keys.is_refused("another", 200, sent_s=100.0)

    assert keys.is_refused("place", status, sent_s=100.0) is is_refused


def test_few_places_are_remembered_and_the_last_stay() -> None:
    keys = KeyAnswers()
    for place in [*range(300), 0, *range(300, 500)]:
        keys.is_refused(place, 200, sent_s=1.0)

    assert [keys.is_refused(one, 403, sent_s=1.0) for one in (1, 0, 499)] == [True, False, False]


# ---- from an endpoint

OF_THE_ACCOUNT = (
    "openai-organization openai-project anthropic-organization-id x-ms-region azureml-model-session cf-ray "
    "cf-cache-status via www-authenticate x-litellm-key-spend x-litellm-model-api-base"
)
OF_ITS_ORIGIN = (
    "nel report-to reporting-endpoints content-security-policy clear-site-data set-cookie alt-svc server"
)
FOR_CLIENTS = (
    "content-type retry-after openai-processing-ms openai-model request-id apim-request-id x-request-id "
    "x-ratelimit-remaining-requests anthropic-ratelimit-tokens-reset x-should-retry server-timing "
    "access-control-allow-origin x-extra"
)


def test_an_endpoints_answer_tells_users_nothing_of_the_operators_account() -> None:
    answered = [*headers(OF_THE_ACCOUNT), *headers(OF_ITS_ORIGIN), *headers(FOR_CLIENTS)]

    assert returned(answered, request_id=None, is_external=True) == headers(FOR_CLIENTS)


async def test_no_users_answer_names_the_operators_organization(rig: Rig) -> None:
    async def says(request: web.Request) -> web.StreamResponse:
        answer = await rig.canary.well(request)
        answer.headers.update({"openai-organization": "acme", "x-ratelimit-remaining-requests": "3"})
        return answer

    publish(rig, canary=True)
    rig.canary.behave = says

    answer = await rig.ask()

    assert "openai-organization" not in answer.headers
    assert answer.headers["x-ratelimit-remaining-requests"] == "3"
