"""Whether what an engine answers is an answer, has begun, and is of use. Pure."""

from __future__ import annotations

from typing import cast

from serving.router.answers.answer_scan import AnswerScan
from serving.router.types import Failure
from serving.targets import TEXT_PATHS

_UNUSABLE = frozenset({"error in the answer", "malformed", "empty"})
_WHOLE = frozenset({200, 201, 203})


def failure_of(status: int | None, *, asked: str | None = None) -> str | None:
    """Why an answer with this status is none; None: it may be one, or is a 4xx. A redirect is a failure too.

    asked: the path of a request that asks a model for an answer; None: another one. Where an answer holds
    text its content says whether it is one, with any 2xx; elsewhere nothing says so of a 202, 204 or 206.
    """
    if status is None or status == 200:
        return None
    is_judged_by_content = asked is None or asked in TEXT_PATHS
    is_other = not is_judged_by_content and 200 <= status < 300 and status not in _WHOLE
    has_failed = status >= 500 or status == 429 or 300 <= status < 400 or is_other
    return f"status {status}" if has_failed else None


def is_read(status: int, *, asked: str | None) -> bool:
    """Whether the content of an answer with this status says what the answer is."""
    return asked is not None and 200 <= status < 300 and failure_of(status, asked=asked) is None


def has_begun(scan: AnswerScan, *, is_canary: bool) -> bool:
    """Whether an answer of status 2xx has begun: a first content, an error, or what is no stream.

    A head is no answer, nor are comments or white space: a front may write them before its engine has said
    anything, and again and again while that hangs.
    """
    is_whole = scan.is_finished and not (scan.is_void and is_canary)
    is_text = not (scan.is_stream or scan.is_blank or scan.streams)  # streams: it is not known yet
    return scan.has_content or scan.has_error or is_text or is_whole


def unusable(scan: AnswerScan, cause: str | None, *, is_canary: bool) -> Failure | None:
    """Why an answer, of which the client has seen nothing, is of no use; None: it is passed on.

    cause: its defect, None: it has none.
    """
    if scan.is_stream and cause == "cut" and (is_canary or not scan.has_content):
        return "cut"
    if not is_canary or cause not in _UNUSABLE or (cause == "empty" and not scan.is_void):
        return None
    return cast(Failure, cause)
