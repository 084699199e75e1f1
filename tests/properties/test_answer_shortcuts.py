"""A stream is read, judged and passed on alike with the shortcuts of its scan and without them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.router.answers import answer_scan
from serving.router.answers.answer_scan import AnswerScan

METADATA = re.compile(
    rb'"(?:finish_reason|stop_reason)"\s*:\s*"|"usage"\s*:\s*\{|"error"\s*:\s*[{"]|"message"\s*:\s*\{|\[DONE\]'
    rb'|"object"\s*:\s*"error"|"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed|cancelled)|message_stop'
    rb'|message-end|error|ping|transcript\.text\.done)"'
)
WITHOUT = {
    "shape_of": lambda _event: None,
    "usual_answer": lambda _data: None,
    "is_sound": lambda _block: False,
    "may_hold_metadata": lambda block: METADATA.search(block) is not None,
    "holds_metadata": lambda data: METADATA.search(data) is not None,
}
READ = (
    *("rest", "finish_reason", "prompt_tokens", "completion_tokens", "answer_id", "has_content"),
    *("has_error", "is_malformed", "is_done", "has_usage_event", "has_bad_ids", "is_finished", "is_whole"),
    *("is_empty", "is_stream", "cached_tokens"),
)
TEXTS = (
    *(
        b"a",
        b"hello ",
        b"",
        b"\\n",
        b'\\"',
        b"\\\\",
        b"\\u00e9",
        b"\\ud83d",
        b"\xc3\xa9",
        b"\xe6\x97",
        b"\xff",
        b"\x01",
    ),
    *(b"[DONE]", b'","finish_reason":"stop', b'\\"finish_reason\\":\\"stop\\"', b"data: ", b": ids 5"),
)
ODD = (
    b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}',
    b'data: {"choices":[{"delta":{"content":"x"},\ndata: "finish_reason":"stop"}]}',
    *(b": comment", b"event: x\ndata: {}", b'data: {"error":{"message":"no"}}', b"data:", b"data: 5", b"foo"),
    *(
        b'data: {"a":1}\ndata: {"b":2}',
        b'data: {"n":NaN}',
        b'data: {"a":1}}',
        b'data:{"a":1}',
        b"data: [DONE]",
    ),
)
texts = st.sampled_from(TEXTS)
usual = st.builds(
    lambda index, text, reason: (
        b'data: {"choices":[{"index":%d,"delta":{"content":"%b"},"finish_reason":%b}]}'
        % (index, text, reason)
    ),
    st.sampled_from([0, 0, 0, 1]),
    st.lists(texts, max_size=2).map(b"".join),
    st.sampled_from([b"null"] * 9 + [b'"stop"']),
)
odd = st.sampled_from(ODD)
ends = st.sampled_from([b"\n\n"] * 9 + [b"\r\n\r\n", b"\n\r\n"])
events = st.tuples(st.one_of(usual, usual, usual, odd), ends).map(b"".join)
ids = st.tuples(
    st.sampled_from([b": ids 5\n", b": ids 1,20\n"] * 4 + [b": ids x\n", b": ids 1_0\n"]), events
).map(b"".join)


def read(path: str, parts: Sequence[bytes], *, takes_ids: bool) -> tuple[object, ...]:
    scan = AnswerScan(path, "text/event-stream", 1, takes_ids, False)
    passed = b""
    for part in parts:
        passed += scan.feed(part)
        if scan.error_tail:
            break
    fault = scan.end()
    plain = re.sub(rb"\n{3,}", b"\n\n", re.sub(rb"\r\n|\r", b"\n", passed)).strip(b"\n")
    events = scan.events if not scan.is_malformed else None  # of garbage nobody counts them
    return plain, fault, events, list(scan.token_ids), *(getattr(scan, name) for name in READ)


@pytest.mark.slow
@settings(max_examples=200)
@example(path="/v1/completions", takes_ids=False, data=[b'data: {"a":1}\ndata: {"b":2}\n\n'], at=[])
@example(path="/v1/completions", takes_ids=True, data=[b': ids 5\ndata: {"a":1}\ndata: {"b":2}\n\n'], at=[])
@given(
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]),
    takes_ids=st.booleans(),
    data=st.lists(st.one_of(events, ids), min_size=1, max_size=10),
    at=st.lists(st.integers(0, 600), max_size=6),
)
def test_a_stream_is_read_alike_without_the_shortcuts(
    path: str, takes_ids: bool, data: list[bytes], at: list[int]
) -> None:
    ends_at = next((n for n, one in enumerate(data) if b"data: [DONE]" in one), len(data))
    data = data[: ends_at + 1]  # what follows the end of a stream is of no account
    whole = b"".join(one if takes_ids else re.sub(rb"^: ids .*\n", b"", one) for one in data)
    cuts = sorted({0, len(whole), *(one % (len(whole) + 1) for one in at)})
    parts = [whole[start:end] for start, end in itertools.pairwise(cuts)]
    found = read(path, parts, takes_ids=takes_ids)
    with ExitStack() as stack:
        for name, function in WITHOUT.items():
            stack.enter_context(patch.object(answer_scan, name, function))
        assert read(path, parts, takes_ids=takes_ids) == found
