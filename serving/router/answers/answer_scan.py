"""Scan of an answer's bytes in transit: whole events, content, finish of every choice, usage, id, errors.

Cheap by design: a read is searched with one regular expression, and only the few events that hold metadata
are parsed. Of a stream, whole events are passed on, as they came; the comment by which our engines name the
tokens of an event is taken out and its ids are kept (`token_ids`).

Rules:
1. A stream is complete when every choice has finished, when a message has said why it stops (that event is
   the last with anything in it), or when its API's last event says so. `[DONE]` alone says nothing
   where answers hold text; elsewhere it is enough, as is the end of a body that names no other end. Where the
   number of choices is not known, one must have finished; then [DONE] or the end of the body completes it.
2. A comment is no event, nor is a ping or white space; an event without content (a role) commits nobody.
3. The data of an event is a JSON object or [DONE]. From the first other one on, what an engine of ours says
   is not passed on.
4. An answer that our reading fails on is malformed, on either arm: of a canary stable answers in its place,
   stable's is passed on, unread from there. The log names the error and its place, once, and no text.
5. Whether it is a stream is said by its first bytes, as its readers take it, not by its content type: `{`
   begins a whole answer by any name, and `data:` a stream that was asked for. Events in place of a whole
   answer are malformed: clients give them out as one text.

Invariant: no text of an answer is kept but in its excerpt, and in no record.
"""

from __future__ import annotations

import logging
import re
import traceback
from array import array
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath

from serving.chat_events import BOM, data_of, says_nothing
from serving.router.answers.answer_content import (
    answer_says_something,
    event_says_something,
    holds_content,
    holds_tokens,
)
from serving.router.answers.answer_events import (
    TOKEN_COMMENT,
    begins_events,
    begins_object,
    end_of_events,
    events_of,
    holds_metadata,
    is_event,
    is_object,
    is_sound,
    is_value,
    may_have_failed,
    may_hold_metadata,
    may_say_nothing,
    token_ids_of,
    word_of,
)
from serving.router.answers.answer_excerpt import AnswerExcerpt
from serving.router.answers.answer_state import AnswerState
from serving.router.answers.answer_values import lacks_some, lacks_values
from serving.router.answers.event_shape import EventShape, shape_of
from serving.router.answers.outline import event_of, outline_of
from serving.router.answers.usual_answer import usual_answer
from serving.router.types import VALUE_PATHS
from serving.targets import TEXT_PATHS

GENERATE, SPEECH = "/inference/v1/generate", "/v1/audio/"
BLANKS_LIMIT = 64 << 10  # bytes of blanks before an answer; after more it is what its content type says
PARSE_LIMIT = 1 << 20  # bytes; a JSON answer or an event beyond this is passed on without being scanned
LINES_LIMIT = 4096  # of an event that comes in parts; each is a step, and beyond it is passed on so too

log = logging.getLogger("canaryctl.router")

_LEARNED_FROM = 4096  # bytes of a block whose events are read one by one until their shape is known


