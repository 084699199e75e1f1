"""Notes of token ids, beside the tokenizer library that vLLM's engines decode with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.credentials import ControlSecret, DataSecret
from serving.fleet.engine_front import EngineFront
from serving.fleet.token_notes import TokenNote, TokenNotes, note_outputs, vocabulary_digest

tokenizers = pytest.importorskip("tokenizers")

PROMPT = "What is the capital? "
MIXED = st.text(alphabet="abc é日🇫👩\u200d\ufe0f", min_size=1, max_size=25)


def byte_tokenizer() -> Any:
    """Every byte is a token, as the worst case of a byte-level vocabulary."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    one = tokenizers.Tokenizer(tokenizers.models.BPE({text: n for n, text in enumerate(alphabet)}, []))
    one.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    one.decoder = tokenizers.decoders.ByteLevel()
    return one


TOKENIZER = byte_tokenizer()


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids))


class Detokenizer:
    """As vLLM's: a stream primed with the prompt, fed one id after the other."""

    def __init__(self, prompt: list[int]) -> None:
        self._stream = tokenizers.decoders.DecodeStream(ids=prompt, skip_special_tokens=True)

    def text(self, ids: list[int]) -> str:
        return "".join(self._stream.step(TOKENIZER, one) or "" for one in ids)


@dataclass
class Output:
    text: str
    token_ids: list[int]
    index: int = 0
    finish_reason: str | None = None


@dataclass
class Outputs:
    outputs: list[Output] = field(default_factory=list)


def noted(line: bytes) -> list[int]:
    return [int(one) for one in line.removeprefix(b": ids ").split(b",")] if line else []


def test_continuing_inside_a_character_would_repeat_the_prompt() -> None:
    """Why ids of unfinished characters are not noted."""
    prompt, answer = ids_of(PROMPT), ids_of("é")

    assert Detokenizer(prompt + answer[:1]).text(answer[1:]) == PROMPT + "é"


@pytest.mark.slow
@given(text=MIXED, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=80))
def test_from_what_is_noted_at_any_cut_the_rest_of_the_text_follows(text: str, sizes: list[int]) -> None:
    prompt, answer = ids_of(PROMPT), ids_of(text)
    note, decoder = TokenNote(decode), Detokenizer(prompt)
    at, shown, ids = 0, "", list[int]()
    for size in sizes:
        new, at = answer[at : at + size], at + size
        output = Output(decoder.text(new), new)
        note.add([output])
        shown += output.text
        ids += noted(note.line())

        assert ids == answer[: len(ids)]
        assert shown + Detokenizer(prompt + ids).text(answer[len(ids) :]) == text
    if at >= len(answer):
        assert ids == answer


def test_ids_wait_for_the_next_line_and_are_written_once() -> None:
    note = TokenNote(decode)
    for text in ("ab", "c"):
        note.add([Output(text, ids_of(text))])

    assert noted(note.line()) == ids_of("abc")
    assert note.line() == b""


def test_with_the_end_all_ids_are_noted_as_the_usage_counts_them() -> None:
    note = TokenNote(decode)
    note.add([Output("a", [*ids_of("a"), ids_of("é")[0]])])
    before = noted(note.line())
    note.add([Output("", [1], finish_reason="stop")])

    assert before == ids_of("a")
    assert noted(note.line()) == [ids_of("é")[0], 1]


def test_an_answer_with_several_choices_is_not_noted() -> None:
    note = TokenNote(decode)
    note.add([Output("a", ids_of("a")), Output("b", ids_of("b"), 1)])
    note.add([Output("c", ids_of("c"))])

    assert note.line() == b""


def test_the_digest_is_of_the_vocabulary_and_its_decoder() -> None:
    class Tokenizer:
        def __init__(self, backend: Any, swap: bool = False) -> None:
            self.backend_tokenizer, self._swap = backend, swap

        def get_vocab(self) -> dict[str, int]:
            vocabulary: dict[str, int] = dict(self.backend_tokenizer.get_vocab())
            if self._swap:
                vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
            return vocabulary

    other = byte_tokenizer()
    other.decoder = tokenizers.decoders.Metaspace()
    digests = [
        vocabulary_digest(one)
        for one in (
            *(Tokenizer(byte_tokenizer()), Tokenizer(byte_tokenizer())),
            *(Tokenizer(byte_tokenizer(), swap=True), Tokenizer(other)),
        )
    ]

    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# ---- with the front


class Engine:
    """An engine and vLLM's application of it: each output becomes an event; the first one two."""

    def __init__(self, outputs: list[Output], *, choices: int = 1) -> None:
        self._outputs, self._choices = outputs, choices
        self.is_closed = False

    async def generate(self, prompt: str, sampling_params: Any, request_id: str) -> AsyncIterator[Outputs]:
        try:
            for one in self._outputs:
                yield Outputs([one])
        finally:
            self.is_closed = True

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        @dataclass
        class Params:
            max_tokens: int = 40
            n: int = self._choices

        outputs = self.generate("p", Params(), "r")
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        is_first = True
        async for one in outputs:
            if is_first:
                await send({"type": "http.response.body", "body": b'data: {"role"}\n\n', "more_body": True})
            is_first = False
            body = b"data: {%s}\n\n" % one.outputs[0].text.encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def ask(engine: Engine, path: str, *, parses_chat: bool = False) -> tuple[dict[bytes, bytes], bytes]:
    data, control = DataSecret.of("root"), ControlSecret.of("root")
    front = EngineFront(data=data, control=control, describe=dict)
    front.app, front.notes = engine.app, TokenNotes(b"d1", decode, parses_chat)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"x-canaryctl-secret", data.text.encode())]
    await front({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    return dict(sent[0]["headers"]), b"".join(one["body"] for one in sent[1:])


BODY = b'data: {"role"}\n\ndata: {a}\n\ndata: {b}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_line_before_an_event_names_the_ids_and_the_head_the_vocabulary(path: str) -> None:
    engine = Engine([Output("a", [7]), Output("b", [8, 9])])
    note_outputs(engine)
    headers, body = await ask(engine, path)

    assert headers[b"x-canaryctl-tokens"] == b"d1 40"
    assert body == b": ids 7\n" + BODY.replace(b"data: {b}", b": ids 8,9\ndata: {b}")
    assert engine.is_closed


@pytest.mark.parametrize(
    ("path", "parses_chat", "header"),
    [
        ("/v1/chat/completions", True, b"none"),
        ("/v1/responses", False, b"d1"),
        ("/v1/messages", False, b"d1"),
        ("/v1/completions", True, b"d1 40"),
    ],
)
async def test_other_answers_have_no_ids(path: str, parses_chat: bool, header: bytes) -> None:
    engine = Engine([Output("a", [7]), Output("b", [8, 9])])
    note_outputs(engine)
    headers, body = await ask(engine, path, parses_chat=parses_chat)

    assert headers[b"x-canaryctl-tokens"] == header
    assert (b": ids" in body) == (header == b"d1 40")
    assert body.replace(b": ids 7\n", b"").replace(b": ids 8,9\n", b"") == BODY


async def test_the_first_output_of_several_choices_is_not_noted_though_it_comes_alone() -> None:
    engine = Engine([Output("a", [7]), Output("b", [8, 9])], choices=2)
    note_outputs(engine)

    assert (await ask(engine, "/v1/completions"))[1] == BODY


async def test_a_front_whose_engine_notes_nothing_passes_all_bytes() -> None:
    _, body = await ask(Engine([Output("a", [7]), Output("b", [8])]), "/v1/completions")

    assert body == BODY
