"""Notes of the token ids of an engine's streams, written as comments between the events of the answer.

A router that loses this engine continues the answer on another one from these ids (`exchange/takeover.py`).
Nothing of an answer is parsed or written anew: `generate` of the engine is wrapped once, the ids of each
output go into the note of the request (a context variable, set by the front), and the front puts the line
`: ids 286,274` before the next event.

Rules:
1. An id is noted only when its text is whole. Engines hold back the bytes of a character that has not ended,
   and a continuation that begins inside a character repeats text; such ids are noted with the one that ends
   it. With the end of the answer all are noted, the one that ended it included, as the usage counts them.
2. The head of an answer names the digest of the vocabulary: `x-canaryctl-tokens: DIGEST [LIMIT]`, with the
   most tokens that this answer may have; `none` for a stream whose text is not that of its tokens (reasoning
   is taken out of it). Ids are of use to an engine with the same digest.

Invariant: imports neither Ray nor vLLM; keeps no text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from serving.engine_headers import NO_TOKENS, TOKENS_HEADER

HELD_LIMIT = 8  # tokens of one character; more are no text at all
CONTEXT = 8  # tokens before the last that a decoder needs to find where a character begins
_UNFINISHED = "\ufffd"  # how the bytes of a character that has not ended are decoded
_CHAT = "/v1/chat/completions"
_NOTED_PATHS = frozenset({_CHAT, "/v1/completions"})

Decode = Callable[[list[int]], str]


class TokenNote:
    """The ids of one answer that wait to be written."""

    __slots__ = ("_decode", "_held", "_is_over", "_ready", "_tail", "limit")

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tail: list[int] = []  # the last ids that were noted
        self._held: list[int] = []  # their text is not whole yet
        self._ready: list[int] = []
        self._is_over = False  # an answer with several choices is not noted
        self.limit: int | None = None  # the most tokens that the answer may have; None: not known

    def add(self, outputs: Sequence[Any]) -> None:
        """The next output of the engine: one choice with `text` and `token_ids`, both since the last one."""
        if self._is_over or len(outputs) != 1 or outputs[0].index != 0:
            self._is_over = True
            return
        new = list(outputs[0].token_ids)
        self._held += new
        is_last = outputs[0].finish_reason is not None  # nothing follows, and its tokens are counted
        if not outputs[0].text and not is_last:
            return
        unfinished = 0 if len(new) < 2 or is_last else self._count_unfinished()
        whole = self._held[: len(self._held) - unfinished]
        self._held = self._held[len(whole) :]
        self._ready += whole
        self._tail = (self._tail + whole)[-CONTEXT:]

    def close(self) -> None:
        """Note nothing: the answer has several choices."""
        self._is_over = True

    def line(self) -> bytes:
        """The comment for what has been noted since the last one; b'' when that is nothing."""
        if not self._ready:
            return b""
        ids, self._ready = self._ready, []
        return b": ids " + ",".join(map(str, ids)).encode() + b"\n"

    def _count_unfinished(self) -> int:
        """How many of the last ids are bytes of a character that has not ended."""
        ids = self._tail + self._held
        for count in range(min(HELD_LIMIT, len(self._held))):
            end = len(ids) - count
            if not self._decode(ids[max(end - CONTEXT, 0) : end]).endswith(_UNFINISHED):
                return count
        return len(self._held)


_NOTE: ContextVar[TokenNote | None] = ContextVar("note", default=None)


@dataclass(frozen=True, slots=True)
class TokenNotes:
    """What an engine's front needs to note tokens."""

    digest: bytes  # of the vocabulary
    decode: Decode
    parses_chat: bool  # the engine takes parts such as reasoning out of the text of a chat

    def open(self, path: str) -> TokenNote | None:
        """A note for a request, set for what runs in this context; None: its answer has no ids."""
        is_noted = path in _NOTED_PATHS and not (self.parses_chat and path == _CHAT)
        note = TokenNote(self.decode) if is_noted else None
        _NOTE.set(note)
        return note

    def header(self, path: str, note: TokenNote | None, *, is_stream: bool) -> tuple[bytes, bytes]:
        """The header of an answer with status 200."""
        if note is None and is_stream and path in _NOTED_PATHS:
            return TOKENS_HEADER, NO_TOKENS.encode()
        limit = b"" if note is None or note.limit is None else b" %d" % note.limit
        return TOKENS_HEADER, self.digest + limit


def note_outputs(engine: Any) -> None:
    """Wrap the engine's `generate`, so that the tokens of noted requests go into their notes."""
    generate = engine.generate

    def noting(prompt: Any, sampling_params: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        note = _NOTE.get()
        outputs = generate(prompt, sampling_params, *args, **options)
        if note is None:
            return outputs  # type: ignore[no-any-return]
        note.limit = getattr(sampling_params, "max_tokens", None)
        if getattr(sampling_params, "n", 1) != 1:
            note.close()  # the first output may be of one choice alone
        return _noted(outputs, note)

    engine.generate = noting


async def _noted(outputs: Any, note: TokenNote) -> AsyncIterator[Any]:
    async with aclosing(outputs) as closing:
        async for output in closing:
            note.add(output.outputs)
            yield output


def notes_of(engine: Any, *, parses_chat: bool) -> TokenNotes | None:
    """Note the tokens of this vLLM engine from now on; None: it has no tokenizer."""
    tokenizer = engine.get_tokenizer()
    if tokenizer is None:
        return None
    note_outputs(engine)

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return TokenNotes(vocabulary_digest(tokenizer), decode, parses_chat)


def vocabulary_digest(tokenizer: Any) -> bytes:
    """16 hex digits: which text every id stands for, by the vocabulary and how it is decoded."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    state = decoder.__getstate__() if decoder is not None else b""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    digest = hashlib.blake2b(state if isinstance(state, bytes) else repr(state).encode(), digest_size=8)
    digest.update(json.dumps(vocabulary).encode())
    return digest.hexdigest().encode()
