"""Scan of an answer's bytes in transit: whole events, content, finish of every choice, usage, id, errors.

Cheap by design: a read is searched with one regular expression, and only the few events that hold metadata
are parsed. Of a stream, whole events are passed on, as they came; the comment by which our engines name the
tokens of an event is taken out and its ids are kept (`token_ids`).

Rules:
1. A stream is complete when every choice has finished, or when its API's last event says so. `[DONE]` alone
   says nothing, and an end of the body is enough only on paths whose answers hold no text. Where the number
   of choices is not known, one must have finished, and then [DONE] or the end of the body completes it.
2. A comment is no event, nor is a ping or white space; an event without content (a role) commits nobody.
3. The data of an event is a JSON object or [DONE]. From the first other one on, what an engine of ours says
   is not passed on.

Invariant: no text of an answer is kept, only whether there was any.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import Any

from serving.router.answers.answer_content import CONTENT, answer_says_something, event_says_something
from serving.router.answers.answer_events import (
    BOM,
    LAST_TYPES,
    METADATA,
    TOKEN_COMMENT,
    begins_events,
    count_of,
    data_of,
    end_of_events,
    events_of,
    has_data,
    has_failed,
    is_event,
    is_sound,
    json_object,
    may_be_index,
    may_have_failed,
    may_hold_metadata,
    token_ids_of,
    word_of,
)
from serving.router.answers.event_shape import EventShape, shape_of
from serving.router.answers.outline import outline_of
from serving.router.answers.usual_answer import usual_answer
from serving.router.types import TEXT_PATHS

BLANKS_LIMIT = 64 << 10  # bytes of line ends before a first event; what begins with more is no stream
PARSE_LIMIT = 1 << 20  # bytes; a JSON answer or an event beyond this is passed on without being scanned

_PING = re.compile(rb'\{\s*"type"\s*:\s*"ping"')
_LEARNED_FROM = 4096  # bytes of a block whose events are read one by one until their shape is known


@dataclass(slots=True)
class AnswerScan:
    """Scanner of one answer with status 200: `feed` it every byte, then call `end`, unless it breaks off.

    path: of the request; determines how a stream must finish. content_type: of the answer, lower case.
    choices: how many the request asked for; None: not known.
    takes_ids: its engine's front names token ids in comments.   streams: the request asks for a stream, which
    is known by its first bytes if its engine names another content type.
    """

    path: str
    content_type: str
    choices: int | None = 1
    takes_ids: bool = False
    streams: bool = False
    answer_id: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    events: int = 0  # of a stream, without [DONE]
    is_blank: bool = True  # nothing has come, or white space, which is no answer
    has_content: bool = False
    has_error: bool = False  # the engine reported an error inside the answer
    is_malformed: bool = False
    is_done: bool = False  # a stream said [DONE]
    has_usage_event: bool = False  # an event of a stream said only the usage
    token_ids: array[int] = field(default_factory=lambda: array("I"))  # of the events so far
    has_bad_ids: bool = False  # what its engine named is no list of ids
    created: int | None = None  # of the first event
    model: str | None = None
    error_tail: bytes = b""  # the event of an error and what came with it, when `takes_ids`; not passed on
    is_stream: bool = field(init=False)  # server-sent events
    _finished: set[int] = field(default_factory=set)  # indices of choices
    _finishes: int = 0  # of choices, whose indices some engines all call 0
    _has_last_event: bool = False
    _has_stopped: bool = False  # an event of Anthropic's API said why it stops
    rest: bytes | None = b""  # set by `end`: a last event without a blank line; None: it is not whole
    _has_ended: bool = False
    _buffer: bytearray = field(default_factory=bytearray)  # an incomplete event, or a JSON answer so far
    _has_cr: bool = False  # in the buffer
    _is_too_large: bool = False  # beyond PARSE_LIMIT; no longer scanned
    _is_first: bool = True
    _shape: EventShape | None = None  # of the last event, when others may have it

    def __post_init__(self) -> None:
        self.is_stream = self.content_type.startswith("text/event-stream")
        self.streams = self.streams and not self.is_stream and self.path in TEXT_PATHS  # it is not known yet

    @property
    def is_finished(self) -> bool:
        """True when the stream has said all that it had to say, though its body may not have ended."""
        if self._has_stopped and (self.is_done or self._has_ended):
            return True
        if self.choices is None:
            return self._has_last_event or (bool(self._finished) and (self.is_done or self._has_ended))
        count = self._finishes if self.is_done else len(self._finished)
        return self._has_last_event or count >= max(self.choices, 1)

    @property
    def is_whole(self) -> bool:
        """True for a stream in which every choice has finished, and no error came."""
        return self.is_stream and self.is_finished and not self.has_error

    @property
    def is_amid_event(self) -> bool:
        """True when the data of an event, or an answer that is no stream, has come in part."""
        return not self.is_stream or self._is_too_large or has_data(self._buffer)

    @property
    def is_between_events(self) -> bool:
        """True when what was passed on ends with a whole event, so that another may follow."""
        return self.is_stream and not self._is_too_large

    @property
    def is_empty(self) -> bool:
        """True when an answer that should hold text has none."""
        return self.path in TEXT_PATHS and not (self.has_content or self._is_too_large or self.has_error)

    @property
    def is_void(self) -> bool:
        """True for an empty answer in whose place another may be given: a response may be made later."""
        return self.is_empty and self.path != "/v1/responses"

    def feed(self, data: bytes) -> bytes:
        """Scan the next bytes; what may be passed on: of a stream its whole events, else all."""
        self.is_blank = self.is_blank and (not data or data.isspace())
        if self._is_too_large:
            return data
        if self._is_first:
            if self._buffer:
                data = bytes(self._buffer) + data
                self._buffer.clear()
            if self.streams:
                if (are_events := begins_events(data)) is None and len(data) <= BLANKS_LIMIT:
                    self._buffer += data
                    return b""
                self.is_stream, self.streams = bool(are_events), False
            if self.is_stream and len(data) < len(BOM) and BOM.startswith(data):
                self._buffer += data  # perhaps a mark of byte order, which is no part of the first event
                return b""
            self._is_first = False
            data = data.removeprefix(BOM) if self.is_stream else data
        if self.is_stream and not self._buffer and data.endswith(b"\n\n") and b"\r" not in data:
            return self._read_events(data)
        known = len(self._buffer)
        self._buffer += data
        if self.is_stream:
            return self._read_buffer(known, b"\r" in data)
        if len(self._buffer) > PARSE_LIMIT:
            self._give_up()
        return data

    def _read_buffer(self, known: int, has_cr: bool) -> bytes:
        """Read the whole events of the buffer, of which `known` bytes hold no end."""
        self._has_cr = self._has_cr or has_cr
        end = end_of_events(self._buffer, known, has_cr=self._has_cr)
        block = bytes(self._buffer[:end])
        if end:
            del self._buffer[:end]
            self._has_cr = self._has_cr and b"\r" in self._buffer
        rest = self._give_up() if len(self._buffer) > PARSE_LIMIT else b""
        return self._read_events(block) + rest if block else rest

    def _give_up(self) -> bytes:
        """Scan no more; the bytes that are not read."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        self._is_too_large = True
        return rest

    def end(self) -> str | None:
        """The body has ended as its framing declares: read what is left of it; the answer's `fault`."""
        self._has_ended = True
        if self.streams:
            self.rest = bytes(self._buffer)  # too few bytes to be known as an event
        if self.is_stream:
            if self._buffer:
                self._read_rest(bytes(self._buffer).split(b"\n"))
                self._buffer.clear()
        elif self.content_type.startswith("application/json"):
            if not self._is_too_large:
                self._read_json_answer()
        elif self.path in TEXT_PATHS or self.content_type.startswith("text/html"):
            self.is_malformed = True  # such as a page that asks to log in
        return self.fault

    def _read_rest(self, lines: list[bytes]) -> None:
        """Read a last event without a blank line: events end so. It is of use only as the answer's end."""
        named = [one for one in lines if one.startswith(TOKEN_COMMENT)] if self.takes_ids else []
        kept = [one for one in lines if not one.startswith(TOKEN_COMMENT)]
        data = data_of(kept)
        if data != b"[DONE]" and json_object(data) is None:
            self.rest = None
            return
        self.rest, self.takes_ids = b"\n".join(kept), False
        self._read_events(self.rest + b"\n\n")
        if self.is_finished:
            for line in named:
                self._note_ids(line[len(TOKEN_COMMENT) :])

    @property
    def fault(self) -> str | None:
        """What is wrong with an answer from which nothing more comes, as a fixed word; None: nothing."""
        needs_finish = self.is_stream and self.path in TEXT_PATHS and not self._is_too_large
        return "cut" if needs_finish and not (self.is_finished or self.has_error) else self.defect

    @property
    def defect(self) -> str | None:
        """What is wrong with what has been read so far, as a fixed word; None: nothing. It has no effect."""
        if self.is_malformed:
            return "malformed"
        if self.has_error:
            return "error in the answer"
        return "empty" if self.is_empty else None

    def _read_events(self, block: bytes) -> bytes:
        """Read a block of whole events; the block as it is passed on."""
        if self.takes_ids:
            line, _, event = block.partition(b"\n")
            is_known = self._shape is not None and line.startswith(TOKEN_COMMENT)
            if not (is_known and self._shape is not None and self._shape.run(event) == (1, len(event))):
                return self._read_block(block)
            self._note_ids(line[len(TOKEN_COMMENT) :])
            self.events += 1
            return event
        at, size = 0, len(block)
        while self._shape is None and at < _LEARNED_FROM and b"\r" not in block:
            end = block.find(b"\n\n", at) + 2
            if not at < end < size:  # one is left, perhaps with further line ends
                break
            self._read_block(block[at:end])
            at = end
        if self._shape is not None:
            count, at = self._shape.run(block, at)
            self.events += count
        if at < size:
            self._read_block(block[at:] if at else block)
        return block

    def _read_block(self, block: bytes) -> bytes:
        """Read a block of events that are of no known shape."""
        are_sound = is_sound(block)
        if self.takes_ids:
            if may_have_failed(block) or not are_sound:
                return self._read_until_error(block)
            if TOKEN_COMMENT in block:
                block = self._without_ids(block)
        elif not are_sound and not all(is_event(one) for one in events_of(block)):
            self.is_malformed = True
        if self.has_content and not may_hold_metadata(block):
            self.events += block.count(b"\ndata:") + block.startswith(b"data:")
            self._shape = shape_of(block) if are_sound else None
            return block
        lines = block.split(b"\n") if b"\r" not in block else re.split(rb"\r\n|\r|\n", block)
        parts: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                parts.append(line[5:].strip())
            elif not line and parts:
                self._read_event(parts[0] if len(parts) == 1 else b"\n".join(parts))
                parts = []
        return block

    def _without_ids(self, block: bytes) -> bytes:
        if block.startswith(TOKEN_COMMENT) and block.find(TOKEN_COMMENT, 1) < 0:  # most often
            line, _, rest = block.partition(b"\n")
            self._note_ids(line[len(TOKEN_COMMENT) :])
            return rest
        kept = []
        for line in block.split(b"\n"):
            if line.startswith(TOKEN_COMMENT):
                self._note_ids(line[len(TOKEN_COMMENT) :])
            else:
                kept.append(line)
        return b"\n".join(kept)

    def _note_ids(self, text: bytes) -> None:
        if (ids := token_ids_of(text)) is None:
            self.has_bad_ids = True
        else:
            self.token_ids.extend(ids)

    def _read_until_error(self, block: bytes) -> bytes:
        """Read event after event, so that the ids are those of the events before an error or garbage."""
        passed = []
        events = events_of(block)
        for index, event in enumerate(events):
            if self.is_done:
                break  # nothing can follow
            known, had_bad_ids = len(self.token_ids), self.has_bad_ids
            plain = self._without_ids(event + b"\n\n")
            if is_event(event, is_ours=True):
                self.takes_ids = False
                self._read_events(plain)
                self.takes_ids = True
            else:
                self.has_error = self.is_malformed = True
            if self.has_error:
                del self.token_ids[known:]
                rest = b"".join(one + b"\n\n" for one in events[index + 1 :])
                self.error_tail = plain + self._without_ids(rest)
                del self.token_ids[known:]
                self.has_bad_ids = had_bad_ids  # those before the error are what another goes on from
                break
            passed.append(plain)
        return b"".join(passed)

    def _read_event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.is_done = True
            return
        if _PING.match(data):
            return
        self.events += 1
        self.has_content = self.has_content or CONTENT.search(data) is not None
        if self.events == 1 or not self.has_content or METADATA.search(data):
            event = json_object(data)
            self.has_content = self.has_content or event_says_something(event or {})
            self._read_object(event)
            if self.events == 1 and event is not None:
                created = event.get("created")
                self.created = created if type(created) is int else None
                self.model = word_of(event.get("model"))

    def _read_json_answer(self) -> None:
        text = bytes(self._buffer)
        if b'"choices"' in text and (usual := usual_answer(text)) is not None:
            self.answer_id, self.prompt_tokens, self.completion_tokens = usual[:3]
            self.finish_reason, self._finished, self.has_usage_event = usual[3:]
        elif (answer := outline_of(text)) is not None:
            self._read_object(answer)
        else:
            self.is_malformed = True
        if self.path in TEXT_PATHS and not self.is_malformed:  # elsewhere nobody asks
            self.has_content = CONTENT.search(text) is not None or answer_says_something(text)

    def _read_object(self, data: dict[str, Any] | None) -> None:
        """Read one JSON object: a whole answer or one event, of any of the served APIs."""
        if data is None:
            return
        kind = data.get("type")
        if data.get("error") or kind in ("error", "response.failed"):
            self.has_error = True
        if isinstance(kind, str) and kind in LAST_TYPES:
            self._has_last_event = True
        inner = data.get("response") or data.get("message")
        for fields in (data, inner) if isinstance(inner, dict) else (data,):
            self._read_id_and_usage(fields)
        choices = data.get("choices")
        if isinstance(choices, list):
            self.has_usage_event = self.has_usage_event or (not choices and bool(data.get("usage")))
            for choice in choices:
                if isinstance(choice, dict):
                    self._read_choice(choice)
        delta = data.get("delta")
        if isinstance(delta, dict) and (reason := word_of(delta.get("stop_reason"))):
            self.finish_reason, self._has_stopped = reason, True

    def _read_choice(self, choice: dict[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if not reason:  # some servers write '' where others write null
            return
        self.has_error = self.has_error or has_failed(reason)
        index = choice.get("index", 0)
        if isinstance(index, int):
            if may_be_index(index):
                self._finished.add(index)
            self._finishes += 1
        self.finish_reason = word_of(reason) or self.finish_reason

    def _read_id_and_usage(self, fields: dict[str, Any]) -> None:
        if self.answer_id is None:
            self.answer_id = word_of(fields.get("id"))
        self.finish_reason = word_of(fields.get("stop_reason")) or self.finish_reason
        details = fields.get("incomplete_details")
        if isinstance(details, dict):
            self.finish_reason = word_of(details.get("reason")) or self.finish_reason
        usage = fields.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = count_of(usage, "prompt_tokens", "input_tokens", self.prompt_tokens)
            self.completion_tokens = count_of(
                usage, "completion_tokens", "output_tokens", self.completion_tokens
            )
