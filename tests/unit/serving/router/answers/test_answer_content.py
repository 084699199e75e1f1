"""Which answers are empty, and which their engine gave up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.router.answers.answer_scan import AnswerScan
from tests.fakes.router_rig import router_rig
from tests.unit.serving.router.test_public_reports_content import answers

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
CALL = {"type": "tool_use", "id": "t1", "name": "list_files", "input": {}}


def scanned(path: str, kind: str, body: bytes, **more: Any) -> tuple[AnswerScan, str | None]:
    scan = AnswerScan(path, kind, **more)
    scan.feed(body)
    return scan, scan.end()


def whole(path: str, answer: object) -> str | None:
    return scanned(path, "application/json", json.dumps(answer).encode())[1]


def stream(path: str, *events: object, **more: Any) -> str | None:
    body = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in events)
    return scanned(path, "text/event-stream", body, **more)[1]


def chat(
    message: dict[str, Any] | None, reason: str | None = "stop", name: str = "message"
) -> dict[str, Any]:
    return {"id": "c", "object": "x", "choices": [{"index": 0, name: message, "finish_reason": reason}]}


def message(*content: object) -> dict[str, Any]:
    return {"id": "m", "type": "message", "role": "assistant", "content": content, "stop_reason": "tool_use"}


def response(*output: object, status: str = "completed") -> dict[str, Any]:
    return {"id": "r", "object": "response", "status": status, "output": output, "metadata": {"a": "b"}}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (MESSAGES, message(CALL)),
        (MESSAGES, message({**CALL, "input": {"city": "Paris"}})),
        (MESSAGES, message({"type": "server_tool_use", "id": "t", "name": "search", "input": {"q": "x"}})),
        (RESPONSES, response({"type": "custom_tool_call", "id": "i", "name": "apply_patch", "input": "*"})),
        (RESPONSES, response({"type": "shell_call", "id": "i", "action": {"commands": ["ls"]}})),
        (RESPONSES, response({"type": "image_generation_call", "id": "i", "result": "iVBO"})),
        (RESPONSES, response(status="queued")),
        (CHAT, chat({"role": "assistant", "content": None, "images": [{"image_url": {"url": "x:"}}]})),
        (CHAT, chat({"role": "assistant", "content": [{"type": "image", "url": "x:"}]})),
    ],
)
def test_an_answer_without_text_that_says_something_is_not_empty(path: str, answer: object) -> None:
    """A canary's was thrown away, and each was an error on both arms, which hid the real ones."""
    assert whole(path, answer) is None


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (CHAT, chat({"role": "assistant", "content": ""})),
        (CHAT, chat({"role": "assistant", "content": [{"type": "text", "text": ""}], "tool_calls": []})),
        (CHAT, chat(None)),
        (CHAT, {"id": "c", "object": "chat.completion", "model": "m", "choices": []}),
        (MESSAGES, message()),
        (MESSAGES, message({"type": "text", "text": ""})),
        (RESPONSES, response({"type": "message", "id": "i", "status": "completed", "content": []})),
    ],
)
def test_an_answer_of_labels_alone_is_empty(path: str, answer: object) -> None:
    assert whole(path, answer) == "empty"


def test_a_stream_of_a_tool_without_arguments_is_not_empty() -> None:
    events = [
        {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": CALL},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": ""},
        },
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        {"type": "message_stop"},
    ]

    assert stream(MESSAGES, *events) is None
    del events[1:3]
    assert stream(MESSAGES, *events) == "empty"


def test_a_stream_of_images_is_not_empty() -> None:
    image = {"role": "assistant", "content": "", "images": [{"image_url": {"url": "x:"}}]}

    assert stream(CHAT, chat(image, None, "delta"), chat({}, name="delta")) is None
    assert stream(CHAT, chat({"role": "assistant"}, None, "delta"), chat({}, name="delta")) == "empty"


