"""What one answer in transit is known to be: a stream or whole, finished, empty, malformed. Pure.

`AnswerScan` fills it from the answer's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from serving.router.answers.answer_content import NOT_MADE
from serving.router.answers.answer_events import has_data
from serving.router.answers.answer_facts import AnswerFacts
from serving.targets import TEXT_PATHS


@dataclass(slots=True)
class AnswerState(AnswerFacts):
    """State of one answer of status 2xx.

    path: of the request; determines how a stream must finish. content_type: of the answer, lower case.
    choices: how many the request asked for; None: not known.
    takes_ids: its engine's front names token ids in comments.   streams: the request asks for a stream.
    asks_whole: it is known to ask for none.   has_input: it gives what an answer with values has some of.
    inputs: of how many texts it asks for a value each; 0: not known.
    may_wait: False: it is known to ask for no response that is made later.
    """

    path: str
    content_type: str
    choices: int | None = 1
    takes_ids: bool = False
    streams: bool = False
    has_input: bool = False
    inputs: int = 0
    asks_whole: bool = False
    may_wait: bool = True
    events: int = 0  # of a stream, without [DONE]
    is_blank: bool = True  # nothing has come, or white space, which is no answer
    has_content: bool = False
    is_malformed: bool = False
    is_done: bool = False  # a stream said [DONE]
    is_stream: bool = field(init=False)  # server-sent events; until its first bytes by its content type
    _has_ended: bool = False
    _lacks_values: bool = False  # it is whole, and should have some
    _buffer: bytearray = field(default_factory=bytearray)  # an incomplete event, or a JSON answer so far
    _is_too_large: bool = False  # beyond a limit; no longer scanned
    _is_first: bool = True

    def __post_init__(self) -> None:
        self.is_stream = self.content_type.startswith("text/event-stream")
        self.streams = self.streams and not self.is_stream and self.path in TEXT_PATHS  # it is not known yet

    def _read_object(self, data: dict[str, Any]) -> None:
        AnswerFacts._read_object(self, data)
        if not self.may_wait:  # nobody asks for it again, nor has cancelled it
            is_open = not self.is_stream and data.get("status") in NOT_MADE
            self.has_error = self.has_error or is_open or data.get("type") == "response.cancelled"

    @property
    def is_known(self) -> bool:
        """True when its first bytes have said whether it is a stream."""
        return not self._is_first

    @property
    def is_finished(self) -> bool:
        """True when the stream has said all that it had to say, though its body may not have ended."""
        if self._has_stopped:
            return True
        if self.choices is None:
            return self._has_last_event or (bool(self._finished) and (self.is_done or self._has_ended))
        if self._goes_on and not (self.is_done or self._has_ended):
            return self._has_last_event
        count = self._finishes if self.is_done and not self._is_other_open else len(self._finished)
        return self._has_last_event or count >= max(self.choices, 1)

    @property
    def is_whole(self) -> bool:
        """True for a stream in which every choice has finished, and no error came."""
        return self.is_stream and self.is_finished and not self.has_error

    @property
    def has_last_event(self) -> bool:
        """True for a whole stream of which nothing can follow that its readers would take."""
        return self.is_whole and (self.is_done or self._has_last_event)

    @property
    def is_amid_event(self) -> bool:
        """True when the data of an event, or an answer that is no stream, has come in part."""
        if not self.is_stream or self._is_too_large:
            return True
        return not self._is_first and has_data(self._buffer)

    @property
    def is_between_events(self) -> bool:
        """True when what was passed on ends with a whole event, so that another may follow."""
        return self.is_stream and not self._is_too_large

    @property
    def is_empty(self) -> bool:
        """True when an answer that should hold text, or values, has none."""
        return self._lacks_values or (
            self.path in TEXT_PATHS and not (self.has_content or self._is_too_large or self.has_error)
        )

    @property
    def is_void(self) -> bool:
        """True for an empty answer in whose place another may be given: a response may be made later."""
        return self.is_empty and not self.says_why_empty and self.path != "/v1/responses"

    @property
    def is_too_large(self) -> bool:
        """True when what is beyond a limit was passed on unread."""
        return self._is_too_large

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept of an event, or of an answer that is no stream, that is not whole."""
        return len(self._buffer)

    @property
    def fault(self) -> str | None:
        """What is wrong with an answer from which nothing more comes, as a fixed word; None: nothing."""
        is_read = self.is_stream and not (self._is_too_large or self.has_error)
        return "cut" if is_read and self._lacks_end else self.defect

    @property
    def _lacks_end(self) -> bool:
        """True for a stream whose last event has not come; streams of some servers of speech have none."""
        if self.path in TEXT_PATHS:
            return not self.is_finished
        return self.events == 0 or (self._names_end and not (self.is_finished or self.is_done))

    @property
    def defect(self) -> str | None:
        """What is wrong with what has been read so far, as a fixed word; None: nothing. It has no effect."""
        if self.is_malformed:
            return "malformed"
        if self.has_error:
            return "error in the answer"
        return "empty" if self.is_empty and not self.says_why_empty else None
