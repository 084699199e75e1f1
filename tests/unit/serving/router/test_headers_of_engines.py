"""Headers that vLLM and its server obey: which a client may send to an engine, and what comes back."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from serving.clock import boot_s
from serving.router.headers import forwarded, returned
from tests.fakes.router_rig import CHAT, Rig, router_rig

# Each that vLLM 0.32 reads of a request, with what a client may do by it.
PASSED = frozenset({"content-type", "x-session-id", "traceparent", "tracestate"})
KEPT_BACK = frozenset(
    {
        "authorization",  # the client's own key
        "x-request-id",  # of which engines make the ids of answers
        "x-vllm-priority",  # to go before everybody
        "x-data-parallel-rank",  # to send all to one rank
        "endpoint-load-metrics-format",  # to be told how full the engine is
    }
)
OF_ITS_SERVER = frozenset({"x-forwarded-for", "x-forwarded-proto", "forwarded"})  # uvicorn believes them
OF_RAY_SERVE = frozenset(
    {"x-request-timeout-seconds", "x-request-disconnect-disabled", "serve_multiplexed_model_id"}
)
_READ = re.compile(r"""\bheaders(?:\.get\(|\[)\s*([A-Z_]{4,}|"[^"]+"|'[^']+')""")
_NAMED = re.compile(r"""^([A-Z_]+_HEADER(?:_LABEL)?|[A-Z_]*HEADERS?)\b[^=\n]*=\s*(.+)$""", re.MULTILINE)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


@pytest.mark.parametrize("name", sorted(PASSED))
def test_an_engine_is_sent_the_headers_that_are_about_this_request_alone(name: str) -> None:
    assert forwarded([(name.encode(), b"1")], is_external=False) == [(name.encode(), b"1")]


@pytest.mark.parametrize("name", sorted(KEPT_BACK | OF_ITS_SERVER | OF_RAY_SERVE | {"x-unknown-to-us"}))
@pytest.mark.parametrize("is_external", [True, False])
def test_no_engine_is_sent_a_header_by_which_a_client_harms_others(name: str, is_external: bool) -> None:
    assert forwarded([(name.encode(), b"1")], is_external=is_external) == []


@pytest.mark.slow
def test_each_header_that_vllm_reads_of_a_request_is_decided_upon() -> None:
    """A newer vLLM that reads another one is seen here, before its name is in a list."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    texts = [one.read_text() for one in Path(spec.submodule_search_locations[0], "entrypoints").rglob("*.py")]
    names = {name: value for text in texts for name, value in _NAMED.findall(text)}
    read = {names.get(one, one).strip("\"'").lower() for text in texts for one in _READ.findall(text)}

    assert {"x-vllm-priority", "x-data-parallel-rank", "x-session-id"} <= read
    assert read <= PASSED | KEPT_BACK


async def test_no_client_goes_before_others_by_a_header(rig: Rig) -> None:
    answer = await rig.client.post(CHAT, json={"messages": []}, headers={"x-vllm-priority": "-1000"})
    seen = [one for engine in (rig.stable, rig.canary) for one in engine.seen]

    assert answer.status_code == 200
    assert [one.headers.get("x-vllm-priority") for one in seen] == [None]


async def test_no_answer_says_how_full_its_engine_is(rig: Rig) -> None:
    async def behave(request: web.Request) -> web.StreamResponse:
        answer = await rig.stable.well(request)
        answer.headers["endpoint-load-metrics"] = "TEXT named_metrics.kv_cache_usage_perc=0.4"
        return answer

    rig.stable.behave = behave
    assert rig.core.table is not None
    rig.core.on_table(replace(rig.core.table, canary=None, change=9), sent_s=boot_s())

    answer = await rig.client.post(CHAT, json={"messages": []})

    assert (answer.status_code, answer.headers.get("endpoint-load-metrics")) == (200, None)
    assert returned([(b"endpoint-load-metrics", b"x")], request_id=None) == []
