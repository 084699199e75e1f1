"""What only the account that made it can read, in the turns of a request."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from serving.router.bodies import kept, signed
from serving.router.bodies.body_facts import read_facts
from serving.router.bodies.raw_values import READ_LIMIT

SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": list(parts)}


KEPT = {
    "encrypted reasoning": {
        "input": [SAID, {"type": "reasoning", "encrypted_content": "gAAA", "summary": []}]
    },
    "an item": {"input": [SAID, {"type": "item_reference", "id": "rs_1"}]},
    "a file": {"input": [user({"type": "input_file", "file_id": "file-1"})]},
    "a file of a function": {
        "input": [{"type": "function_call_output", "output": [{"type": "input_file", "file_id": "file-1"}]}]
    },
    "a file of chat": {"messages": [user({"type": "file", "file": {"file_id": "file-1"}})]},
    "a file beside what is malformed": {
        "input": ["file_id", user(["file_id"], {"type": "input_file", "file_id": "file-1"})]
    },
    "a file of messages": {
        "messages": [user({"type": "document", "source": {"type": "file", "file_id": "file_1"}})]
    },
    "a store of files": {
        "input": "q",
        "tools": [{"type": "function"}, {"type": "file_search", "vector_store_ids": ["vs_1"]}],
    },
    "a container": {"input": "q", "tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
    "files of a container": {
        "input": "q",
        "tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}],
    },
    "a container of messages": {"messages": [user()], "container": "container_1"},
    "a stored prompt": {"prompt": {"id": "pmpt_1", "version": "2"}, "input": "q"},
    "what was spoken": {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}, user()]},
}
NOT_KEPT = {
    "a new container": {
        "input": "q",
        "tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": []}}],
    },
    "sound that is asked for": {
        "messages": [user()],
        "modalities": ["text", "audio"],
        "audio": {"voice": "a", "format": "wav"},
    },
    "a prompt as it is": {"prompt": "id", "tools": None, "container": None},
    "reasoning in plain": {"input": [{"type": "reasoning", "encrypted_content": None, "summary": []}]},
    "asked for": {"input": "hi", "include": ["reasoning.encrypted_content"]},
    "spoken of": {"input": [user({"type": "input_text", "text": 'which "file_id" or "item_reference"?'})]},
    "a tool's schema": {
        "input": [SAID],
        "tools": [{"type": "function", "name": "read", "parameters": {"properties": {"file_id": {}}}}],
    },
    "a tool's arguments": {
        "messages": [user({"type": "tool_use", "name": "read", "input": {"file_id": "file-1"}})]
    },
    "a file as it is": {"messages": [user({"type": "file", "file": {"file_data": "aGk=", "file_id": None}})]},
    "no list": {"input": {"type": "item_reference"}},
    "no objects": {"input": ["item_reference", 1]},
}


THINKING = {"type": "thinking", "thinking": "so", "signature": "Eo8C"}


def assistant(**more: object) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", **more}]}


SIGNED = {
    "thinking of messages": {"messages": [user(), {"role": "assistant", "content": [THINKING]}]},
    "redacted thinking": assistant(content=[{"type": "redacted_thinking", "data": "Eo8C"}]),
    "thinking in a chat": assistant(content="hi", thinking_blocks=[THINKING]),
    "reasoning in a chat": assistant(reasoning_details=[{"type": "reasoning.text", "signature": "E"}]),
    "thinking beside what is malformed": assistant(content=["signature", THINKING, {"type": []}, 1]),
    "a turn beside what is malformed": {"messages": ["signature", {"role": "a", "content": [THINKING]}]},
    "a thought beside what is malformed": assistant(
        tool_calls=[
            {"extra_content": "thought_signature"},
            {"extra_content": {"google": {"thought_signature": "E"}}},
        ]
    ),
    "encrypted reasoning in a chat": assistant(
        reasoning_details=[{"type": "reasoning.encrypted", "data": "E"}]
    ),
    "a thought of a call": assistant(
        tool_calls=[{"id": "c", "extra_content": {"google": {"thought_signature": "E"}}}]
    ),
}
NOT_SIGNED = {
    "thinking of nobody": {"messages": [{"role": "assistant", "content": [{**THINKING, "signature": ""}]}]},
    "a null": {"messages": [{"role": "assistant", "content": [{**THINKING, "signature": None}]}]},
    "spoken of": {"messages": [user({"type": "text", "text": 'the "signature" of "redacted_thinking"'})]},
    "arguments": {"messages": [user({"type": "tool_use", "name": "sign", "input": {"signature": "Eo8C"}})]},
    "a schema": {
        "messages": [user()],
        "tools": [{"name": "sign", "input_schema": {"properties": {"signature": {"type": "string"}}}}],
    },
    "a field of the body": {"messages": [user()], "signature": "Eo8C"},
    "no list": {"messages": {"signature": "Eo8C"}},
    "no objects": {"messages": ["signature", 1]},
}


@pytest.mark.parametrize("body", SIGNED.values(), ids=SIGNED)
def test_signed_thinking_is_seen(body: object) -> None:
    facts = read_facts(json.dumps(body).encode(), is_messages=True)

    assert facts is not None
    assert (facts.is_signed, facts.names_kept) == (True, False)


@pytest.mark.parametrize("body", [*NOT_SIGNED.values(), *KEPT.values()], ids=[*NOT_SIGNED, *KEPT])
def test_what_nobody_signed_is_not(body: object) -> None:
    facts = read_facts(json.dumps(body).encode(), is_messages=True)

    assert facts is not None
    assert not facts.is_signed


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_what_one_account_alone_can_read_is_seen(body: object) -> None:
    facts = read_facts(json.dumps(body).encode())

    assert facts is not None
    assert facts.names_kept


@pytest.mark.parametrize("body", NOT_KEPT.values(), ids=NOT_KEPT)
def test_what_only_looks_like_it_is_not(body: object) -> None:
    facts = read_facts(json.dumps(body).encode())

    assert facts is not None
    assert not facts.names_kept


@pytest.mark.parametrize(("more", "expected"), [(0, False), (1, True)])
def test_what_has_too_many_turns_with_such_words_to_tell_counts_as_kept(more: int, expected: bool) -> None:
    turns = [{"role": "assistant", "audio": None}] * (READ_LIMIT + more)
    facts = read_facts(json.dumps({"messages": turns}).encode())

    assert facts is not None
    assert facts.names_kept is expected


TURNS_LEFT = READ_LIMIT // 2
MAYBE_SIGNED: dict[str, list[dict[str, Any]]] = {
    "turns": [{"role": "assistant", "signature": 1}],
    "blocks": [{"role": "assistant", "content": [{"signature": ""}] * (TURNS_LEFT - 1)}],
    "calls": [{"role": "assistant", "tool_calls": [{"x": "thought_signature"}] * (TURNS_LEFT - 1)}],
}


@pytest.mark.parametrize("kind", MAYBE_SIGNED)
@pytest.mark.parametrize(("more", "expected"), [(0, False), (1, True)])
def test_what_has_too_many_such_words_to_tell_counts_as_signed(kind: str, more: int, expected: bool) -> None:
    turns = MAYBE_SIGNED[kind] * (READ_LIMIT if kind == "turns" else 2) + MAYBE_SIGNED["turns"] * more
    facts = read_facts(json.dumps({"messages": turns}).encode())

    assert facts is not None
    assert facts.is_signed is expected


@pytest.mark.parametrize("word", ["signature", "redacted_thinking", "reasoning.encrypted"])
def test_only_turns_and_blocks_that_may_be_signed_are_decoded(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One word beside 20,000 turns had each of them decoded, in 120 ms."""
    decoded = {name: list[object]() for name in ("_TURN", "_BLOCK", "_CALL")}
    for name, noted in decoded.items():
        monkeypatch.setattr(signed, name, Told(noted, getattr(signed, name)))
    block = {"x": [word]}
    turns = [user(), user({}, block, {}), {"role": "a", "tool_calls": [{}, block]}, user({})]
    read_facts(json.dumps({"x": [word], "messages": turns}).encode())

    assert [len(decoded[name]) for name in ("_TURN", "_BLOCK", "_CALL")] == [2, 1, 1]


@pytest.mark.parametrize("word", ["file_id", "audio", "item_reference", "encrypted_content"])
def test_only_turns_that_hold_such_a_word_are_decoded(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One word beside 14,000 turns had each of them decoded, in 170 ms."""
    decoded = list[object]()
    monkeypatch.setattr(kept, "_TURN", Told(decoded, kept._TURN))
    turns = [user({"file": {}}), {"role": "user", "content": "a", "x": [word]}, user({"file": {}})]
    read_facts(json.dumps({"x": [word], "messages": turns}).encode())

    assert len(decoded) == 1


class Told:
    """A decoder that notes what it is given."""

    def __init__(self, decoded: list[object], decoder: msgspec.json.Decoder[Any]) -> None:
        self._decoded, self._decoder = decoded, decoder

    def decode(self, raw: bytes) -> Any:
        self._decoded.append(raw)
        return self._decoder.decode(raw)
