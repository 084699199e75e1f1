"""What only the account that made it can read, in the turns of a request."""

from __future__ import annotations

import json

import pytest

from serving.router.bodies import kept
from serving.router.bodies.body_facts import read_facts
from serving.router.bodies.kept import READ_LIMIT

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


def assistant(**more: object) -> dict[str, object]:
    return {"messages": [{"role": "assistant", **more}]}


SIGNED = {
    "thinking of messages": {"messages": [user(), {"role": "assistant", "content": [THINKING]}]},
    "redacted thinking": assistant(content=[{"type": "redacted_thinking", "data": "Eo8C"}]),
    "thinking in a chat": assistant(content="hi", thinking_blocks=[THINKING]),
    "reasoning in a chat": assistant(reasoning_details=[{"type": "reasoning.text", "signature": "E"}]),
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


@pytest.mark.parametrize("word", ["file_id", "audio", "item_reference", "encrypted_content"])
def test_only_turns_that_hold_such_a_word_are_decoded(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One word beside 14,000 turns had each of them decoded, in 170 ms."""
    decoded = list[object]()
    monkeypatch.setattr(kept, "_TURN", Told(decoded))
    turns = [user({"file": {}}), {"role": "user", "content": "a", "x": [word]}, user({"file": {}})]
    read_facts(json.dumps({"x": [word], "messages": turns}).encode())

    assert len(decoded) == 1


class Told:
    """A decoder that notes what it is given."""

    def __init__(self, decoded: list[object]) -> None:
        self._decoded = decoded

    def decode(self, raw: object) -> kept._Turn:
        self._decoded.append(raw)
        return kept._Turn()