@pytest.mark.parametrize("reason", ["abort", "error", "cancelled"])
def test_an_answer_that_its_engine_gave_up_is_an_error(reason: str) -> None:
    """Users kept a part of the text as if it were all: nobody continued it, and no error was recorded."""
    assert whole(CHAT, chat({"content": "naïv"}, reason)) == "error in the answer"
    events = [chat({"content": "naïv"}, None, "delta"), chat({"content": ""}, reason, "delta")]
    assert stream(CHAT, *events) == "error in the answer"


@pytest.mark.parametrize("reason", ["abort", "cancelled"])
def test_what_says_that_its_engine_gave_up_is_kept_back_where_the_stream_can_be_continued(
    reason: str,
) -> None:
    scan = AnswerScan(CHAT, "text/event-stream", takes_ids=True)
    text, end = (
        b": ids %d\ndata: " % number + json.dumps(one).encode() + b"\n\n"
        for number, one in enumerate((chat({"content": "na"}, None, "delta"), chat({}, reason, "delta")))
    )
    passed = scan.feed(text) + scan.feed(end)

    assert passed == text.partition(b"\n")[2]
    assert (list(scan.token_ids), scan.has_error, reason.encode() in scan.error_tail) == ([0], True, True)


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        (MESSAGES, {**message({"type": "text", "text": "hi"}), "stop_reason": "max_tokens"}, "max_tokens"),
        (
            RESPONSES,
            {
                **response({"type": "message", "content": [{"text": "hi"}]}, status="incomplete"),
                "incomplete_details": {"reason": "max_output_tokens"},
            },
            "max_output_tokens",
        ),
    ],
)
def test_why_an_answer_ends_is_read_of_each_api(path: str, answer: object, reason: str) -> None:
    scan, _ = scanned(path, "application/json", json.dumps(answer).encode())

    assert scan.finish_reason == reason


def test_a_response_that_was_cancelled_has_ended() -> None:
    events = [
        {"type": "response.output_text.delta", "delta": "hi", "item_id": "i"},
        {"type": "response.cancelled", "response": {"id": "r", "status": "cancelled"}},
    ]

    assert stream(RESPONSES, *events) is None


CANCELLED = {"type": "response.cancelled", "response": {"id": "r", "status": "cancelled"}}
SAID = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}


@pytest.mark.parametrize("size", [1, 5000])
@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_response_that_nobody_asks_for_again_must_be_made(status: str, size: int) -> None:
    answer = response({**SAID, "content": [{"type": "output_text", "text": "h" * size}]}, status=status)
    faults = [
        scanned(RESPONSES, "application/json", json.dumps(answer).encode(), may_wait=may_wait)[1]
        for may_wait in (True, False)
    ]

    assert faults == [None, "error in the answer"]


def test_a_stream_that_nobody_can_cancel_fails_by_it() -> None:
    delta = {"type": "response.output_text.delta", "delta": "hi"}

    assert stream(RESPONSES, delta, CANCELLED) is None
    assert stream(RESPONSES, delta, CANCELLED, may_wait=False) == "error in the answer"


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("background", "error"), [(True, False), (False, True), (None, True)])
@pytest.mark.parametrize("arm", [0, 1])
async def test_what_waits_is_an_answer_to_a_request_in_the_background_alone(
    arm: int, background: bool | None, error: bool, streams: bool
) -> None:
    body = {"input": "q", "stream": streams} | ({} if background is None else {"background": background})
    whole, kind = json.dumps(response(SAID, status="in_progress")).encode(), "application/json"
    if streams:
        whole, kind = b"data: %b\n\n" % json.dumps(CANCELLED | {"item": SAID}).encode(), "text/event-stream"
    async with router_rig() as rig:
        rig.publish(weight_bp=10_000 * arm, change=2)
        (rig.canary if arm else rig.stable).behave = answers(whole, kind)
        await rig.client.post(f"/chat{RESPONSES}", json=body)
        record = await rig.record()

    assert (record.arm, record.error) == (arm, error)
