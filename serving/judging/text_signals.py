"""Signals of a text: repetition, compressibility, special tokens, refusal, language. Pure; no model is asked.

None of them says that an answer is wrong. A version whose answers differ from stable's in one of them has
changed in a way that users see: a loop, a template that does not fit, a language that nobody asked for.

Source: repeated n-grams as in Gopher's quality filters (Rae et al. 2021, table A1); compression ratio as in
Whisper's decoder (Radford et al. 2022, section 4.5); languages by CLD2.
"""

from __future__ import annotations

import itertools
import re
import zlib

import pycld2

GRAM = 4  # words
MIN_GRAMS = 60  # fewer say little of repetition
MIN_COMPRESSED = 1024  # bytes; the compression of less is mostly that of the format's header
EXCERPT = 4096  # characters of each end of a long text by which repetition and compression are measured
LANGUAGE_CHARACTERS = 160  # of which the language is told; more seldom changes it
LANGUAGE_BYTES = 24  # in fewer the language is not told
OPENING_CHARACTERS = 240  # in which a refusal shows itself
# Languages that are told: those of many texts. Code and lists of names look like rarer ones to a detector.
_CODES = (
    "ar bg bn ca cs da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv ml mr"
    " nl no pa pl pt ro ru sk sl sr sv sw ta te th tl tr uk ur vi zh zh-Hant"
)
LANGUAGES = frozenset(_CODES.split())

# Tokens of chat templates and tokenizers. `</s>` counts at the end only: elsewhere it closes HTML's <s>.
_SPECIAL = re.compile(
    r"<\|[A-Za-z0-9_]{2,40}\|>|<｜[^｜<>\n]{2,40}｜>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<(?:bos|eos|pad|unk|sop|eop|unused\d{1,4})>|\[gMASK\]|\[\|(?:endofturn|system|user|assistant)\|\]"
    # Thoughts and calls that a parser was to take out.
    r"|</?(?:think|tool_call)>|\[(?:TOOL_CALLS|ARGS)\]|<\|(?:tool\w{0,40}|channel|turn)>"
    r"|<(?:tool\w{0,40}|channel|turn)\|>|</s>\s*\Z"
)
TOKENS_LIMIT = 16  # of an answer, that are looked for in its request
# Brackets and bars as JSON may write them. A pass for each takes a tenth of what a pattern for all takes.
_ESCAPED = {
    f"\\u{written}": character
    for character, code in (
        ("<", "003c"),
        (">", "003e"),
        ("|", "007c"),
        ("\uff5c", "ff5c"),
        ("\u2581", "2581"),
    )
    for written in {"".join(one) for one in itertools.product(*({c, c.upper()} for c in code))}
}
# One of these is in each; of most texts nothing else is searched for.
_SPECIAL_PARTS = (
    *("<|", "<｜", "[INST]", "[/INST]", "SYS>>", "_of_turn>"),
    *("<bos>", "<eos>", "<pad>", "<unk>", "</s>", "<sop>", "<eop>", "<unused", "[gMASK]", "[|"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "|>"),
)

_CANNOT = r"(?:cannot|can't|can not|won't|will not|unable to|not able to|decline to)"
_DONE = (
    r"(?:help|assist|comply|fulfil|fulfill|provide|answer|do that|discuss|create|write|generate|support"
    r"|engage|share|give|continue|browse)"
)
_REFUSALS = re.compile(
    rf"\b(?:sorry|afraid|apologi[sz]e)\b[^.!?\n]{{0,40}}\b{_CANNOT}"
    rf"|\b(?:i|we)(?:'m| am|'re| are| must| have to)? {_CANNOT} (?:\w+ly )?{_DONE}\b"
    rf"|\bas an (?:ai|artificial intelligence)\b[^.!?\n]{{0,60}}\b{_CANNOT}"
    r"|\b(?:tut mir leid|entschuldigung)\b[^.!?\n]{0,60}\bnicht\b"
    r"|\bje (?:suis désolé|regrette|ne peux pas (?:vous )?aider)\b"
    r"|\blo siento\b[^.!?\n]{0,60}\bno puedo\b"
    r"|抱歉[^。！？\n]{0,20}(?:不能|无法)|申し訳[^。\n]{0,30}(?:できません|できかね)"
)
# One of these is in each; most answers are not searched further.
_REFUSAL_PARTS = (
    *("cannot", "can't", "can not", "won't", "will not", "unable to", "not able to", "decline to"),
    *("mir leid", "entschuldigung", "je suis", "je regrette", "je ne", "lo siento", "抱歉", "申し訳"),
)
_CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160), 0xFFFE, 0xFFFF], " ")


def repeated_share(text: str) -> float | None:
    """Share of the 4-grams of words that were there before, 0 to 1; None: fewer than MIN_GRAMS of them.

    Where words are not parted by blanks (Chinese, Japanese) characters are counted in their place.
    Check: "a b c d " * 30 gives 113/117.
    """
    text = _excerpt(text)
    words = text.split()
    parts: list[str] | str = words if len(words) * 12 >= len(text) else text
    count = len(parts) - GRAM + 1
    if count < MIN_GRAMS:
        return None
    return 1.0 - len(set(zip(parts, parts[1:], parts[2:], parts[3:], strict=False))) / count


def compression_ratio(text: str) -> float | None:
    """Bytes of the UTF-8 text by those that zlib makes of it, at least about 1; None: too short to tell."""
    data = _excerpt(text).encode("utf-8", "replace")
    if len(data) < MIN_COMPRESSED:
        return None
    return len(data) / len(zlib.compress(data, 1))


def special_token(text: str, request: bytes = b"") -> str | None:
    """The first special token that appears as text, and is not in the request too; None: there is none among
    the first TOKENS_LIMIT.

    request: a JSON text, whose brackets may be escaped.
    """
    if not _holds(text, _SPECIAL_PARTS):
        return None
    tokens = dict.fromkeys(map(str.rstrip, _SPECIAL.findall(text)))
    if not tokens:
        return None
    asked = request.decode("utf-8", "replace")
    for escape, character in _ESCAPED.items() if "\\u" in asked else ():
        asked = asked.replace(escape, character)
    return next((token for token in itertools.islice(tokens, TOKENS_LIMIT) if token not in asked), None)


def refuses(text: str) -> bool:
    """Whether the text opens with a refusal, in the usual words of six languages: a heuristic."""
    opening = text[:OPENING_CHARACTERS].replace("\u2019", "'").lower()
    return _holds(opening, _REFUSAL_PARTS) and _REFUSALS.search(opening) is not None


def language(text: str) -> str | None:
    """ISO 639 code of the text's language; None: too short or too mixed to tell."""
    part = text[:LANGUAGE_CHARACTERS]
    if not part.isprintable():
        part = part.translate(_CONTROLS)
    data = part.encode("utf-8", "replace")
    if len(data) < LANGUAGE_BYTES:
        return None
    try:
        is_reliable, _, found = pycld2.detect(data, bestEffort=False)
    except pycld2.error:
        return None
    _, code, percent, _ = found[0]
    return str(code) if is_reliable and code in LANGUAGES and percent >= 80 else None


def _holds(text: str, parts: tuple[str, ...]) -> bool:
    """Whether one of these is in it. A loop: a generator takes three times as long."""
    for part in parts:  # noqa: SIM110
        if part in text:
            return True
    return False


def _excerpt(text: str) -> str:
    """Both ends of a long text: a loop is at the end, and what led to it at the beginning."""
    return text if len(text) <= 2 * EXCERPT else text[:EXCERPT] + text[-EXCERPT:]
