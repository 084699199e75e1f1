"""Paths and addresses without a socket: what is normalised, what is refused, where a target is found."""

from __future__ import annotations

import pytest

from serving.targets import ELIGIBLE_PATHS, Endpoint, Target, method_of, normalised


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/v1/models", "/v1/models"),
        (b"//v1///mod%65ls//", "/v1/models"),
        (b"/v1/responses/resp_1.2~3-4", "/v1/responses/resp_1.2~3-4"),
        (b"/%5fcanaryctl/state", "/_canaryctl/state"),
        (b"/v1/files/a%3D:@+", "/v1/files/a=:@+"),
        *(
            (raw, None)
            for raw in (b"", b"v1", b"*", b"/a%2fb", b"/a%2Fb", b"/a%25b", b"/a%", b"/a%zz", b"/a%5cb")
        ),
        *((raw, None) for raw in (b"/..", b"/a/../b", b"/%2e%2E/b", b"/.", b"/a b", b"/a\\b", b"/\xe9")),
        *((raw, None) for raw in (b"/a%00", b"/a;b", b"/a%0d%0a", b"/" + b"a" * 2000)),
    ],
)
def test_a_path_is_normalised_or_refused(raw: bytes, path: str | None) -> None:
    assert normalised(raw) == path


@pytest.mark.parametrize("path", ["/metrics", "/v1/models/", "@h/x", "/v1/responses/..", "/v1/models\n"])
def test_no_target_can_be_made_of_a_path_that_is_not_listed(path: str) -> None:
    with pytest.raises(ValueError, match="not a route for users"):
        Target(path)


@pytest.mark.parametrize("query", ["a b", "a\r\nb", "a#b", "é", "\x00"])
def test_no_target_can_be_made_of_a_query_that_is_not_encoded(query: str) -> None:
    with pytest.raises(ValueError, match="percent-encoded"):
        Target("/v1/models", query)


def test_only_posts_ask_for_an_answer() -> None:
    assert {method_of(path) for path in ELIGIBLE_PATHS} == {"POST"}


@pytest.mark.parametrize(
    ("base", "chat", "rerank"),
    [
        ("http://h:1", "http://h:1/v1/chat/completions", "http://h:1/rerank"),
        ("http://h:1/", "http://h:1/v1/chat/completions", "http://h:1/rerank"),
        ("http://h:1/v1/", "http://h:1/v1/chat/completions", "http://h:1/rerank"),
        ("https://h/openai/v1", "https://h/openai/v1/chat/completions", "https://h/openai/rerank"),
        (
            "https://h/v1beta/openai",
            "https://h/v1beta/openai/chat/completions",
            "https://h/v1beta/openai/rerank",
        ),
        ("https://h/api/paas/v4", "https://h/api/paas/v4/chat/completions", "https://h/api/paas/v4/rerank"),
        ("http://[::1]:8", "http://[::1]:8/v1/chat/completions", "http://[::1]:8/rerank"),
    ],
)
def test_a_base_url_is_used_as_written(base: str, chat: str, rerank: str) -> None:
    endpoint = Endpoint.parsed(base)

    assert str(endpoint.url(Target("/v1/chat/completions"))) == chat
    assert str(endpoint.url(Target("/rerank", "a=%2F"))) == rerank + "?a=%2F"


@pytest.mark.parametrize(
    "url",
    [
        *("h", "ftp://h", "http://", "http:///x", "http://h:0", "http://h:99999", "http://h:x", "http://h?x"),
        *(
            "http://h#",
            "http://h/../x",
            "http://h/%2e%2e/x",
            "http://h\r\nx",
            "http://h /x",
            "http://é",
            "//h",
        ),
        *(
            "http://u@h",
            "http://u:p@h",
            "http://h\\@x",
            "http://h//x",
            "http://é",
            "https://h/v1/chat/completions",
        ),
    ],
)
def test_an_address_that_is_not_plain_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"give|name the key"):
        Endpoint.parsed(url)


@pytest.mark.parametrize(
    ("url", "origin", "address"),
    [
        ("http://10.0.0.1:8001/v1", "http://10.0.0.1:8001", ("10.0.0.1", 8001)),
        ("https://api.example/x/v1", "https://api.example", ("api.example", 443)),
        ("http://api.example", "http://api.example", ("api.example", 80)),
        ("http://[::1]:8001", "http://[::1]:8001", ("::1", 8001)),
        ("https://[2001:db8::1]", "https://[2001:db8::1]", ("2001:db8::1", 443)),
    ],
)
def test_an_endpoint_says_where_to_connect_to(url: str, origin: str, address: tuple[str, int]) -> None:
    endpoint = Endpoint.parsed(url)

    assert (endpoint.origin, endpoint.address) == (origin, address)


@pytest.mark.parametrize(
    ("url", "is_inside"),
    [
        *(("http://127.0.0.1:8000", True), ("http://localhost", True), ("http://judge:8000/v1", True)),
        *(("http://10.1.2.3", True), ("http://172.31.0.1", True), ("http://192.168.1.1", True)),
        *(("http://169.254.1.1", True), ("http://[::1]:1", True), ("http://[fd00::1]", True)),
        *(("https://api.example.com", False), ("http://judge.ns.svc", False), ("http://8.8.8.8", False)),
        *(("http://172.32.0.1", False), ("http://[2001:db8::1]", False), ("http://0.0.0.0", False)),
        # What the resolver takes for a number is an address: 8.8.8.8, here.
        *(("http://134744072", False), ("http://0x08080808", False), ("http://[::ffff:8.8.8.8]", False)),
    ],
)
def test_an_endpoint_is_inside_where_no_public_address_can_be(url: str, is_inside: bool) -> None:
    assert Endpoint.parsed(url).is_inside is is_inside
