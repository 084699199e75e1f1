"""What routers rely on in an engine behind our front: one suite for the fake and for real vLLM."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from benchmarks.soak import engine, on_fakes
from serving.credentials import DataSecret
from tests.ray_rig import SECRET

SECRET_TEXT = DataSecret.of(SECRET).text
PROMPT = "What is the capital of Zürich, 日本 and 🇫🇷?"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}]}
CHAT_PATH, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True, slots=True)
class Client:
    url: str

    def post(self, path: str, *, secret: str = SECRET_TEXT, **body: Any) -> httpx.Response:
        headers = {"x-canaryctl-secret": secret}
        asked = {"model": "chat", "temperature": 0, **body}
        return httpx.post(self.url + path, json=asked, headers=headers, timeout=120)

    def events(self, path: str, **body: Any) -> tuple[list[int], list[dict[str, Any]], str]:
        """The ids that comments name, the events, and the whole text of the answer."""
        answer = self.post(path, stream=True, **body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.text.split("\n")
        ids = [int(one) for line in lines if line.startswith(": ids ") for one in line[6:].split(",")]
        return ids, [json.loads(line[6:]) for line in lines if line.startswith("data: {")], answer.text


@pytest.fixture(scope="module", params=["fake", pytest.param("vllm", marks=pytest.mark.integration)])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    if request.param == "vllm":
        yield Client(request.getfixturevalue("two_versions").stable_url)
        return
    process, port = on_fakes.start("benchmarks.soak.engine", engine.Settings("stable", SECRET_TEXT))
    with contextlib.closing(process.stdout):  # type: ignore[type-var]
        yield Client(f"http://127.0.0.1:{port}")
        on_fakes.stop(process)


@pytest.mark.slow
def test_a_stream_begins_with_its_role_and_ends_with_one_finish_the_usage_and_done(client: Client) -> None:
    ids, events, text = client.events(
        CHAT_PATH, **CHAT, max_tokens=12, stream_options={"include_usage": True}
    )
    choices = [one["choices"][0] for one in events if one["choices"]]

    assert len({(one["id"], one["object"], one["created"], one["model"]) for one in events}) == 1
    assert ["role" in one["delta"] for one in choices] == [True, *[False] * (len(choices) - 1)]
    assert [bool(one["finish_reason"]) for one in choices] == [*[False] * (len(choices) - 1), True]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == len(ids)
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_the_ids_of_a_stream_continue_it_from_any_of_its_events(client: Client) -> None:
    prompt = client.post("/tokenize", prompt=PROMPT).json()["tokens"]
    answer = client.post(COMPLETIONS, prompt=PROMPT, max_tokens=12, stream=True)
    blocks = [one for one in answer.text.split("\n\n") if "data: {" in one]
    ids: list[int] = []
    shown = ""
    rest = []
    for block in blocks:
        for line in block.split("\n"):
            if line.startswith(": ids "):
                ids += [int(one) for one in line[6:].split(",")]
            elif line.startswith("data: {"):
                shown += json.loads(line[6:])["choices"][0]["text"]
        rest.append((list(ids), shown))
    for sent, so_far in rest[:-1:3]:
        _, events, _ = client.events(COMPLETIONS, prompt=[*prompt, *sent], max_tokens=12 - len(sent))

        assert so_far + "".join(one["choices"][0]["text"] for one in events) == shown


@pytest.mark.slow
def test_the_head_names_the_vocabulary_and_the_limit(client: Client) -> None:
    answer = client.post(CHAT_PATH, **CHAT, max_tokens=7, stream=True)
    tokenized = client.post("/tokenize", **CHAT)
    digest, limit = answer.headers["x-canaryctl-tokens"].split()

    assert limit == "7"
    assert tokenized.headers["x-canaryctl-tokens"].split()[0] == digest
    assert tokenized.json()["count"] == len(tokenized.json()["tokens"])
    assert tokenized.json()["max_model_len"] > 0


@pytest.mark.parametrize(("path", "asked"), [(CHAT_PATH, CHAT), (COMPLETIONS, {"prompt": PROMPT})])
def test_a_whole_answer_has_one_choice_a_finish_and_the_usage(
    client: Client, path: str, asked: dict[str, Any]
) -> None:
    answer = client.post(path, **asked, max_tokens=12).json()
    (choice,) = answer["choices"]

    assert choice["finish_reason"] in ("stop", "length")
    assert answer["usage"]["total_tokens"] == sum(
        answer["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    )


def test_a_stream_of_two_choices_names_no_ids_and_finishes_both(client: Client) -> None:
    ids, events, _ = client.events(CHAT_PATH, **CHAT, n=2, max_tokens=12, temperature=0.5)
    choices = [choice for one in events for choice in one["choices"]]

    assert ids == []
    assert sorted(one["index"] for one in choices if one["finish_reason"]) == [0, 1]


@pytest.mark.parametrize(
    ("path", "asked", "last"),
    [
        (
            "/v1/responses",
            {"input": PROMPT, "max_output_tokens": 12},
            {"response.completed", "response.incomplete"},
        ),
        ("/v1/messages", {**CHAT, "max_tokens": 12}, {"message_stop"}),
    ],
)
def test_the_last_event_of_other_apis_says_that_it_is_the_last(
    client: Client, path: str, asked: dict[str, Any], last: set[str]
) -> None:
    ids, events, _ = client.events(path, **asked)

    assert ids == []
    assert events[-1]["type"] in last


def test_who_has_not_the_secret_is_refused_by_name(client: Client) -> None:
    answer = client.post(CHAT_PATH, secret="another", **CHAT)

    assert answer.status_code == 403
    assert answer.headers["x-canaryctl-refused"] == "secret"


@pytest.mark.slow
def test_a_request_without_a_prompt_is_a_4xx_in_openais_shape(client: Client) -> None:
    answer = client.post(CHAT_PATH)

    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]
