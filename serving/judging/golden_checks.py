"""Checkers of golden sets: whether an answer is right, by a rule that its author wrote. Pure, linear time.

A long answer is as right as a short one: the budget of `schema_check.py` is for what clients of a router
write, and a set is its operator's. An answer that even `WORK_OF_AN_ANSWER` is too little for is not judged.

A reference is right where the answer holds it, in any case, spacing, punctuation and markup; one of more than
`CONTAINED_WORDS` words where the F1 of their words is at least `MIN_F1`. One of up to `SHORT_REFERENCE`
characters is none: answers hold such by chance ("a better choice").

Source: the F1 of words as in SQuAD (Rajpurkar et al. 2016), without leaving out English articles.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Mapping
from typing import Any

from serving.json_value import json_value
from serving.judging.schema_check import SchemaChecks

# Whether an answer is right; None: its checker cannot tell, which is never a fault of the answer.
Check = Callable[[str], bool | None]
WORK_OF_AN_ANSWER = 400_000_000  # as WORK_LIMIT: some 20 s of the slowest pattern, at most
CONTAINED_WORDS = 12
MIN_F1 = 0.5
PATTERN_LIMIT = 1000  # characters of a regular expression
_NAMES = ("contains", "regex", "equals", "json_schema", "number")
SHORT_REFERENCE = 2
# A sign after a digit or a letter is a dash: 10-12, 2023-12-03. Thousands are parted by commas, apostrophes
# and the blanks that do not break.
_NUMBER = re.compile(
    r"(?:(?<![\w%\u00b0])[-+\u2212])?"
    r"(?:(?:\d{1,3}(?:[,'\u2019\u00a0\u2009\u202f]\d{3})+|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d{1,3})?"
)
_PARTING = dict.fromkeys(map(ord, ",'\u2019\u00a0\u2009\u202f")) | {0x2212: "-"}
# Symbols that say something at the edge of a word: C++, >30. Other ones are markup: `main.py`, $5$.
_SAYING = "+<>\u2212\u2264\u2265\u2260\u00b1"
_MARKS = {0x2120: None, 0x2122: None}
_TEXT_LIMIT = 1 << 16  # characters of an answer in which numbers are looked for, from its end
# Of scripts that part no words by blanks, or hang particles on them.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def check_of(checker: Mapping[str, Any]) -> Check:
    """The check that a checker names. Raises ValueError with what is wrong and the remedy."""
    if len(checker) != 1 or next(iter(checker)) not in _NAMES:
        raise ValueError(f"checker must hold exactly one of {', '.join(_NAMES)}")
    name, value = next(iter(checker.items()))
    makers: Mapping[str, Callable[[Any], Check]] = {
        "contains": _contains,
        "regex": _regex,
        "equals": _equals,
        "json_schema": _json_schema,
        "number": _number,
    }
    return makers[name](value)


def reference_check(reference: str) -> Check:
    """Whether an answer agrees with a reference. Raises ValueError for one without a word."""
    wanted = normalised(reference)
    if not wanted:
        raise ValueError("reference holds no word; write the right answer")
    kept = frozenset(one for one in wanted if _is_symbol(one))
    words = wanted.split()
    if _UNSPACED.search(wanted) and len(words) <= CONTAINED_WORDS:
        return lambda answer: wanted in normalised(answer, kept)
    if len(wanted) <= SHORT_REFERENCE:
        raise ValueError(
            f"reference has {len(wanted)} characters, which wrong answers hold too; give a checker: equals, "
            "number or regex"
        )
    if len(words) <= CONTAINED_WORDS:
        return lambda answer: f" {wanted} " in f" {normalised(answer, kept)} "
    return lambda answer: word_f1(words, normalised(answer, kept).split()) >= MIN_F1


def normalised(text: str, kept: Container[str] | None = None) -> str:
    """The words of a text, one blank between them: NFKC, without case and punctuation.

    A point or comma between digits stays: 1.5 is no 15. kept: symbols that stay at the edge of a word, with
    those of `_SAYING`; None: all. Check: '  The  answer: 1.5 kg!' gives 'the answer 1.5 kg'; with () kept,
    'x=$30 in `C++`' gives 'x 30 in c++'.
    """
    # NFKC makes letters of the signs of trade marks.
    folded = unicodedata.normalize("NFKC", text.translate(_MARKS)).casefold()
    found = []
    for place, one in enumerate(folded):
        if one != "=" and (one.isalnum() or unicodedata.category(one).startswith(("M", "S"))):
            found.append(one)
            continue
        is_inside = one in ".," and 0 < place < len(folded) - 1
        is_of_number = is_inside and folded[place - 1].isdigit() and folded[place + 1].isdigit()
        found.append(one if is_of_number else " ")
    words = "".join(found).split()
    if kept is not None:
        words = [bare for word in words if (bare := _without_markup(word, kept))]
    return " ".join(words)


def _without_markup(word: str, kept: Container[str]) -> str:
    """The word without the symbols at its edges that say nothing."""
    start, end = 0, len(word)
    while start < end and _is_symbol(word[start]) and word[start] not in kept:
        start += 1
    while end > start and _is_symbol(word[end - 1]) and word[end - 1] not in kept:
        end -= 1
    return word[start:end]


def _is_symbol(one: str) -> bool:
    is_saying = one in _SAYING
    return not is_saying and (one == "\ufe0f" or unicodedata.category(one).startswith("S"))


def word_f1(wanted: list[str], said: list[str]) -> float:
    """Harmonic mean of precision and recall of words, 0 to 1. Check: 'a b c', 'b c d d' give 4/7."""
    shared = sum((Counter(wanted) & Counter(said)).values())
    return 2 * shared / (len(wanted) + len(said)) if shared else 0.0


def _contains(value: Any) -> Check:
    wanted = [value] if isinstance(value, str) else value
    is_list = isinstance(wanted, list) and wanted and all(isinstance(one, str) and one for one in wanted)
    if not is_list:
        raise ValueError("checker.contains is no text and no list of texts; write what the answer must hold")
    return lambda answer: all(one in answer for one in wanted)


def _equals(value: Any) -> Check:
    if not isinstance(value, str):
        raise ValueError("checker.equals is no text; write the whole answer")
    return lambda answer: answer.strip() == value.strip()


def _regex(value: Any) -> Check:
    if not isinstance(value, str) or not 0 < len(value) <= PATTERN_LIMIT:
        raise ValueError(
            f"checker.regex is no text of 1 to {PATTERN_LIMIT} characters; write a shorter pattern"
        )
    schema = {"type": "string", "pattern": value}
    if SchemaChecks().conforms(schema, "") is None:
        raise ValueError(
            "checker.regex is no pattern of linear time; leave out look-around and back references"
        )
    return lambda answer: SchemaChecks(WORK_OF_AN_ANSWER).conforms(schema, answer)


def _json_schema(value: Any) -> Check:
    if not isinstance(value, dict | bool) or SchemaChecks().conforms(value, None) is None:
        raise ValueError(
            "checker.json_schema is no JSON Schema, or too large a one; references are not fetched"
        )

    def check(answer: str) -> bool | None:
        data = _unfenced(answer).encode("utf-8", "replace")
        found = json_value(data)
        is_json = found is not None or data.strip() == b"null"
        return SchemaChecks(WORK_OF_AN_ANSWER).conforms(value, found) if is_json else False

    return check


def _unfenced(answer: str) -> str:
    """The content of an answer that is one fenced block of Markdown, else the answer."""
    text = answer.strip()
    first, newline, rest = text.partition("\n")
    is_block = newline and first.strip().lower() in ("```", "```json") and rest.endswith("```")
    return rest.removesuffix("```") if is_block else answer


def _number(value: Any) -> Check:
    """The last number of the answer is this one."""
    parts = value if isinstance(value, dict) else {"value": value}
    wanted, tolerance = _finite(parts.get("value")), _finite(parts.get("tolerance", 0))
    if wanted is None or tolerance is None or tolerance < 0 or set(parts) - {"value", "tolerance"}:
        raise ValueError('checker.number is no number; write 42, or {"value": 42, "tolerance": 0.5}')
    allowed = max(tolerance, 1e-9 * max(1.0, abs(wanted)))  # not each decimal has a float

    def check(answer: str) -> bool:
        found = _NUMBER.findall(answer[-_TEXT_LIMIT:])
        if not found:
            return False
        said = float(found[-1].translate(_PARTING))
        return abs(said - wanted) <= allowed

    return check


def _finite(value: Any) -> float | None:
    """The number as a float; None: it is none, or none that a float holds."""
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
