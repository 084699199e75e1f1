"""Golden sets: a user's own questions, each with what its answer must be. JSON lines; pure.

    {"messages": [{"role": "user", "content": "..."}], "reference": "...", "tags": ["a"], "max_tokens": 64}
    {"messages": [...], "checker": {"contains": "..."}}    or regex, equals, json_schema, number

Rules:
1. A line that cannot be used is an error with its number and the remedy: none is passed over. At most
   `MAX_BYTES` and `MAX_CASES`.
2. Patterns are matched in linear time (`schema_check.py`); others are errors.

Invariant: no text of a line is in an error or a `repr`; names of fields and tags are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from serving.chat_events import BOM
from serving.judging.golden_checks import Check, check_of, reference_check

MAX_BYTES = 16 << 20  # of a set
MAX_CASES = 2000
MAX_MESSAGES = 200  # of a case
MAX_TOKENS = 8192  # that a case may ask for
DEFAULT_TOKENS = 512
MAX_TAGS, TAG_LIMIT = 16, 64  # of a case; characters
MAX_NAMED = 20  # errors that are named; the others are counted

Role = Literal["system", "developer", "user", "assistant", "tool"]


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[dict[str, Any]]
    reference: str | None = None
    checker: dict[str, Any] | None = None
    tags: list[str] = []  # msgspec copies an empty list
    max_tokens: int = DEFAULT_TOKENS


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One question with its check. line: its number in the file, from 1."""

    line: int
    messages: tuple[Mapping[str, Any], ...] = field(repr=False)
    check: Check = field(repr=False)
    tags: tuple[str, ...]
    max_tokens: int

    @property
    def body(self) -> dict[str, Any]:
        """The request, without model and temperature."""
        return {"messages": list(self.messages), "max_tokens": self.max_tokens}


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """All cases of a file. digest: SHA-256 of its bytes, in hex."""

    cases: tuple[GoldenCase, ...]
    digest: str


class BadGolden(ValueError):
    """A golden set that cannot be used; `lines` has one line for each reason."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def golden_set(data: bytes, *, name: str) -> GoldenSet:
    """The cases of a file's bytes. name: of the file, for errors. Raises BadGolden."""
    if len(data) > MAX_BYTES:
        raise BadGolden((f"{name} has {len(data)} bytes, more than {MAX_BYTES}; give a part of it",))
    cases, wrong = [], []
    for number, line in enumerate(data.removeprefix(BOM).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            cases.append(_case(number, line))
        except ValueError as exc:
            wrong.append(f"{name} line {number}: {exc}")
    if wrong:
        more = (f"{name}: {len(wrong) - MAX_NAMED} more lines are wrong",) if len(wrong) > MAX_NAMED else ()
        raise BadGolden((*wrong[:MAX_NAMED], *more))
    if not cases:
        raise BadGolden((f"{name} holds no case; write one JSON object a line, with messages and reference",))
    if len(cases) > MAX_CASES:
        raise BadGolden((f"{name} holds {len(cases)} cases, more than {MAX_CASES}; give a part of it",))
    return GoldenSet(tuple(cases), hashlib.sha256(data).hexdigest())


def _case(number: int, line: bytes) -> GoldenCase:
    """Raises ValueError, with what is wrong and the remedy."""
    try:
        read = msgspec.json.decode(line, type=_Line)
    except msgspec.ValidationError as exc:  # names the field and its types, never a value
        raise ValueError(f"{exc}; see docs/preflight.md for the fields") from None
    except (ValueError, RecursionError):
        raise ValueError("is no JSON object; write one object a line") from None
    if not 1 <= len(read.messages) <= MAX_MESSAGES:
        raise ValueError(f"has {len(read.messages)} messages; give 1 to {MAX_MESSAGES}")
    for place, message in enumerate(read.messages):
        _check_message(place, message)
    if not 1 <= read.max_tokens <= MAX_TOKENS:
        raise ValueError(
            f"max_tokens {read.max_tokens} is outside 1..{MAX_TOKENS}; {DEFAULT_TOKENS} if left out"
        )
    if len(read.tags) > MAX_TAGS or any(not 0 < len(tag) <= TAG_LIMIT for tag in read.tags):
        raise ValueError(f"tags are at most {MAX_TAGS}, of 1 to {TAG_LIMIT} characters; shorten them")
    if (read.reference is None) == (read.checker is None):
        raise ValueError("has both reference and checker, or neither; give one")
    check = reference_check(read.reference) if read.reference is not None else check_of(read.checker or {})
    return GoldenCase(number, tuple(read.messages), check, tuple(dict.fromkeys(read.tags)), read.max_tokens)


def _check_message(place: int, message: Mapping[str, Any]) -> None:
    roles = Role.__args__  # type: ignore[attr-defined]
    if message.get("role") not in roles:
        raise ValueError(f"messages[{place}].role is none of {', '.join(roles)}")
    content = message.get("content")
    if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
        raise ValueError(f"messages[{place}].content is neither a text nor a list of parts; write a text")
