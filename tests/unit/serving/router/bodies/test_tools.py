"""Which tools the server of a request runs itself, so that a copy would run them twice."""

from __future__ import annotations

import json

import pytest

from serving.router.bodies.body_facts import read_facts

FUNCTION = {"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}}
SERVED = {
    "mcp": {"tools": [FUNCTION, {"type": "mcp", "server_url": "https://mail", "require_approval": "never"}]},
    "web search": {"tools": [{"type": "web_search"}]},
    "of messages": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    "mcp of messages": {"mcp_servers": [{"type": "url", "url": "https://mail"}]},
    "of a stored prompt": {"prompt": {"id": "pmpt_1"}},
    "a list of anything": {"tools": [{"type": "mcp"}, "x"]},
    "no objects": {"tools": ["mcp"]},
}
OF_CLIENTS = {
    "none": {},
    "null": {"tools": None, "mcp_servers": None},
    "functions": {"tools": [FUNCTION, {"type": "custom", "name": "b"}]},
    "of messages": {"tools": [{"name": "a", "input_schema": {"type": "object"}}]},
    "no list": {"tools": {"type": "mcp"}},
}


@pytest.mark.parametrize("body", SERVED.values(), ids=SERVED)
def test_tools_that_a_server_runs_are_seen(body: object) -> None:
    facts = read_facts(json.dumps(body).encode())

    assert facts is not None
    assert facts.runs_tools


@pytest.mark.parametrize("body", OF_CLIENTS.values(), ids=OF_CLIENTS)
def test_tools_of_the_client_are_none_of_them(body: object) -> None:
    facts = read_facts(json.dumps(body).encode())

    assert facts is not None
    assert not facts.runs_tools
