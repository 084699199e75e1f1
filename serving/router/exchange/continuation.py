"""One stream that stable continues: what is asked of it, and what of its answers the client gets. No socket.

    step        request                     its answer
    tokenize    POST /tokenize              the prompt's ids, and stable's vocabulary
    continue    POST /v1/completions        events, rewritten for the client (`takeover.py`)

An answer of no use fails the step; another replica then begins it anew, after what the client has by then.

Invariant: nothing is continued by an engine of another vocabulary.
"""

from __future__ import annotations

import re

from serving.engine_headers import TOKENS_HEADER
from serving.router.answers.answer_scan import AnswerScan
from serving.router.bodies.continuable import fields_of
from serving.router.exchange.takeover import (
    CHAT,
    Fields,
    Prompt,
    Rewriter,
    Shape,
    continuation_body,
    read_prompt,
    tokenize_body,
    tokens_left,
    usage_of,
)
from serving.router.headers import RawHeaders, content_type, value_of
from serving.targets import Target

_LIMIT = re.compile("[0-9]{1,9}")
ANSWER_LIMIT = 8 << 20  # bytes of an answer of /tokenize: a million ids
_TOKENIZE, _COMPLETE = Target("/tokenize"), Target("/v1/completions")


def tokens_header(headers: RawHeaders) -> tuple[str | None, int | None]:
    """(digest of the vocabulary, token limit) as an engine's front names them; None: it does not."""
    words = (value_of(headers, TOKENS_HEADER) or "").split()
    digest = words[0] if words else None
    limit = words[1] if len(words) > 1 else ""
    return digest, int(limit) if _LIMIT.fullmatch(limit) else None


class Continuation:
    """A stream that was cut, from then on. The scan of what the client got goes on counting."""

    def __init__(self, path: str, body: bytes, first: AnswerScan, digest: str, limit: int | None) -> None:
        """limit: the most tokens of the whole answer; None: not known."""
        self._first = first
        self._digest = digest
        self._limit = limit
        self._shape = Shape(path == CHAT, first.answer_id or "", first.model or "", first.created)
        self._sent = list(first.token_ids)
        self._rewriter: Rewriter | None = None
        self._scan: AnswerScan | None = None
        self._answer: list[bytes] = []
        self._answer_bytes = 0
        self.is_possible = True  # as far as the request goes
        asked: bytes | Prompt = b""
        self._fields: Fields = {}
        try:
            self._fields = fields_of(body)
            asked = tokenize_body(self._fields)
        except (ValueError, RecursionError):
            self.is_possible = False
        self._usage = usage_of(self._fields)
        self._prompt = asked if isinstance(asked, Prompt) else None
        self._tokenize = asked if isinstance(asked, bytes) else b""
        self._is_checked = False  # the engine has named its vocabulary

    @property
    def sent(self) -> int:
        """Tokens that the client has."""
        return len(self._sent) + (len(self._scan.token_ids) if self._scan is not None else 0)

    @property
    def is_tokenizing(self) -> bool:
        """True in the first step."""
        return self._prompt is None

    def request(self) -> tuple[Target, bytes]:
        """What is asked next."""
        if self._prompt is None:
            return _TOKENIZE, self._tokenize
        return _COMPLETE, continuation_body(self._fields, self._prompt, self._sent, self._left(self._prompt))

    def closing(self) -> bytes | None:
        """The end of the stream, when no token is missing; None: the engine must be asked for more."""
        if self._prompt is None:
            return None
        left = self._left(self._prompt)
        if not self._first.is_finished and (left is None or left > 0):
            return None
        end = self._rewriting(self._prompt).end(len(self._sent))
        self._count(None)
        return end

    def _left(self, prompt: Prompt) -> int | None:
        """Tokens that the answer may still have; None: as many as the engine likes."""
        return tokens_left(self._fields, prompt, len(self._sent), self._limit)

    def answered(self, status: int, headers: RawHeaders) -> bool:
        """The head of an answer; False: it is of no use."""
        if status != 200:
            return False
        digest, _ = tokens_header(headers)
        if digest != self._digest:
            return False
        if self._prompt is not None:
            self._scan = AnswerScan("/v1/completions", content_type(headers), takes_ids=True)
            self._rewriting(self._prompt)
            return self._scan.is_stream
        return True

    def received(self, data: bytes) -> bytes:
        """The next bytes of it; what the client gets."""
        if self._scan is None:
            self._answer_bytes += len(data)
            if self._answer_bytes <= ANSWER_LIMIT:
                self._answer.append(data)
            return b""
        assert self._rewriter is not None
        events = self._scan.feed(data)
        return self._rewriter.feed(events) if self._scan.is_stream else b""

    @property
    def is_whole(self) -> bool:
        """True when the last event of the continuation has come, but not the end of its body."""
        return self._scan is not None and self._scan.is_finished

    @property
    def has_error(self) -> bool:
        """True when the engine reported an error inside its answer, or it is no stream by its first bytes."""
        scan = self._scan
        return scan is not None and (scan.has_error or scan.has_bad_ids or not scan.is_stream)

    @property
    def has_passed_finish(self) -> bool:
        """True when the client has the finish of its answer: what comes after it is of no use."""
        return self._rewriter is not None and self._rewriter.has_finish

    def tokenized(self) -> bool:
        """The answer of the first step has ended; False: it was of no use."""
        self._prompt = read_prompt(b"".join(self._answer)) if self._answer_bytes <= ANSWER_LIMIT else None
        self._restart()
        return self._prompt is not None

    def ended(self) -> bytes | None:
        """The answer of the second step has ended, or broke off; the end of the stream, None: it was cut."""
        scan, rewriter = self._scan, self._rewriter
        if scan is None or rewriter is None or not scan.is_finished:
            return None
        end = rewriter.end(self.sent)
        self._count(scan)
        return end

    def failed(self) -> None:
        """The step failed: the next one begins after what the client has."""
        if self._scan is not None:
            self._sent += self._scan.token_ids
            self._first.events += self._scan.events
        self._restart()

    def _restart(self) -> None:
        self._scan = self._rewriter = None
        self._answer, self._answer_bytes = [], 0

    def _rewriting(self, prompt: Prompt) -> Rewriter:
        first = self._first
        self._rewriter = Rewriter(
            self._shape,
            self._usage,
            prompt_tokens=prompt.count,
            sent=len(self._sent),
            has_finish=first.is_finished,
            has_usage=first.has_usage_event,
        )
        return self._rewriter

    def _count(self, scan: AnswerScan | None) -> None:
        """Count the continuation in the scan of the whole answer."""
        assert self._prompt is not None
        assert self._rewriter is not None
        self._first.events += scan.events if scan is not None else 0
        self._first.prompt_tokens = self._prompt.count
        self._first.completion_tokens = self._rewriter.completion_tokens
        self._first.finish_reason = self._rewriter.finish_reason or self._first.finish_reason