@dataclass(slots=True)
class AnswerScan(AnswerState):
    """Scanner of one answer of status 2xx: `feed` it every byte, then call `end`, unless it breaks off."""

    token_ids: array[int] = field(default_factory=partial(array, "I"))  # of the events so far
    has_bad_ids: bool = False  # what its engine named is no list of ids
    created: int | None = None  # of the first event
    model: str | None = None
    error_tail: bytes = b""  # the event of an error and what came with it, when `takes_ids`; not passed on
    rest: bytes | None = b""  # set by `end`: a last event without a blank line; None: it is not whole
    excerpt: AnswerExcerpt | None = None  # takes the answer's text; None: nobody asks for it
    _has_cr: bool = False  # in the buffer
    _lines: int = 0  # line ends in the buffer of a stream
    _is_object: bool = False  # what was too large begins as a JSON object
    _shape: EventShape | None = None  # of the last event, when others may have it

    def feed(self, data: bytes) -> bytes:
        """Scan the next bytes; what may be passed on: of a stream its whole events, else all."""
        self.is_blank = self.is_blank and (not data or data.isspace())
        if self._is_too_large:
            return data
        if self._is_first:
            if self._buffer:
                data = bytes(self._buffer) + data
                self._buffer.clear()
            if (are_events := self._begins_stream(data)) is None and len(data) <= BLANKS_LIMIT:
                self._buffer += data
                return b""
            self.is_stream = self.is_stream if are_events is None else are_events
            self._is_first = self.streams = False
            if self.is_stream and self.asks_whole:
                self.has_error = self.is_malformed = True
            data = data.removeprefix(BOM) if self.is_stream else data
        if self.is_stream and not self._buffer and data.endswith(b"\n\n") and data.find(b"\r") < 0:
            return self._take_events(data)
        known = len(self._buffer)
        self._buffer += data
        if self.is_stream:
            return self._read_buffer(known, b"\r" in data)
        if len(self._buffer) > PARSE_LIMIT:
            self._give_up()
        return data

    def _begins_stream(self, data: bytes) -> bool | None:
        """Whether these first bytes are those of a stream; None: they are too few to tell."""
        if self.is_stream:
            is_object = begins_object(data)
            return None if is_object is None else not is_object
        return begins_events(data) if self.streams else False

    def _read_buffer(self, known: int, has_cr: bool) -> bytes:
        """Read the whole events of the buffer, of which `known` bytes hold no end."""
        self._has_cr = self._has_cr or has_cr
        end = end_of_events(self._buffer, known, has_cr=self._has_cr)
        block = bytes(self._buffer[:end])
        if end:
            del self._buffer[:end]
            self._has_cr = self._has_cr and b"\r" in self._buffer
        start = 0 if end else known
        ends = (b"\n", b"\r") if self._has_cr else (b"\n",)
        lines = max(self._buffer.count(one, start) for one in ends)
        self._lines = lines if end else self._lines + lines
        is_large = len(self._buffer) > PARSE_LIMIT or self._lines > LINES_LIMIT
        rest = self._give_up() if is_large else b""
        return self._take_events(block) + rest if block else rest

    def _give_up(self) -> bytes:
        """Scan no more; the bytes that are not read."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        self._is_too_large, self._is_object = True, begins_object(rest) is True
        return rest

    def give_up(self) -> bytes:
        """Keep and scan nothing more, once its first bytes are known; what is still to be passed on."""
        rest = self._give_up() if self.is_known else b""
        return rest if self.is_stream else b""

    def end(self) -> str | None:
        """The body has ended as its framing declares: read what is left of it; the answer's `fault`."""
        self._has_ended = True
        if self.streams:
            self.rest = bytes(self._buffer)  # too few bytes to be known as an event
        rest = bytes(self._buffer)
        try:
            if not self.is_stream:
                self._read_whole()
            elif rest:
                self._read_rest(rest.split(b"\n"))
                self._buffer.clear()
        except Exception as exc:  # noqa: BLE001 - logged there
            self._unreadable(exc)
            self.rest = _without_comments(rest) if self.is_stream else b""
        return self.fault

    def _read_whole(self) -> None:
        """Read an answer that is no stream. Off the paths with text it may be of any form, or any JSON."""
        text, is_named = bytes(self._buffer), self.content_type.startswith("application/json")
        is_object = self._is_object if self._is_too_large else begins_object(text)
        if is_object or is_named:
            may_be_value = is_named and self.path not in TEXT_PATHS
            is_read = self._is_too_large or self._read_json_answer(text) or (may_be_value and is_value(text))
            if is_read and not (self._is_too_large or self.has_error) and self.path in VALUE_PATHS:
                self._lacks_values = self.has_input and (lacks_values(text) or lacks_some(text, self.inputs))
        else:
            is_read = False  # such as a page that asks to log in
        is_page = self.content_type.startswith("text/html")
        is_silent = self.path.startswith(SPEECH) and self.content_type.startswith("text/plain")
        is_nothing = self.is_blank and not is_silent  # what was heard may hold no word
        self.is_malformed = not is_read and (is_named or is_page or is_nothing or self.path in TEXT_PATHS)

    def _read_rest(self, lines: list[bytes]) -> None:
        """Read a last event without a blank line: events end so. It is of use only as the answer's end."""
        named = [one for one in lines if one.startswith(TOKEN_COMMENT)] if self.takes_ids else []
        kept = [one for one in lines if not one.startswith(TOKEN_COMMENT)]
        data = data_of(kept)
        if data != b"[DONE]" and not is_object(data):
            self.rest = None
            return
        self.rest, self.takes_ids = b"\n".join(kept), False
        self._take_events(self.rest + b"\n\n")
        if self.is_finished:
            for line in named:
                self._note_ids(line[len(TOKEN_COMMENT) :])

    def _take_events(self, block: bytes) -> bytes:
        """Read a block of whole events that has come; the block as it is passed on."""
        try:
            if self.excerpt is not None:
                self.excerpt.add(block)
            return self._read_events(block)
        except Exception as exc:  # noqa: BLE001 - logged there
            return _without_comments(block) + self._unreadable(exc)

    def _unreadable(self, exc: Exception) -> bytes:
        """Our reading has failed: by rule 4. What is left of the answer, to be passed on as it came."""
        place = traceback.extract_tb(exc.__traceback__)[-1]
        at = f"{PurePath(place.filename).name}:{place.lineno}"
        log.error("an answer could not be read", extra={"kind": type(exc).__name__, "at": at})
        self.has_error = self.is_malformed = True
        return self._give_up()

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
        is_plain = are_sound and not may_say_nothing(block)
        is_read_whole = self._finished and self._may_speak_on
        if self.has_content and is_plain and not (is_read_whole or may_hold_metadata(block)):
            self.events += block.count(b"\ndata:") + block.startswith(b"data:")
            self._shape = shape_of(block)
            return block
        self._shape = None  # after a finish each event is read
        lines = block.split(b"\n") if b"\r" not in block else re.split(rb"\r\n|\r|\n", block)
        name, parts = b"", list[bytes]()
        for line in lines:
            if line.startswith(b"data:"):
                parts.append(line[5:].strip())
            elif line.startswith(b"event:"):
                name = line[6:].strip()
            elif not line:
                data = parts[0] if len(parts) == 1 else b"\n".join(parts)
                if not says_nothing(name, data):
                    self._read_event(data)
                name, parts = b"", []
        return block

    @property
    def _may_speak_on(self) -> bool:
        """True while an event after a finish would say that it was none, or whose it was."""
        return bool(self._finished) and not (self._goes_on and self.choices == 1)

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
        self.events += 1
        self.has_content = self.has_content or holds_content(data)
        if self.path == GENERATE and not self.has_content:
            self.has_content = holds_tokens(data)
        if self.events == 1 or not self.has_content or self._may_speak_on or holds_metadata(data):
            event = event_of(data)
            self.has_content = self.has_content or event_says_something(event or {})
            if event is not None:
                self._read_object(event)
            if self.events == 1 and event is not None:
                created = event.get("created")
                self.created = created if type(created) is int else None
                self.model = word_of(event.get("model"))

    def _read_json_answer(self, text: bytes) -> bool:
        """Read a whole answer; False: it is no JSON object."""
        if text.find(b'"choices"') >= 0 and (usual := usual_answer(text)) is not None:
            self.answer_id, self.prompt_tokens, self.completion_tokens = usual[:3]
            self.finish_reason, self._finished, self.has_usage_event, self.cached_tokens = usual[3:]
        elif (answer := outline_of(text)) is not None:
            self._read_object(answer)
            self.has_error = self.has_error or (len(answer) == 1 and bool(answer.get("detail")))
        else:
            return False
        if self.excerpt is not None:
            self.excerpt.add(text)
        if self.path in TEXT_PATHS:  # elsewhere nobody asks
            self.has_content = holds_content(text) or answer_says_something(text)
        return True


def _without_comments(block: bytes) -> bytes:
    """The block without the comments in which an engine names ids."""
    if TOKEN_COMMENT not in block:
        return block
    return b"\n".join(line for line in block.split(b"\n") if not line.startswith(TOKEN_COMMENT))
